"""Trainer: how blocks train, and what a recipe says of its training."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from timm.layers.drop import DropPath
from torch import nn

from biotune_optuna.errors import BioTuneError, ModelError
from biotune_optuna.finetune.drop_path import places
from biotune_optuna.finetune.lowrank import RANK, LowRank, rank_of
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.recipe import Recipe
from tests.kit.networks import Spy, curve, make_trainer, recipe_for, state_of

NETWORKS = ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"]


def with_mode(recipe, mode):
    *body, head = recipe.blocks
    return dataclasses.replace(
        recipe, blocks=(*(dataclasses.replace(b, mode=mode) for b in body), head)
    )


def is_vector(name, parameter):
    return parameter.ndim <= 1 or name.endswith(".bias")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", ["norms", "low-rank"])
def test_just_what_the_mode_says_moves(images, split, name, mode):
    trainer = make_trainer(images, name)
    before = state_of(trainer)
    recipe = with_mode(recipe_for(trainer, [0, 1, 1], lr=1e-2), mode)
    result = trainer.fit(recipe, *split, seed=0)
    after = state_of(trainer)
    parameters = dict(trainer.model.named_parameters())
    trained = 0
    for i, block in enumerate(recipe.blocks):
        for tensor in block.parameter_names:
            parameter, moved = parameters[tensor], not torch.equal(before[tensor], after[tensor])
            whole = i == len(recipe.blocks) - 1 or is_vector(tensor, parameter)
            assert moved == (not block.frozen and (whole or mode == "low-rank")), tensor
            change = (after[tensor] - before[tensor]).reshape(len(parameter), -1)
            rank = 0 if block.frozen else rank_of(parameter.shape)
            if moved and not whole and rank:
                assert np.linalg.matrix_rank(change.double().numpy(), tol=1e-5) <= rank, tensor
                trained += rank * sum(change.shape)
            elif moved:
                trained += parameter.numel()
    assert result.trainable_parameters == trained


def test_gradients_of_the_factors_are_those_of_autograd():
    torch.manual_seed(0)
    images, target = torch.randn(4, 6, 5, 5), torch.randn(4, 12, 3, 3)
    layer = nn.Conv2d(6, 12, 3, groups=2, bias=False)
    low = LowRank(seed=1)
    (group,) = low.groups([{"params": [layer.weight], "lr": 0.1, "mode": "low-rank"}])
    inner, outer = group["params"]
    with torch.no_grad():
        outer.normal_()
    low.push()
    base = layer.weight.detach() - (outer @ inner).detach().view(layer.weight.shape)
    ((layer(images) - target) ** 2).sum().backward()
    low.pull()
    a, b = inner.detach().clone().requires_grad_(), outer.detach().clone().requires_grad_()
    weight = base + (b @ a).view(base.shape)
    ((nn.functional.conv2d(images, weight, groups=2) - target) ** 2).sum().backward()
    torch.testing.assert_close(inner.grad, a.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outer.grad, b.grad, rtol=1e-4, atol=1e-4)
    assert layer.weight.grad is None


@pytest.mark.parametrize(
    ("shape", "rank"), [((64, 32, 3, 3), RANK), ((32, 1, 3, 3), 4), ((1, 17, 64), 0), ((10, 3), 1)]
)
def test_a_rank_is_at_most_half_of_the_smaller_side(shape, rank):
    assert rank_of(shape) == rank


def test_a_block_of_moving_norms_is_no_frozen_prefix(images, split):
    trainer = make_trainer(images)
    frozen = recipe_for(trainer, [0, 0, 0])
    moving = with_mode(recipe_for(trainer, [1, 0, 0]), "norms")
    assert trainer.fit(frozen, *split, seed=0).cache_hits
    assert not trainer.fit(moving, *split, seed=0).cache_hits


def test_a_block_without_norms_cannot_train_its_norms():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2))
    names = [("0.weight",), ("1.weight", "1.bias")]
    blocks = recipe_for_names(names)
    with pytest.raises(ModelError, match="block 'b0' has no norms or biases"):
        with_mode(Recipe(blocks, lr=1e-3), "norms").apply(model)


def recipe_for_names(names):
    from biotune_optuna.recipe import BlockRecipe

    return tuple(BlockRecipe(f"b{i}", 1.0, one) for i, one in enumerate(names))


def test_training_genes_do_what_the_settings_do(images, split):
    """Each by its own name, and none is left behind for the next run."""
    plain = make_trainer(images, epochs=2)
    recipe = recipe_for(plain, [0, 1, 1])
    without = curve(plain.fit(recipe, *split, seed=0))
    for training, settings in (
        ({"augment": "flip"}, {"augment": "flip"}),
        ({"length": 2.0}, {"epochs": 4}),
        ({"balance": "weights"}, {"class_weights": "balanced"}),
        ({"balance": "sampling"}, {"sampling": "balanced"}),
        ({"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
        ({"mix": "mixup"}, {"mixup": 0.2}),
        ({"mix": "cutmix"}, {"cutmix": 1.0}),
        ({"drop_path": 0.3}, {"drop_path": 0.3}),
        ({"ema": 0.9}, {"ema": 0.9}),
    ):
        gened = dataclasses.replace(recipe, training=training)
        by_gene = curve(plain.fit(gened, *split, seed=0))
        assert by_gene == curve(
            make_trainer(images, **{"epochs": 2, **settings}).fit(recipe, *split, seed=0)
        ), training
        if training != {"balance": "weights"}:  # the classes are of one size
            assert by_gene != without, training
        assert curve(plain.fit(recipe, *split, seed=0)) == without


def test_a_shorter_training_has_at_least_one_epoch(images, split):
    trainer = make_trainer(images, epochs=1, warmup_epochs=0)
    recipe = dataclasses.replace(Recipe.full(trainer.blocks, lr=1e-3), training={"length": 0.1})
    assert len(trainer.fit(recipe, *split, seed=0).epochs) == 1


def test_the_average_of_the_weights_is_what_is_validated_and_kept(images, split):
    """Against an average that is taken beside the training."""
    trainer = make_trainer(images, epochs=2, ema=0.9, schedule="constant")
    recipe = Recipe.full(trainer.blocks, lr=1e-2)
    seen = []

    def step(run):
        advance = run._advance

        def after():
            advance()
            seen.append({n: p.detach().clone() for n, p in run.model.named_parameters()})

        if not seen:
            seen.append({n: p.detach().clone() for n, p in run.model.named_parameters()})
            run._advance = after

    result = trainer.fit(recipe, *split, seed=0, hooks=Spy(step))
    mean = seen[0]
    for t, weights in enumerate(seen[1:]):
        decay = min(0.9, (1 + t) / (10 + t))
        mean = {name: decay * mean[name] + (1 - decay) * weights[name] for name in mean}
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), mean[name], rtol=1e-4, atol=1e-5)
    assert trainer.predict(split[1]).argmax(1).tolist() == list(result.predictions) or (
        result.best_epoch == 1
    )


def test_statistics_of_an_epoch_are_the_mean_over_its_batches(images, split):
    trainer = make_trainer(images, epochs=2, norm_statistics="epoch")
    norm = next(m for m in trainer.model.modules() if isinstance(m, nn.BatchNorm2d))
    momentum, means = norm.momentum, []

    def keep(_module, args):
        if norm.training:
            means.append(args[0].detach().mean((0, 2, 3)))

    handle = norm.register_forward_pre_hook(keep)
    trainer.fit(Recipe.full(trainer.blocks, lr=1e-2), split[0], None, seed=0)
    handle.remove()
    of_last_epoch = torch.stack(means[len(means) // 2 :]).mean(0)
    torch.testing.assert_close(norm.running_mean, of_last_epoch, rtol=1e-4, atol=1e-5)
    assert norm.momentum == momentum


def test_frozen_blocks_keep_their_statistics_of_the_pretraining(images, split):
    trainer = make_trainer(images, norm_statistics="epoch")
    before = state_of(trainer)
    recipe = recipe_for(trainer, [0, 1, 0])
    trainer.fit(recipe, *split, seed=0)
    after = state_of(trainer)
    for block in recipe.blocks:
        for name in block.buffer_names:
            assert torch.equal(before[name], after[name]) == block.frozen, name


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_vit"])
def test_branches_are_left_out_while_a_run_lasts(images, split, name):
    trainer = make_trainer(images, name, drop_path=0.4)
    found = places(trainer.model)
    before, printed = [getattr(*place) for place in found], repr(trainer.model)
    spy = Spy(lambda _run: [getattr(*place) for place in found])
    trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0, hooks=spy)
    assert all(isinstance(part, DropPath) for part in spy.seen[0])
    chances = [part.drop_prob for part in spy.seen[0]]
    assert chances == sorted(chances)
    assert chances[-1] == 0.4
    assert [getattr(*place) for place in found] == before
    assert repr(trainer.model) == printed


def test_settings_out_of_range_are_refused():
    for name in ("ema", "drop_path"):
        with pytest.raises(BioTuneError, match=f"{name} 1"):
            TrainSettings(**{name: 1.0})
    with pytest.raises(BioTuneError, match="augment 'sideways' is not one of none, flip, crop"):
        TrainSettings().by({"augment": "sideways"})


@pytest.mark.parametrize(
    "training",
    [{"balance": "weight"}, {"mix": "mix-up"}, {"length": -3}, {"length": float("nan")},
     {"ema": "x"}, {"drop_path": None}, {"label_smoothing": True}, {"augment": "sideways"}],
)  # fmt: skip
def test_a_value_that_means_nothing_is_refused(training):
    (name,) = training
    with pytest.raises(ModelError, match=f"{name} .* is no"):
        Recipe(recipe_for_names([("0.weight",)]), lr=1e-3, training=training)


def test_gradients_of_a_step_that_is_made_again_are_not_counted_twice():
    layer = nn.Linear(8, 8, bias=False)
    low = LowRank(seed=0)
    low.groups([{"params": [layer.weight], "lr": 0.1, "mode": "low-rank"}])
    layer(torch.ones(1, 8)).sum().backward()
    once = layer.weight.grad.clone()
    low.clear()
    layer(torch.ones(1, 8)).sum().backward()
    assert torch.equal(layer.weight.grad, once)
