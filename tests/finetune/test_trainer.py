"""Trainer: what a run is."""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from biotune_optuna.finetune import metrics
from biotune_optuna.finetune.device import ONE_AT_A_TIME
from biotune_optuna.finetune.trainer import StopTraining, Trainer
from biotune_optuna.methods import lora
from biotune_optuna.methods.registry import get_method
from biotune_optuna.recipe import Recipe
from tests.kit.networks import curve, make_trainer, recipe_for, state_of


def test_it_learns_and_says_what_it_cost(images, split):
    trainer = make_trainer(images, epochs=6)
    result = trainer.fit(Recipe.full(trainer.blocks, lr=3e-3), *split, seed=0)
    assert result.score > 0.8
    assert result.score == max(r.score for r in result.epochs)
    assert [r.epoch for r in result.epochs] == [1, 2, 3, 4, 5, 6]
    assert (result.images_forward, result.images_backward) == (6 * 60, 6 * 40)
    assert result.trainable_fraction == 1.0
    assert result.stopped == "finished"
    assert not result.diverged
    assert 0 < sum(r.seconds for r in result.epochs) <= result.seconds
    assert result.peak_memory_mb > 50
    json.dumps(result.to_dict())


def test_the_loss_of_an_epoch_is_the_mean_cross_entropy_of_its_images(images, split):
    trainer = make_trainer(images, epochs=2)
    standing_still = Recipe.linear_probe(trainer.blocks, lr=1e-12)
    result = trainer.fit(standing_still, *split, seed=0)
    right = trainer.predict(split[0])[np.arange(40), images.labels(split[0])]
    expected = -np.log(right).mean()
    assert [r.train_loss for r in result.epochs] == pytest.approx([expected] * 2, rel=1e-5)


def test_equal_seeds_give_equal_bits_whatever_ran_before(images, split):
    trainer = make_trainer(images, model_options={"drop_rate": 0.2}, augment="flip", mixup=0.2)
    recipe = Recipe.full(trainer.blocks, lr=1e-3)
    first = trainer.fit(recipe, *split, seed=5)
    weights = state_of(trainer)
    other = trainer.fit(recipe, *split, seed=6)
    trainer.fit(recipe_for(trainer, [0, 10, 0.1]), split[1], split[0], seed=1)
    torch.rand(17)
    again = trainer.fit(recipe, *split, seed=5)
    assert curve(first) == curve(again)
    assert curve(first) != curve(other)
    assert all(torch.equal(weights[n], t) for n, t in state_of(trainer).items())


def test_threads_take_turns(images, split):
    options = {"model_options": {"drop_path_rate": 0.3}, "epochs": 2}
    trainers = [make_trainer(images, **options) for _ in range(2)]
    recipe = Recipe.full(trainers[0].blocks, lr=1e-3)
    alone = [curve(trainers[0].fit(recipe, *split, seed=seed)) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(t.fit, recipe, *split, seed=i) for i, t in enumerate(trainers)]
        assert [curve(run.result()) for run in runs] == alone
    one = trainers[0]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(one.fit, recipe, *split, seed=seed) for seed in (0, 1)]
        assert [curve(run.result()) for run in runs] == alone


def free_to_others():
    def try_it():
        if got := ONE_AT_A_TIME.acquire(blocking=False):
            ONE_AT_A_TIME.release()
        return got

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(try_it).result()


def test_nobody_trains_during_a_prediction_or_between_a_methods_phases(images, split, monkeypatch):
    pytest.importorskip("peft")
    trainer, seen = make_trainer(images, epochs=1), []
    served, fit, merge_into = images.batch, Trainer.fit, lora.merge_into

    def batch(*args, **options):
        seen.append(("batch", free_to_others()))
        return served(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(images, "batch", batch)
        trainer.predict([0])
        assert set(seen) == {("batch", False)}

    def fit_and_look(*args, **options):
        result = fit(*args, **options)
        seen.append(("phase", free_to_others()))
        return result

    def look_and_merge(*args):
        seen.append(("merge", free_to_others()))
        merge_into(*args)

    monkeypatch.setattr(Trainer, "fit", fit_and_look)
    monkeypatch.setattr(lora, "merge_into", look_and_merge)
    for name in ("lp-ft", "lora"):
        get_method(name).run(trainer, *split, setting={"lr": 1e-3}, seed=0)
    assert set(seen) == {("batch", False), ("phase", False), ("merge", False)}
    assert free_to_others()


def test_waiting_for_a_turn_is_no_training_time(images, split, monkeypatch):
    waited, clock = [0.0], time.perf_counter

    class Busy:
        def __enter__(self):
            waited[0] += 1000

        def __exit__(self, *error): ...

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + waited[0])
    monkeypatch.setattr("biotune_optuna.finetune.trainer.ONE_AT_A_TIME", Busy())
    trainer = make_trainer(images, epochs=1)
    result = trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0)
    assert waited[0] == 1000
    assert 0 < result.seconds < 1000


def test_a_run_leaves_the_global_generators_alone(images, split):
    trainer = make_trainer(images, epochs=1)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=5)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_the_head_depends_on_the_seed_and_the_rest_is_pre_trained(images, split):
    trainer = make_trainer(images)
    original = state_of(trainer)
    trainer.fit(Recipe.full(trainer.blocks, lr=1e-2), *split, seed=0)
    heads = []
    for seed in (0, 1, 0):
        trainer.reset(seed)
        now = state_of(trainer)
        head = trainer.blocks[-1].parameter_names
        assert all(torch.equal(original[n], now[n]) for n in now if n not in head)
        heads.append(now["fc.weight"])
    assert torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], heads[1])


