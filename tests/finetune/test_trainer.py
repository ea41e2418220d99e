from __future__ import annotations

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from biotune_optuna.errors import BioTuneError, DataError, ModelError
from biotune_optuna.finetune import metrics
from biotune_optuna.finetune.batches import Loss, Order, class_weights
from biotune_optuna.finetune.device import amp_dtype, kernels, out_of_memory, resolve_device
from biotune_optuna.finetune.loop import Tactic
from biotune_optuna.finetune.optim import Schedule
from biotune_optuna.finetune.trainer import StopTraining, Trainer, TrainSettings
from biotune_optuna.models import model_blocks
from biotune_optuna.recipe import Recipe

from .kit import make_images, make_model


def make_trainer(images, name="test_resnet", model_options=None, **settings):
    model, blocks = make_model(name, n_classes=images.n_classes, **(model_options or {}))
    defaults = {"epochs": 3, "batch_size": 16, "patience": None}
    return Trainer(model, blocks, images, TrainSettings(**{**defaults, **settings}), device="cpu")


def recipe_for(trainer, multipliers, **options):
    multipliers = [*multipliers, *[1.0] * (len(trainer.blocks) - len(multipliers))]
    return Recipe.from_multipliers(trainer.blocks, multipliers, **{"lr": 1e-3, **options})


def state_of(trainer):
    both = (*trainer.model.named_parameters(), *trainer.model.named_buffers())
    return {name: t.detach().clone() for name, t in both}


def curve(result):
    return [(r.epoch, r.train_loss, r.score) for r in result.epochs]


class Spy(Tactic):
    """Reads the run at the start of each epoch."""

    def __init__(self, look):
        self.look = look
        self.seen = []

    def before_epoch(self, run, epoch):
        self.seen.append(self.look(run))


# -- what a run is -------------------------------------------------------------------------------


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


def test_keep_weights_puts_the_best_epoch_back(images, split):
    trainer = make_trainer(images, epochs=5)
    recipe = recipe_for(trainer, [0], lr=2e-2)
    result = trainer.fit(recipe, *split, seed=3, keep_weights=True)
    assert result.best_epoch < 5
    labels = images.labels(split[1]).numpy()
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


# -- the recipe, applied -------------------------------------------------------------------------


def test_rates_and_gradients_read_back_during_training(images, split):
    trainer = make_trainer(images, schedule="constant")
    multipliers = [0.0, 0.1, 0.0, 2.0]
    recipe = recipe_for(trainer, multipliers, lr=1e-3, weight_decay=0.05)
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    spy = Spy(
        lambda run: {
            names[id(p)]: (group["lr"], group["weight_decay"], p.requires_grad)
            for group in run.optimizer.param_groups
            for p in group["params"]
        }
    )
    result = trainer.fit(recipe, *split, seed=0, tactic=spy)
    for seen in spy.seen:
        expected = {}
        for block in recipe.blocks:
            for name in () if block.frozen else block.parameter_names:
                plain = dict(trainer.model.named_parameters())[name].ndim <= 1
                expected[name] = (1e-3 * block.multiplier, 0.0 if plain else 0.05, True)
        assert seen == expected
    for block in recipe.blocks:
        for name in block.parameter_names:
            assert dict(trainer.model.named_parameters())[name].requires_grad != block.frozen
    trained = sum(
        b.n_parameters for r, b in zip(recipe.blocks, trainer.blocks, strict=True) if not r.frozen
    )
    assert result.trainable_parameters == trained


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_frozen_blocks_keep_every_bit_and_the_rest_moves(images, split, name):
    trainer = make_trainer(images, name)
    before = state_of(trainer)
    recipe = recipe_for(trainer, [0, 1, 0])
    trainer.fit(recipe, *split, seed=0)
    after = state_of(trainer)
    for block in recipe.blocks:
        names = (*block.parameter_names, *block.buffer_names)
        assert names
        for tensor in names:
            assert torch.equal(before[tensor], after[tensor]) == block.frozen, tensor


