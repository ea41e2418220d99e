"""Recorded steps. A CPU cannot record, but all around it: fixed places, rates on the device."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from biotune_optuna.finetune import loop
from biotune_optuna.finetune.graph import WARM_UP, RecordedStep, recorder_for
from biotune_optuna.finetune.optim import Schedule, build_optimizer, put_rates_on
from biotune_optuna.finetune.trainer import TrainSettings
from biotune_optuna.methods.registry import get_method
from biotune_optuna.recipe import Recipe
from tests.kit.networks import curve, make_trainer, recipe_for, state_of

EPOCHS = 4  # of 2 full steps and one of 8 images


class StandIn:
    """Records nothing: each replay does the work again, in the same places."""

    def __init__(self):
        self.ran = self.recorded = self.replayed = 0

    def run(self, work):
        self.ran += 1
        return work()

    def record(self, work):
        self.recorded += 1

        def replay():
            self.replayed += 1
            return work()

        return replay


@pytest.fixture
def recorder(monkeypatch):
    made = StandIn()
    monkeypatch.setattr(loop, "recorder_for", lambda _device: made)
    monkeypatch.setattr(loop, "WORTH", 2 * EPOCHS)
    return made


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "sgd"},
        {"optimizer": "adam", "schedule": "constant"},
        {"grad_clip": 0.5},
        {"mixup": 0.4, "cutmix": 1.0},
        {"augment": "flip"},
        {"class_weights": "balanced"},
        {"amp": "bf16"},
        {"ema": 0.9},
    ],
    ids=str,
)
def test_recorded_steps_are_the_usual_ones_to_the_bit(images, split, recorder, settings):
    results, states = [], []
    for graph in ("off", "auto"):
        trainer = make_trainer(images, epochs=EPOCHS, cuda_graph=graph, **settings)
        recipe = Recipe.layer_decay(trainer.blocks, lr=1e-3, decay=0.7)
        results.append(trainer.fit(recipe, *split, seed=0))
        states.append(state_of(trainer))
    assert recorder.recorded == 1
    assert recorder.replayed == 2 * EPOCHS - WARM_UP
    assert recorder.ran == EPOCHS + WARM_UP, "the odd last batches, and the first full ones"
    assert curve(results[0]) == curve(results[1])
    assert results[0].images_backward == results[1].images_backward
    assert results[0].images_forward == results[1].images_forward
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("frozen", [3, "head"])
def test_steps_behind_a_cached_prefix_are_recorded_too(images, split, recorder, name, frozen):
    results = []
    for graph in ("off", "auto"):
        options = {"img_size": 32, "drop_path_rate": 0.1} if name == "test_vit" else None
        trainer = make_trainer(images, name, options, epochs=EPOCHS, cuda_graph=graph)
        n = len(trainer.blocks) - 1 if frozen == "head" else frozen
        results.append(trainer.fit(recipe_for(trainer, [0.0] * n), *split, seed=0))
    assert recorder.replayed == 2 * EPOCHS - WARM_UP
    assert curve(results[0]) == curve(results[1])
    assert results[1].cache_hits


@pytest.mark.parametrize(("method", "recordings"), [("l2-sp", 0), ("unfreeze-last-first", 1)])
def test_methods_that_change_a_run_are_recorded_where_that_can_be(
    images, split, recorder, method, recordings
):
    """A penalty may do anything; each new optimiser needs a recording of its own."""
    scores = []
    for graph in ("off", "auto"):
        trainer = make_trainer(images, epochs=3 * EPOCHS, cuda_graph=graph)
        chosen = get_method(method)
        result = chosen.run(trainer, *split, setting=chosen.settings()[1], seed=0)
        scores.append(curve(result))
    assert scores[0] == scores[1]
    assert (recorder.recorded > 0) == (recordings > 0)
    assert recorder.recorded <= loop._MOST_RECORDINGS


def test_short_runs_other_optimisers_and_fp16_are_not_recorded(images, split, recorder):
    trainer = make_trainer(images, epochs=EPOCHS - 1)
    trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0)
    lion = make_trainer(images, epochs=EPOCHS, optimizer="lion")
    lion.fit(Recipe.full(lion.blocks, lr=1e-4), *split, seed=0)
    assert not recorder.recorded
    assert not recorder.ran, "no stream of its own is needed for these"


def test_statistics_of_an_epoch_are_not_recorded(images, split, recorder):
    trainer = make_trainer(images, epochs=EPOCHS, norm_statistics="epoch")
    trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0)
    assert not recorder.recorded, "each batch has a momentum of its own"


def test_batches_that_do_not_fit_are_not_recorded(images, split, recorder):
    trainer = make_trainer(images, epochs=EPOCHS)
    served = images.batch

    def batch(idx, **options):
        if len(idx) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return served(idx, **options)

    images.batch = batch
    result = trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0)
    assert result.batch_size == 8
    assert not recorder.recorded


class Refuses(StandIn):
    def record(self, work):
        self.recorded += 1
        raise RuntimeError("operation not permitted\nwhen stream is capturing")


def test_a_network_that_cannot_be_recorded_trains_one_by_one(images, split, monkeypatch, caplog):
    plain = make_trainer(images, epochs=EPOCHS, cuda_graph="off")
    recipe = Recipe.full(plain.blocks, lr=1e-3)
    expected = curve(plain.fit(recipe, *split, seed=0))
    refuses = Refuses()
    monkeypatch.setattr(loop, "recorder_for", lambda _device: refuses)
    monkeypatch.setattr(loop, "WORTH", 1)
    trainer = make_trainer(images, epochs=EPOCHS)
    with caplog.at_level(logging.INFO):
        assert curve(trainer.fit(recipe, *split, seed=0)) == expected
    assert caplog.text.count("cannot be recorded") == refuses.recorded == 1
    assert refuses.ran == WARM_UP + 1, "the odd batch among them; none afterwards"
    assert "operation not permitted when stream is capturing" in caplog.text


def test_a_replay_reads_its_batch_where_the_first_one_lay():
    places = []

    def step(inputs, targets, mass):
        places.append([t.data_ptr() for t in (*inputs, targets, mass)])
        return (inputs[0].sum() + targets.sum()) / mass

    recorded = RecordedStep(step, StandIn(), torch.device("cpu"))
    shape = (4, 3, 8, 8)
    for n in range(3):
        images = torch.full(shape, float(n)).to(memory_format=torch.channels_last)
        found = recorded((images,), torch.tensor([n, 0]), torch.tensor(2.0))
        assert float(found) == (n * images.numel() + n) / 2
    assert places[0] == places[1] == places[2]
    assert recorded._places[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_rates_on_the_device_follow_the_schedule(name):
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(2))], "lr": rate, "weight_decay": 0.0}
        for rate in (0.5, 0.25)
    ]
    device = torch.device("cpu")
    optimizer = build_optimizer(groups, name, device)
    rates = put_rates_on(optimizer, device)
    schedule = Schedule(TrainSettings(epochs=4), 5)
    schedule.apply(optimizer, 2, 0, rates)
    expected = np.array([0.5, 0.25]) * schedule.factor(2, 0)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    assert [float(g["lr"]) for g in optimizer.param_groups] == rates.tolist()
    assert put_rates_on(build_optimizer(groups, "lion", device), device) is None


def test_a_cpu_records_nothing():
    assert recorder_for(torch.device("cpu")) is None


@pytest.mark.parametrize("mode", ["norms", "low-rank"])
def test_blocks_that_train_in_part_are_recorded_too(images, split, recorder, mode):
    results, states = [], []
    for graph in ("off", "auto"):
        trainer = make_trainer(images, epochs=EPOCHS, cuda_graph=graph)
        n = len(trainer.blocks)
        modes = [mode] * (n - 1) + ["full"]
        recipe = Recipe.from_multipliers(trainer.blocks, [1.0] * n, lr=1e-3, modes=modes)
        results.append(trainer.fit(recipe, *split, seed=0))
        states.append(state_of(trainer))
    assert recorder.replayed == 2 * EPOCHS - WARM_UP
    assert curve(results[0]) == curve(results[1])
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
