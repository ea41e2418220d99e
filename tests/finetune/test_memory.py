"""Memory that runs out: what is remembered of it, and what trains on all the same."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from biotune_optuna.finetune.prefix import cache, plan
from biotune_optuna.finetune.prefix.cache import PrefixCache, budget_mb
from biotune_optuna.finetune.prefix.cut import close
from biotune_optuna.finetune.sharing import SHARING
from biotune_optuna.recipe import Recipe
from tests.kit.networks import curve, make_trainer, recipe_for, state_of

FULL = torch.OutOfMemoryError("CUDA out of memory")


def exhaust(trainer, most):
    """Makes training passes over more than so many images run out of memory, as their last act."""

    def look(module, _args, logits):
        if module.training and len(logits) > most:
            raise FULL

    trainer.model.register_forward_hook(look)


@pytest.mark.parametrize(
    ("name", "options"),
    [("test_resnet", {"drop_path_rate": 0.3}), ("test_vit", {"img_size": 32, "drop_rate": 0.2})],
)
def test_runs_begin_with_what_fitted_and_are_the_same(images, split, caplog, name, options):
    """BatchNorm, dropout and augmentation go as if the pass that failed had never been."""
    trainer = make_trainer(images, name, options, augment="flip")
    exhaust(trainer, 9)
    recipe = Recipe.full(trainer.blocks, lr=1e-3)
    found, states = [], []
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            found.append(trainer.fit(recipe, *split, seed=0))
        states.append(state_of(trainer))
    assert caplog.text.count("memory ran out") == 1
    assert [result.batch_size for result in found] == [8, 8]
    assert curve(found[0]) == curve(found[1])
    assert all(torch.equal(states[1][n], value) for n, value in states[0].items())


def test_what_fitted_is_known_of_its_own_kind_of_run_alone(images, split):
    trainer = make_trainer(images, epochs=1, prefix_cache_mb=0)
    exhaust(trainer, 9)
    trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0)
    trainer.model._forward_hooks.clear()
    part = recipe_for(trainer, [0.0] * (len(trainer.blocks) - 1))
    assert trainer.fit(part, *split, seed=0).batch_size == 16
    smaller = trainer.with_settings(batch_size=12)
    again = smaller.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0)
    assert again.batch_size == 12


@pytest.fixture
def full(monkeypatch):
    """No memory for the outputs of so many images or more."""

    def refuse(most):
        def empty(shape, *args, **options):
            if isinstance(shape, tuple) and len(shape) > 1 and shape[0] >= most:
                raise FULL
            return made(shape, *args, **options)

        monkeypatch.setattr(cache.torch, "empty", empty)

    made = torch.empty
    return refuse


def test_a_prefix_cache_that_does_not_fit_trains_without(images, split, full, caplog):
    plain = make_trainer(images, prefix_cache_mb=0)
    recipe = recipe_for(plain, [0.0] * 3)
    expected = plain.fit(recipe, *split, seed=0)
    trainer = make_trainer(images)
    full(40)
    computed = []
    run = plan.compute_features

    def count(*args, **options):
        computed.append(options["chunk"])
        return run(*args, **options)

    trainer._prefixes._cut(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "compute_features", count)
        result = trainer.fit(recipe, *split, seed=0)
    assert computed == [cache.CHUNK], "smaller passes would not make room"
    assert caplog.text.count("training without the prefix cache") == 1
    assert curve(result) == curve(expected)
    assert result.cache_hits == 0


def test_older_features_make_room_before_the_cache_is_given_up(images, split, full, monkeypatch):
    trainer = make_trainer(images)
    trainer.fit(recipe_for(trainer, [0.0] * 4), *split, seed=0)
    assert len(trainer._prefixes.cache) == 2
    kept = PrefixCache.clear

    def clear(self):
        kept(self)
        full(10**6)

    monkeypatch.setattr(PrefixCache, "clear", clear)
    full(40)
    result = trainer.fit(recipe_for(trainer, [0.0] * 3), *split, seed=0)
    assert result.cache_hits


@pytest.mark.parametrize(
    "error", [FULL, RuntimeError("CUDA error: device-side assert triggered")], ids=str
)
def test_a_check_that_failed_for_want_of_a_gpu_says_nothing_of_the_network(images, error):
    trainer = make_trainer(images)
    cut = trainer._prefixes._cut(3)
    suffix = [
        p
        for b in trainer.blocks[3:]
        for n, p in trainer.model.named_parameters()
        if n in b.parameter_names
    ]

    def fail(*_args):
        raise error

    handle = cut.module.register_forward_hook(fail)
    batch = images.batch(np.arange(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("biotune_optuna.finetune.prefix.cut._probe", _probe_once())
        with pytest.raises(RuntimeError, match=str(error)):
            cut.agrees(batch, suffix)
    handle.remove()
    assert cut.agrees(batch, suffix)


def _probe_once():
    """The comparison's first pass, through the whole network, works; the second as it is."""
    from biotune_optuna.finetune.prefix import cut as module

    real, calls = module._probe, []

    def probe(forward, parameters):
        calls.append(1)
        return [torch.zeros(1)] if len(calls) == 1 else real(forward, parameters)

    return probe


def test_a_check_without_memory_is_made_again(images, split, monkeypatch):
    trainer = make_trainer(images)
    checked = trainer._prefixes._checked_cut

    def fail(_length):
        raise FULL

    monkeypatch.setattr(trainer._prefixes, "_checked_cut", fail)
    assert trainer._prefixes._cut(3) is None
    monkeypatch.setattr(trainer._prefixes, "_checked_cut", checked)
    assert trainer._prefixes._cut(3) is not None


def test_gradients_of_rounding_alone_are_not_compared_with_each_other():
    """A key's bias has a gradient of nothing but rounding, which differs from device to device."""
    ours, theirs = torch.tensor([1e-8, -2e-8]), torch.tensor([3e-8, 1e-8])
    assert not close(1e3 * ours, 1e3 * theirs)
    assert close(1e3 * ours, 1e3 * theirs, least=1e3)
    assert not close(torch.ones(2), torch.tensor([1.0, 1.01]), least=1e-3)


def test_the_automatic_budget_is_shared(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)

    class Card:
        total_memory = 100 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: Card)
    monkeypatch.delenv(SHARING, raising=False)
    assert budget_mb("auto", cpu) == 512
    assert budget_mb(7, cuda) == budget_mb(7, cpu) == 7
    assert budget_mb("auto", cuda) == 20 * 1024
    monkeypatch.setenv(SHARING, "4")
    assert budget_mb("auto", cuda) == 5 * 1024