def test_frozen_norm_train_lets_statistics_drift_and_nothing_else(images, split):
    trainer = make_trainer(images, frozen_norm="train")
    before = state_of(trainer)
    trainer.fit(recipe_for(trainer, [0, 1, 0]), *split, seed=0)
    after = state_of(trainer)
    for position in (0, 2):
        block = trainer.blocks[position]
        assert all(torch.equal(before[n], after[n]) for n in block.parameter_names)
        assert not any(torch.equal(before[n], after[n]) for n in block.buffer_names)


def test_dropout_and_drop_path_of_frozen_blocks_are_off(images, split):
    trainer = make_trainer(images, "test_efficientnet", {"drop_path_rate": 0.2})
    paths = {n: m for n, m in trainer.model.named_modules() if type(m).__name__ == "DropPath"}
    spy = Spy(lambda run: {n: m.training for n, m in paths.items()})
    recipe = recipe_for(trainer, [0, 0, 0])
    trainer.fit(recipe, *split, seed=0, tactic=spy)
    frozen = [n.rpartition(".")[0] for b in recipe.blocks if b.frozen for n in b.parameter_names]
    expected = {n: not any(f.startswith(n.rpartition(".")[0]) for f in frozen) for n in paths}
    assert set(expected.values()) == {True, False}
    assert spy.seen == [expected] * 3


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "lion", "rmsprop"])
def test_optimizers_by_name(images, split, optimizer):
    trainer = make_trainer(images, epochs=1, optimizer=optimizer)
    spy = Spy(lambda run: type(run.optimizer).__name__.lower())
    trainer.fit(Recipe.full(trainer.blocks, lr=1e-4), *split, seed=0, tactic=spy)
    assert spy.seen == [optimizer]


def test_frozen_parameters_cost_no_gradient_and_no_optimizer_state(images, split):
    trainer = make_trainer(images)
    spy = Spy(lambda run: run)
    recipe = recipe_for(trainer, [0, 1, 0])
    trainer.fit(recipe, *split, seed=0, tactic=spy)
    frozen = {n for b in recipe.blocks if b.frozen for n in b.parameter_names}
    parameters = dict(trainer.model.named_parameters())
    assert all(parameters[n].grad is None for n in frozen)
    held = spy.seen[-1].optimizer.state
    assert all((p in held) == (n not in frozen) for n, p in parameters.items())


# -- batches, losses, memory ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [33, 17, 2])
def test_a_last_image_alone_joins_the_batch_before(n):
    # at 32 px test_resnet's last maps are 1x1, where BatchNorm refuses a single image
    images = make_images()
    trainer = make_trainer(images, epochs=1)
    images.served.clear()
    trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), np.arange(n), seed=0)
    assert [len(b) for b in images.served] == {33: [16, 17], 17: [17], 2: [2]}[n]


def test_one_training_image_is_refused(images):
    trainer = make_trainer(images)
    with pytest.raises(DataError, match="1 training images are too few"):
        trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), [4], seed=0)


def test_a_recipe_without_training_blocks_is_refused(images, split):
    trainer = make_trainer(images)
    with pytest.raises(ModelError, match="freezes every block"):
        trainer.fit(recipe_for(trainer, [0] * len(trainer.blocks)), *split, seed=0)


def exhaust(images, most):
    """Makes batches of more than so many images run out of memory."""
    served = images.batch

    def batch(idx, **options):
        if len(idx) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return served(idx, **options)

    images.batch = batch


