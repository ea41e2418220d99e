"""Trainer: batches, losses, memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from biotune_optuna.errors import BioTuneError, DataError, ModelError
from biotune_optuna.finetune.batches import BatchSampler, Loss, class_weights
from biotune_optuna.finetune.optim import Schedule
from biotune_optuna.finetune.trainer import Trainer, TrainSettings
from biotune_optuna.models.states import out_of_place
from biotune_optuna.recipe import Recipe
from tests.kit.networks import (
    DEVICE,
    SETTINGS,
    TensorImages,
    make_images,
    make_trainer,
    recipe_for,
)


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
    assert result.batch_size == 4
    np.testing.assert_allclose(
        [r.train_loss for r in result.epochs], [r.train_loss for r in expected.epochs], rtol=1e-3
    )
    assert result.images_backward == expected.images_backward


def test_memory_running_out_in_validation_leaves_training_as_it_is(images, split):
    whole = make_trainer(images)
    recipe = Recipe.full(whole.blocks, lr=1e-3)
    expected = whole.fit(recipe, *split, seed=0)
    trainer = make_trainer(images)
    exhaust(images, 16)  # a step's images fit, not the 20 of the validation part
    result = trainer.fit(recipe, *split, seed=0)
    assert result.batch_size == 16
    # its BatchNorm would see other statistics in smaller portions
    assert [r.train_loss for r in result.epochs] == [r.train_loss for r in expected.epochs]
    assert [r.score for r in result.epochs] == [r.score for r in expected.epochs]


def test_validation_goes_on_with_single_images(images, split):
    trainer = make_trainer(images, epochs=1, batch_size=2)

    def refuse(module, args):
        if not module.training and len(args[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = trainer.model.register_forward_pre_hook(refuse)
    result = trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0)
    assert result.batch_size == 2
    assert len(result.predictions) == len(split[1])
    handle.remove()
    exhaust(images, 0)
    with pytest.raises(BioTuneError, match="memory ran out with 1 image at once"):
        trainer.predict(split[1])


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
    sampler = BatchSampler(np.arange(100), labels, sampling="balanced", seed=0)
    drawn = np.concatenate([np.concatenate(sampler.epoch(32)) for _ in range(20)])
    assert len(drawn) == 2000
    assert 900 < (drawn >= 90).sum() < 1100
    sampler = BatchSampler(np.arange(100), labels, sampling="shuffle", seed=0)
    epochs = [np.concatenate(sampler.epoch(32)) for _ in range(2)]
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
    rounded = schedule(epochs=4, steps=1, schedule="step", schedule_interval="epoch")
    np.testing.assert_allclose(np.ravel(rounded), [1, 1, 0.1, 0.1])
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
    labels = images.labels(split[0]).cpu().numpy()
    train = np.concatenate([split[0][labels == 0], split[0][labels == 1][:5]])
    base, other = (t.fit(recipe, train, split[1], seed=0) for t in (plain, changed))
    assert not other.diverged
    same = [r.train_loss for r in base.epochs] == [r.train_loss for r in other.epochs]
    assert same == ("deterministic" in settings)


@pytest.mark.parametrize(("make", "views"), [(Recipe.full, 0), (Recipe.linear_probe, 2)])
def test_training_images_are_augmented_and_validation_images_are_not(
    images, split, monkeypatch, make, views
):
    """Whether pixels are served at each step, or once for the outputs of frozen blocks."""
    trainer = make_trainer(images, augment="flip", cached_views=views)
    recipe, served, seen = make(trainer.blocks, lr=1e-3), images.batch, []
    trainer.fit(recipe, *split, seed=1)  # tries where the network can be cut
    trainer.clear_cache()

    def batch(idx, **options):
        part = "train" if set(idx) <= set(split[0]) else "val"
        seen.append((part, options.get("augmentation", "none")))
        return served(idx, **options)

    monkeypatch.setattr(images, "batch", batch)
    result = trainer.fit(recipe, *split, seed=0)
    assert bool(result.cache_hits) == bool(views)
    assert set(seen) == {("train", "flip"), ("val", "none")}


@pytest.mark.parametrize("most", [0.01, 0.03])
def test_longer_gradients_are_clipped_to_the_length_given(images, split, most):
    lengths = []

    def measure(optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        lengths.append(float(torch.nn.utils.get_total_norm(gradients)))

    trainer = make_trainer(images, epochs=1, grad_clip=most)
    hook = register_optimizer_step_pre_hook(measure)
    try:
        trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0)
    finally:
        hook.remove()
    assert lengths == pytest.approx([most] * 3, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("mixup", 0.45),
        ("cutmix", 0.12),  # the edges cut three quarters off a box in the corner
    ],
)
def test_images_are_mixed_as_strongly_as_was_asked(kind, least):
    """Black and white ones; so high an alpha takes half of each."""
    labels = np.arange(64) % 2
    pixels = torch.from_numpy(labels).float().view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    trainer = make_trainer(TensorImages(pixels, labels, 2), epochs=4, **{kind: 1e4})
    whiteness = []

    def look(module, args):
        if module.training:
            whiteness.extend(args[0].mean((1, 2, 3)).tolist())

    trainer.model.register_forward_pre_hook(look)
    trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), np.arange(64), seed=0)
    mixed = [share for share in whiteness if 1e-3 < share < 1 - 1e-3]
    assert len(mixed) > len(whiteness) / 4, "the others met their like"
    assert all(least < share < 1 - least for share in mixed)


@pytest.mark.parametrize(("make", "views"), [(Recipe.full, 0), (Recipe.linear_probe, 2)])
def test_images_are_the_same_whatever_type_the_network_computes_in(images, split, make, views):
    """No batch is made under autocast, in which a blur would round to bf16."""
    trainer = make_trainer(images, amp="bf16", augment="flip", cached_views=views)
    served, lower = images.batch, []

    def batch(idx, **options):
        if options.get("augmentation", "none") != "none":
            lower.append(torch.is_autocast_enabled(torch.device(DEVICE).type))
        return served(idx, **options)

    images.batch = batch
    trainer.fit(make(trainer.blocks, lr=1e-3), *split, seed=0)
    assert lower
    assert not any(lower)


@pytest.mark.parametrize("kind", [nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Mish])
def test_activations_copy_nothing_and_give_the_same_numbers(kind):
    found = []
    for inplace in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), kind(inplace=True), nn.Linear(8, 2))
        if not inplace:
            out_of_place(model)
        with torch.profiler.profile() as seen:
            model(torch.ones(3, 6)).square().sum().backward()
        copies = sum(event.name == "aten::clone" for event in seen.events())
        found.append((copies, [p.grad for p in model.parameters()]))
    assert found[0][0] > found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


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
    trainer = Trainer(model, blocks, images, TrainSettings(epochs=8, **SETTINGS), device=DEVICE)
    result = trainer.fit(Recipe.full(blocks, lr=1e-1), *split, seed=0)
    assert result.score > 0.6