def test_weights_of_earlier_trainings_come_back(images, split):
    trainer = make_trainer(images, epochs=2)
    recipe = Recipe.linear_probe(trainer.blocks, lr=1e-2)
    kept, predicted = [], []
    for seed in range(3):
        trainer.fit(recipe, split[0], seed=seed)
        kept.append(trainer.changed())
        predicted.append(trainer.predict(split[1]))
    trained = {*trainer.blocks[-1].parameter_names, *trainer.blocks[-1].buffer_names}
    assert set(kept[0]) <= trained
    assert kept[0]
    trainer.fit(Recipe.full(trainer.blocks, lr=1e-2), split[0], seed=9)
    for changed, before in zip(kept, predicted, strict=True):
        trainer.put(changed)
        assert np.array_equal(trainer.predict(split[1]), before)


def test_networks_of_several_trainings_share_what_is_frozen(images, split):
    trainer = make_trainer(images, epochs=1)
    frozen = Recipe.linear_probe(trainer.blocks, lr=1e-2)
    whole = Recipe.full(trainer.blocks, lr=1e-2)
    batch = images.batch(split[1])
    for recipes, share in (([frozen] * 3, True), ([frozen, whole, frozen], False)):
        kept, logits = [], []
        for seed, recipe in enumerate(recipes):
            trainer.fit(recipe, split[0], seed=seed)
            kept.append(trainer.changed())
            with torch.no_grad():
                trainer.model.eval()
                logits.append(trainer.model(batch))
        networks = trainer.networks(kept)
        with torch.no_grad():
            for network, before in zip(networks, logits, strict=True):
                assert not network.training
                assert torch.equal(network(batch), before)
        stem = trainer.blocks[0].parameter_names[0]
        first, second, third = (dict(network.named_parameters()) for network in networks)
        assert (first[stem] is second[stem]) == share
        assert (second[stem] is third[stem]) == share
        assert first[stem] is not dict(trainer.model.named_parameters())[stem]


def test_fewer_epochs_are_the_beginning_of_the_same_run(images, split):
    trainer = make_trainer(images, epochs=4)
    recipe = Recipe.full(trainer.blocks, lr=3e-3)
    whole, part = (trainer.fit(recipe, *split, seed=2, epochs=e) for e in (None, 2))
    assert curve(whole)[:2] == curve(part)


def test_without_validation_all_epochs_run_and_the_score_is_not_a_number(images, split):
    trainer = make_trainer(images, patience=1)
    result = trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), split[0], seed=2)
    assert math.isnan(result.score)
    assert result.best_epoch == 3
    assert result.images_forward == result.images_backward == 3 * 40


def test_patience_counts_epochs_since_the_best(images, split):
    trainer = make_trainer(images, epochs=12, patience=2)
    # nothing moves, so no epoch is better than the first
    result = trainer.fit(Recipe.linear_probe(trainer.blocks, lr=1e-12), *split, seed=0)
    assert (result.best_epoch, len(result.epochs), result.stopped) == (1, 3, "patience")


def test_the_callback_may_stop_the_run_and_other_errors_pass(images, split):
    trainer = make_trainer(images)
    recipe = Recipe.full(trainer.blocks, lr=1e-3)
    seen = []

    def stop(record):
        seen.append(record.score)
        if record.epoch == 2:
            raise StopTraining

    result = trainer.fit(recipe, *split, seed=0, on_epoch=stop)
    assert (result.stopped, len(result.epochs)) == ("callback", 2)
    assert result.score == max(seen)

    def fail(record):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        trainer.fit(recipe, *split, seed=0, on_epoch=fail)
    assert curve(trainer.fit(recipe, *split, seed=0))[:2] == curve(result)


@pytest.mark.parametrize("metric", ["macro_accuracy", "kappa"])
def test_an_exploding_loss_ends_the_run_with_the_worst_score(images, split, metric):
    trainer = make_trainer(images, metric=metric)
    result = trainer.fit(Recipe.full(trainer.blocks, lr=1e6), *split, seed=0)
    assert result.diverged
    assert result.stopped == "diverged"
    assert result.score == metrics.worst(metric)
    assert len(result.epochs) == 1
    assert result.best_epoch == 0
    assert result.predictions is None


def test_weights_that_explode_in_the_last_step_end_it_too(images, split):
    trainer = make_trainer(images, epochs=1, batch_size=len(split[0]), warmup_epochs=0)
    held = trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), split[0], None, seed=0)
    assert not held.diverged
    result = trainer.fit(Recipe.full(trainer.blocks, lr=1e39), split[0], None, seed=0)
    assert math.isfinite(result.epochs[0].train_loss)
    assert (result.diverged, result.stopped) == (True, "diverged")


def test_keep_weights_puts_the_best_epoch_back(images, split):
    trainer = make_trainer(images, epochs=5)
    recipe = recipe_for(trainer, [0], lr=2e-2)
    result = trainer.fit(recipe, *split, seed=3, keep_weights=True)
    assert result.best_epoch < 5
    labels = images.labels(split[1]).cpu().numpy()
    kept = metrics.score("macro_accuracy", labels, trainer.predict(split[1]), 3)
    assert kept == result.score
    np.testing.assert_array_equal(result.predictions, trainer.predict(split[1]).argmax(1))
    best = state_of(trainer)
    trainer.fit(recipe, *split, seed=3, epochs=result.best_epoch)
    assert all(torch.equal(best[n], t) for n, t in state_of(trainer).items())


def test_predict_gives_probabilities_in_the_order_asked(images, split):
    trainer = make_trainer(images, epochs=1)
    trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0)
    probs = trainer.predict([5, 3, 5])
    assert probs.shape == (3, 3)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(probs[0], probs[2])
    assert not trainer.model.training