def test_memory_running_out_halves_what_is_held_and_not_the_step(images, split):
    # no BatchNorm: then portions add up to the very step of the whole batch
    options, settings = {"img_size": 32}, {"class_weights": "balanced"}
    whole = make_trainer(images, "test_vit", options, **settings)
    expected = whole.fit(Recipe.full(whole.blocks, lr=1e-3), *split, seed=0)
    trainer = make_trainer(images, "test_vit", options, **settings)
    exhaust(images, 5)
    result = trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0)
    assert expected.batch_size == 16
    assert result.batch_size == 2  # validation holds twice as many: 2 * 2 <= 5 < 2 * 4
    np.testing.assert_allclose(
        [r.train_loss for r in result.epochs], [r.train_loss for r in expected.epochs], rtol=1e-3
    )
    assert result.images_backward == expected.images_backward


def test_memory_for_fewer_than_two_images_is_an_error(images, split):
    trainer = make_trainer(images)
    exhaust(images, 1)
    with pytest.raises(BioTuneError, match="memory ran out with 2 images at once"):
        trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0)


def test_other_runtime_errors_are_not_mistaken_for_memory(images, split):
    trainer = make_trainer(images)

    def broken(idx, **options):
        raise RuntimeError("shape mismatch")

    images.batch = broken
    with pytest.raises(RuntimeError, match="shape mismatch"):
        trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_torchs_cross_entropy_and_adds_up_over_portions(weighted):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 3, generator=generator)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    weights = class_weights(labels.numpy(), 4)[:3] if weighted else None
    if weighted:
        np.testing.assert_allclose(weights, [7 / 12, 7 / 6, 7 / 3])
    loss = Loss(label_smoothing=0.1, weights=weights, device=torch.device("cpu"))
    whole = nn.CrossEntropyLoss(
        weight=None if weights is None else torch.from_numpy(weights), label_smoothing=0.1
    )(logits, labels)
    mass = loss.mass(labels.numpy(), mixed=False)
    portions = [loss(logits[part], labels[part]) / mass for part in (slice(0, 4), slice(4, 7))]
    assert float(sum(portions)) == pytest.approx(float(whole), rel=1e-6)


def test_balanced_sampling_draws_classes_alike_and_shuffling_draws_each_image_once():
    labels = np.array([0] * 90 + [1] * 10)
    order = Order(np.arange(100), labels, sampling="balanced", seed=0)
    drawn = np.concatenate([np.concatenate(order.epoch(32)) for _ in range(20)])
    assert len(drawn) == 2000
    assert 900 < (drawn >= 90).sum() < 1100
    order = Order(np.arange(100), labels, sampling="shuffle", seed=0)
    epochs = [np.concatenate(order.epoch(32)) for _ in range(2)]
    assert all(sorted(e) == list(range(100)) for e in epochs)
    assert not np.array_equal(*epochs)


def schedule(epochs=4, steps=5, **settings):
    found = Schedule(TrainSettings(epochs=epochs, **settings), steps)
    return [[found.factor(e, s) for s in range(steps)] for e in range(epochs)]


def test_schedules_by_step_and_by_epoch():
    steps = np.arange(20).reshape(4, 5)
    np.testing.assert_allclose(schedule(), 0.5 * (1 + np.cos(np.pi * steps / 20)), atol=1e-12)
    np.testing.assert_allclose(schedule(schedule="linear"), 1 - steps / 20, atol=1e-12)
    assert schedule(schedule="constant") == [[1.0] * 5] * 4
    by_epoch = np.repeat(0.5 * (1 + np.cos(np.pi * np.arange(4) / 100)), 5).reshape(4, 5)
    paper = schedule(schedule_interval="epoch", schedule_epochs=100)
    np.testing.assert_allclose(paper, by_epoch, atol=1e-12)
    thirds = schedule(epochs=6, steps=1, schedule="step", schedule_interval="epoch")
    np.testing.assert_allclose(np.ravel(thirds), [1, 1, 0.1, 0.1, 0.01, 0.01])
    warm = np.ravel(schedule(schedule="constant", warmup_epochs=2))
    np.testing.assert_allclose(warm[:10], 0.01 + 0.99 * np.arange(10) / 10, atol=1e-12)
    np.testing.assert_allclose(warm[10:], 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"mixup": 0.4},
        {"cutmix": 1.0},
        {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1},
        {"label_smoothing": 0.2},
        {"class_weights": "balanced"},
        {"sampling": "balanced"},
        {"augment": "flip"},
        {"grad_clip": 0.5},
        {"schedule": "linear", "warmup_epochs": 1},
        {"amp": "bf16"},
        {"deterministic": True},
    ],
    ids="-".join,
)
def test_each_option_trains_and_changes_the_run(images, split, settings):
    plain = make_trainer(images)
    changed = make_trainer(images, **settings)
    recipe = Recipe.full(plain.blocks, lr=1e-3)
    # a skewed part of the images, so that weights and balance matter
    labels = images.labels(split[0]).numpy()
    train = np.concatenate([split[0][labels == 0], split[0][labels == 1][:5]])
    base, other = (t.fit(recipe, train, split[1], seed=0) for t in (plain, changed))
    assert not other.diverged
    same = [r.train_loss for r in base.epochs] == [r.train_loss for r in other.epochs]
    assert same == ("deterministic" in settings)


