"""Trainer: the recipe, applied."""

from __future__ import annotations

import pytest
import torch

from biotune_optuna.recipe import Recipe
from tests.kit.networks import Spy, make_trainer, recipe_for, state_of


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
    result = trainer.fit(recipe, *split, seed=0, hooks=spy)
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
    trainer.fit(recipe, *split, seed=0, hooks=spy)
    frozen = [n.rpartition(".")[0] for b in recipe.blocks if b.frozen for n in b.parameter_names]
    expected = {n: not any(f.startswith(n.rpartition(".")[0]) for f in frozen) for n in paths}
    assert set(expected.values()) == {True, False}
    assert spy.seen == [expected] * 3


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "lion", "rmsprop"])
def test_optimizers_by_name(images, split, optimizer):
    trainer = make_trainer(images, epochs=1, optimizer=optimizer)
    spy = Spy(lambda run: type(run.optimizer).__name__.lower())
    trainer.fit(Recipe.full(trainer.blocks, lr=1e-4), *split, seed=0, hooks=spy)
    assert spy.seen == [optimizer]


def test_frozen_parameters_cost_no_gradient_and_no_optimizer_state(images, split):
    trainer = make_trainer(images)
    spy = Spy(lambda run: run)
    recipe = recipe_for(trainer, [0, 1, 0])
    trainer.fit(recipe, *split, seed=0, hooks=spy)
    frozen = {n for b in recipe.blocks if b.frozen for n in b.parameter_names}
    parameters = dict(trainer.model.named_parameters())
    assert all(parameters[n].grad is None for n in frozen)
    held = spy.seen[-1].optimizer.state
    assert all((p in held) == (n not in frozen) for n, p in parameters.items())
