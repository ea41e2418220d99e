"""Gradual unfreezing: which blocks join when, and what the optimiser keeps."""

from __future__ import annotations

import pytest
import torch

from biotune_optuna.finetune.optim import with_base
from biotune_optuna.methods.registry import get_method
from biotune_optuna.methods.unfreezing import Phases
from biotune_optuna.recipe import Recipe
from tests.kit.networks import make_trainer, state_of


@pytest.mark.parametrize("name", ["unfreeze-last-first", "unfreeze-first-last"])
def test_unfreezing_adds_one_block_an_epoch_from_its_side(images, split, name, rates):
    trainer = make_trainer(images, epochs=8, schedule="constant")
    blocks = trainer.blocks
    seen = rates(trainer)
    before = state_of(trainer)
    result = get_method(name).run(trainer, *split, setting={"lr": 1e-3}, seed=0)
    steps = len(seen) // 8
    by_epoch = [set(seen[epoch * steps]) for epoch in range(8)]
    n = len(blocks)
    for epoch, training in enumerate(by_epoch):
        joined = min(epoch, n - 1)
        others = blocks[:joined] if name.endswith("first-last") else blocks[n - 1 - joined : n - 1]
        assert training == {p for b in (*others, blocks[-1]) for p in b.parameter_names}
    assert result.trainable_fraction == 1.0
    # a first epoch alone moves nothing but the head
    get_method(name).run(trainer, *split, setting={"lr": 1e-3}, seed=0, epochs=1)
    trunk = [p for b in blocks[:-1] for p in (*b.parameter_names, *b.buffer_names)]
    assert all(torch.equal(before[p], state_of(trainer)[p]) for p in trunk)


def test_unfreezing_keeps_the_state_of_what_trained_already_and_hurries_when_epochs_are_few(
    images, split
):
    trainer = make_trainer(images, epochs=3)
    full = Recipe.full(trainer.blocks, lr=1e-3)
    method = get_method("unfreeze-last-first")
    phases = [len(r.trainable) for r in method.recipes(full, 3)]
    assert phases[0] == 1
    assert phases[-1] == len(trainer.blocks)
    assert len(phases) <= 3
    states = []

    class Spy(Phases):
        def before_epoch(self, run, epoch):
            head = run.model.get_parameter("fc.weight")
            steps = run.optimizer.state.get(head, {}).get("step", 0)
            super().before_epoch(run, epoch)
            after = run.optimizer.state.get(head, {}).get("step", 0)
            states.append((float(steps), float(after)))

    trainer.fit(full, *split, seed=0, hooks=Spy(method.recipes(full, 3), 1))
    per_epoch = 3  # 40 images in batches of 16
    assert states == [(0, 0), (per_epoch, per_epoch), (2 * per_epoch, 2 * per_epoch)]


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "adan", "lookahead_adamw"])
def test_unfreezing_keeps_what_an_optimiser_remembers_of_a_group_or_below_it(
    images, split, optimizer
):
    trainer = make_trainer(images, epochs=2, optimizer=optimizer)
    recipes = get_method("unfreeze-last-first").recipes(Recipe.full(trainer.blocks, lr=1e-3), 2)
    remembered = []

    class Spy(Phases):
        def before_epoch(self, run, epoch):
            super().before_epoch(run, epoch)
            head = run.model.get_parameter("fc.weight")
            base = with_base(run.optimizer)[-1]
            (group,) = [g for g in base.param_groups if any(p is head for p in g["params"])]
            steps = {**group, **base.state.get(head, {})}.get("step", 0)
            moments = [v for v in base.state.get(head, {}).values() if getattr(v, "ndim", 0)]
            remembered.append((int(steps), any(bool(m.any()) for m in moments)))

    trainer.fit(recipes[0], *split, seed=0, hooks=Spy(recipes, 1))
    assert remembered == [(0, False), (3, True)]  # 40 images in batches of 16


def test_patience_waits_until_all_blocks_train(images, split):
    trainer = make_trainer(images, epochs=12, patience=1)
    result = get_method("unfreeze-last-first").run(trainer, *split, setting={"lr": 1e-12}, seed=0)
    assert len(result.epochs) == len(trainer.blocks)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov"])
@pytest.mark.parametrize("name", ["unfreeze-last-first", "unfreeze-first-last"])
def test_blocks_join_under_every_fused_optimizer(images, split, name, optimizer):
    trainer = make_trainer(images, optimizer=optimizer)
    result = get_method(name).run(trainer, *split, setting={"lr": 1e-3}, seed=0)
    assert len(result.epochs) == 3
    assert not result.diverged


@pytest.mark.parametrize(("epochs", "phase"), [(1, 1), (3, 3), (5, 2), (4, 3), (6, 1)])
def test_everything_trains_in_the_last_epoch_at_the_latest(images, split, epochs, phase):
    trainer = make_trainer(images, epochs=epochs)
    setting = {"lr": 1e-3, "phase": phase}
    result = get_method("unfreeze-last-first").run(trainer, *split, setting=setting, seed=0)
    assert result.trainable_fraction == 1.0


def test_the_best_epoch_comes_back_whatever_was_freed_later(images, split):
    for seed in range(4):
        trainer = make_trainer(images, epochs=4)
        method = get_method("unfreeze-last-first")
        result = method.run(trainer, *split, setting={"lr": 3e-2}, seed=seed, keep_weights=True)
        predicted = trainer.predict(split[1]).argmax(1)
        assert (predicted == result.predictions).all()