def test_bf16_follows_full_precision(images, split):
    results = []
    for amp in ("off", "bf16"):
        trainer = make_trainer(images, amp=amp, epochs=2)
        results.append(trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0))
    np.testing.assert_allclose(
        [r.train_loss for r in results[0].epochs],
        [r.train_loss for r in results[1].epochs],
        rtol=0.05,
    )


def test_channels_last_images_take_the_model_along(images, split):
    plain = make_trainer(images)
    expected = plain.fit(Recipe.full(plain.blocks, lr=1e-3), *split, seed=0)
    served = images.batch
    images.batch = lambda *a, **k: served(*a, **k).contiguous(memory_format=torch.channels_last)
    trainer = make_trainer(images)
    result = trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0)
    kernel = trainer.model.get_submodule("layer1.0.conv1").weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(
        [r.train_loss for r in result.epochs], [r.train_loss for r in expected.epochs], rtol=1e-2
    )


def test_a_plain_module_trains_too(images, split):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 3),
    )

    @dataclasses.dataclass
    class Part:
        name: str
        parameter_names: tuple
        buffer_names: tuple = ()

    blocks = [Part("conv", ("0.weight", "0.bias")), Part("head", ("3.weight", "3.bias"))]
    trainer = Trainer(model, blocks, images, TrainSettings(epochs=8), device="cpu")
    result = trainer.fit(Recipe.full(blocks, lr=1e-1), *split, seed=0)
    assert result.score > 0.6


# -- settings and devices ------------------------------------------------------------------------


def test_settings_go_through_json_and_name_what_is_wrong():
    settings = TrainSettings.paper(epochs=5)
    assert TrainSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert (settings.optimizer, settings.schedule_epochs, settings.batch_size) == ("adam", 100, 96)
    with pytest.raises(BioTuneError, match="'epoch' is not one of epochs"):
        TrainSettings.from_dict({"epoch": 3})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs 0 is not a whole number of at least 1"),
        ({"patience": 0}, "at least 1 or None"),
        ({"batch_size": 1}, "batch_size 1 is not a whole number of at least 2"),
        ({"batch_size": 32.0}, "batch_size 32.0 is not a whole number"),
        ({"mixup": -0.1}, "mixup -0.1 is not a number of at least 0"),
        ({"label_smoothing": 1.0}, "not in"),
        ({"metric": "auc"}, "metric 'auc' is not one of macro_accuracy"),
        ({"schedule": "plateau"}, "schedule 'plateau' is not one of constant"),
        ({"grad_clip": 0.0}, "grad_clip 0.0 is not a number above 0 or None"),
        ({"grad_clip": math.nan}, "grad_clip nan"),
        ({"epochs": True}, "epochs True"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(BioTuneError, match=words):
        TrainSettings(**change)


@pytest.mark.parametrize(
    ("device", "words"),
    [("gpu", "'gpu' is not one of auto"), ("cuda:99", "'cuda:99' is not here")],
)
def test_absent_devices_are_named(images, device, words):
    model, blocks = make_model()
    with pytest.raises(BioTuneError, match=words):
        Trainer(model, blocks, images, TrainSettings(), device=device)


def test_devices_by_name():
    assert resolve_device("cpu") == torch.device("cpu")
    auto = resolve_device("auto")
    assert auto.type == "cuda" if torch.cuda.is_available() else auto.type in ("cpu", "mps")
    assert amp_dtype("auto", torch.device("cpu")) is None
    assert amp_dtype("bf16", torch.device("cpu")) is torch.bfloat16


def test_images_elsewhere_than_the_training_are_refused(images):
    model, blocks = make_model()
    served = images.batch
    images.batch = lambda *a, **k: served(*a, **k).to("meta")
    with pytest.raises(DataError, match="images are on meta and training is on cpu"):
        Trainer(model, blocks, images, TrainSettings(), device="cpu")


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_memory_running_out(error, is_memory):
    assert out_of_memory(error) == is_memory


def test_an_operation_without_deterministic_kernel_is_named_in_one_line(images, split):
    class Unpooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, images.n_classes)

        def forward(self, x):
            x, where = nn.functional.max_pool2d(self.first(x), 2, return_indices=True)
            return self.head(nn.functional.max_unpool2d(x, where, 2).mean((2, 3)))

    blocks = model_blocks(Unpooled(), patterns={"first": r"first\.", "head": r"head\."})
    recipe = Recipe.full(blocks, lr=1e-3)
    for deterministic in (True, False):
        settings = TrainSettings(epochs=1, deterministic=deterministic)
        trainer = Trainer(Unpooled(), blocks, images, settings, device="cpu")
        if deterministic:
            with pytest.raises(BioTuneError, match="kernel for max_unpool") as caught:
                trainer.fit(recipe, *split, seed=0)
            assert "deterministic=False" in str(caught.value)
            assert "\n" not in str(caught.value)
            assert not torch.are_deterministic_algorithms_enabled()
        else:
            assert trainer.fit(recipe, *split, seed=0).stopped == "finished"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "kthvalue CUDA does not have a deterministic implementation, but you set it.\nYou can",
            "for kthvalue CUDA; set",
        ),
        (
            "Deterministic behavior was enabled, but this operation uses CuBLAS.\nTo enable, set "
            "CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8",
            "for cuBLAS without CUBLAS_WORKSPACE_CONFIG=:4096:8; set",
        ),
    ],
)
def test_torchs_words_on_determinism_become_one_line(message, words):
    with (
        pytest.raises(BioTuneError, match=words) as caught,
        kernels(torch.device("cpu"), deterministic=True),
    ):
        raise RuntimeError(message)
    assert "\n" not in str(caught.value)


def test_an_unknown_optimizer_and_fp16_on_the_cpu_are_refused(images):
    with pytest.raises(BioTuneError, match="'adamx' is not one that timm knows"):
        make_trainer(images, optimizer="adamx")
    with pytest.raises(BioTuneError, match="fp16"):
        make_trainer(images, amp="fp16")


def test_a_compiled_network_trains_alike(images, split, monkeypatch):
    # torch's own front end with its plainest back end, which needs no compiler
    compiled = []

    def compile_plainly(model):
        compiled.append(model)
        return real(model, backend="eager")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile_plainly)
    results = []
    for on in (False, True):
        trainer = make_trainer(images, epochs=2, compile=on)
        recipe = Recipe.full(trainer.blocks, lr=1e-3)
        results.append([trainer.fit(recipe, *split, seed=seed) for seed in (0, 0)])
    assert compiled == [trainer.model]
    plain, other = ([[r.train_loss for r in run.epochs] for run in runs] for runs in results)
    assert other[0] == other[1]
    np.testing.assert_allclose(plain[0], other[0], rtol=1e-2)
