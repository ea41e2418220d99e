"""Every method alone: what its definition says, in numbers."""

from __future__ import annotations

import copy
import importlib.util
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from biotune_optuna.errors import BioTuneError
from biotune_optuna.finetune.hooks import Hooks
from biotune_optuna.finetune.optim import build_optimizer
from biotune_optuna.finetune.results import StopTraining
from biotune_optuna.methods.lp_ft import PROBE_RATE
from biotune_optuna.methods.registry import get_method, methods
from biotune_optuna.methods.rgn import RGNRates
from biotune_optuna.methods.starting_point import Pull, StartingPoint
from biotune_optuna.recipe import BlockRecipe, Recipe
from tests.kit.networks import make_trainer, state_of

STEPWISE = [name for name in methods() if name != "linear-probe"]  # which takes no steps


@pytest.mark.parametrize("name", STEPWISE)
def test_each_method_trains_offers_five_settings_and_repeats_itself(images, split, name):
    method = get_method(name)
    settings = method.settings()
    assert len(settings) == len({json.dumps(s) for s in settings}) == 5
    trainer = make_trainer(images, epochs=2)
    setting = settings[2]
    first = method.run(trainer, *split, setting=setting, seed=3, keep_weights=True)
    after = state_of(trainer)
    probs = trainer.predict(split[1])
    get_method("full").run(trainer, *split, setting={"lr": 1e-2}, seed=9)
    again = method.run(trainer, *split, setting=setting, seed=3, keep_weights=True)
    assert [r.score for r in first.epochs] == [r.score for r in again.epochs]
    assert all(torch.equal(after[n], t) for n, t in state_of(trainer).items())
    assert not first.diverged
    assert len(first.epochs) == 2
    assert first.images_backward >= 2 * 40
    score = trainer.predict(split[1])
    np.testing.assert_array_equal(score, probs)


@pytest.mark.parametrize("name", STEPWISE)
def test_the_weight_decay_of_a_setting_reaches_every_step(images, split, name):
    decays = []

    def look(optimizer, *_):
        decays.append({group["weight_decay"] for group in optimizer.param_groups})

    trainer = make_trainer(images, epochs=2)
    setting = {**get_method(name).settings()[0], "weight_decay": 0.05}
    hook = register_optimizer_step_pre_hook(look)
    try:
        get_method(name).run(trainer, *split, setting=setting, seed=0)
    finally:
        hook.remove()
    assert len(decays) >= 2 * 3  # epochs of three batches
    for found in decays:
        assert 0.05 in found
        assert found <= {0.0, 0.05}, "norms and biases get none"


def test_every_method_starts_from_the_same_head_and_trunk(images, split):
    heads = []

    def look(self, run, epoch):
        if epoch == 0:
            heads.append(run.model.get_parameter("fc.weight").detach().clone())

    trainer = make_trainer(images, epochs=1)
    trainer.reset(5)
    expected = trainer.model.get_parameter("fc.weight").detach().clone()
    original = Hooks.before_epoch
    Hooks.before_epoch = look
    try:
        for name in ("full", "linear-probe-sgd", "layer-decay", "l2-sp", "lora"):
            get_method(name).run(trainer, *split, setting=get_method(name).settings()[0], seed=5)
    finally:
        Hooks.before_epoch = original
    assert len(heads) == 5
    assert all(torch.equal(h, expected) for h in heads)


def test_layer_decay_gives_each_block_a_power_of_the_decay(images, split, rates):
    trainer = make_trainer(images, epochs=1, schedule="constant")
    seen = rates(trainer)
    get_method("layer-decay").run(trainer, *split, setting={"lr": 1e-3, "decay": 0.5}, seed=0)
    last = len(trainer.blocks) - 1
    for position, block in enumerate(trainer.blocks):
        for name in block.parameter_names:
            assert seen[0][name] == pytest.approx(1e-3 * 0.5 ** (last - position), rel=1e-12)


@pytest.mark.parametrize(("depth", "position"), [(0.0, 0), (0.3, 1), (0.5, 2), (0.9, 4), (1.0, 4)])
def test_a_single_block_trains_with_the_head(depth, position):
    blocks = [BlockRecipe(name=str(b), multiplier=1.0) for b in range(6)]
    recipe = get_method("single-block").recipe(blocks, {"lr": 1e-2, "depth": depth})
    assert recipe.trainable == (str(position), "5")
    assert set(recipe.multipliers.values()) == {0.0, 1.0}


def test_the_settings_of_a_single_block_are_spread_over_the_network():
    blocks = [BlockRecipe(name=str(b), multiplier=1.0) for b in range(9)]
    method = get_method("single-block")
    tried = [method.recipe(blocks, setting).trainable[0] for setting in method.settings()]
    assert tried == ["0", "2", "4", "5", "7"]


def test_an_optimiser_that_needs_another_package_is_named():
    if importlib.util.find_spec("apex"):
        pytest.skip("the package is here")
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1e-3, "weight_decay": 0.0}]
    with pytest.raises(BioTuneError, match="optimizer 'fusedadam' cannot be used here: "):
        build_optimizer(groups, "fusedadam", torch.device("cpu"))


def test_patience_counts_from_the_epoch_that_a_method_names(images, split):
    class Late(Hooks):
        patient_until = 4

    trainer = make_trainer(images, epochs=12, patience=3)
    nothing_moves = Recipe.linear_probe(trainer.blocks, lr=1e-12)
    result = trainer.fit(nothing_moves, *split, seed=0, hooks=Late())
    assert (result.best_epoch, len(result.epochs)) == (1, 4 + 3)


def test_the_probe_of_lp_ft_may_be_stopped(images, split):
    told = []

    def on_epoch(record):
        told.append(record.epoch)
        if len(told) == 2:
            raise StopTraining

    trainer = make_trainer(images, epochs=4)
    result = get_method("lp-ft").run(
        trainer, *split, setting={"lr": 1e-3}, seed=0, on_epoch=on_epoch
    )
    assert (told, result.stopped) == ([1, 2], "callback")


def test_lp_ft_starts_full_training_from_the_probes_head(images, split):
    trainer = make_trainer(images, epochs=4)
    probe = Recipe.linear_probe(trainer.blocks, lr=PROBE_RATE)
    first = trainer.fit(probe, *split, seed=2, keep_weights=True)
    head = trainer.model.get_parameter("fc.weight").detach().clone()
    trunk = state_of(trainer)
    # at a rate near zero the second phase shows what it started from
    result = get_method("lp-ft").run(trainer, *split, setting={"lr": 1e-12}, seed=2)
    now = state_of(trainer)
    torch.testing.assert_close(now["fc.weight"], head, rtol=0, atol=1e-7)
    for block in trainer.blocks[:-1]:
        for name in block.parameter_names:
            torch.testing.assert_close(now[name], trunk[name], rtol=0, atol=1e-7)
    alone = trainer.fit(Recipe.full(trainer.blocks, lr=1e-12), *split, seed=2)
    assert result.images_backward == first.images_backward + alone.images_backward
    assert result.images_forward == first.images_forward + alone.images_forward
    assert result.trainable_fraction == 1.0


@pytest.mark.parametrize(("name", "alpha"), [("l2-sp", 0.1), ("l1-sp", 1e-3)])
def test_the_starting_point_pulls_with_the_strength_given(images, split, name, alpha):
    """The penalty and its gradient, against the formula on the model itself."""
    method = get_method(name)
    assert (method.alpha, method.beta) == (alpha, 0.01)
    trainer = make_trainer(images, epochs=1)
    checked = []

    class Spy(Pull):
        def before_epoch(self, run, epoch):
            start = dict(trainer._pristine)
            with torch.no_grad():
                for p in run.model.parameters():
                    p.add_(0.01 * torch.randn_like(p))
            named = dict(run.model.named_parameters())
            penalty = self.penalty(run)
            expected, gradients = 0.0, {}
            for n, p in named.items():
                if n.startswith("fc."):
                    if n == "fc.weight":
                        expected += 0.005 * p.detach().square().sum()
                        gradients[n] = 0.01 * p.detach()
                    continue
                moved = p.detach() - start[n]
                if p.ndim < 2:
                    gradients[n] = torch.zeros_like(p)  # norms are free
                elif name == "l2-sp":
                    expected += 0.05 * moved.square().sum()
                    gradients[n] = 0.1 * moved
                else:
                    expected += 1e-3 * moved.abs().sum()
                    gradients[n] = 1e-3 * moved.sign()
            torch.testing.assert_close(
                penalty.detach(), torch.as_tensor(expected), rtol=1e-5, atol=1e-6
            )
            found = torch.autograd.grad(penalty, [named[n] for n in gradients], allow_unused=True)
            for (n, wanted), g in zip(gradients.items(), found, strict=True):
                torch.testing.assert_close(
                    torch.zeros_like(wanted) if g is None else g, wanted, rtol=1e-4, atol=1e-6
                )
                checked.append(n)

    full = Recipe.full(trainer.blocks, lr=1e-3)
    trainer.fit(full, *split, seed=0, hooks=Spy(method.norm, method.alpha, method.beta))
    assert "fc.weight" in checked
    assert any(n.startswith("layer") for n in checked)


def distance(trainer):
    kernels = [n for n, p in trainer.model.named_parameters() if p.ndim > 1 and "fc" not in n]
    now = state_of(trainer)
    return sum(float((now[n] - trainer._pristine[n]).square().sum()) for n in kernels)


def test_l2_sp_keeps_weights_nearer_to_where_they_started(images, split):
    trainer = make_trainer(images, optimizer="sgd")
    get_method("full").run(trainer, *split, setting={"lr": 3e-2}, seed=0)
    free = distance(trainer)
    strong = StartingPoint(name="strong", words="", norm=2, alpha=10.0)
    strong.run(trainer, *split, setting={"lr": 3e-2}, seed=0)
    assert distance(trainer) < 0.5 * free


def test_auto_rgn_rates_are_the_relative_gradient_norms(images, split):
    trainer = make_trainer(images, epochs=2, schedule="constant")
    records = []

    class Spy(RGNRates):
        def before_epoch(self, run, epoch):
            held = run.optimizer
            before = {n: b.clone() for n, b in run.model.named_buffers()}
            drawn = copy.deepcopy(run.sampler._generator.get_state())
            super().before_epoch(run, epoch)
            rates = {p: g["lr"] for g in run.optimizer.param_groups for p in g["params"]}
            # the same five batches, gone through by hand
            run.sampler._generator.set_state(drawn)
            sums = dict.fromkeys(rates, 0.0)
            batches = run.sampler.epoch(16)[:5]
            for idx in batches:
                loss = nn.functional.cross_entropy(run.model(images.batch(idx)), images.labels(idx))
                for p, g in zip(rates, torch.autograd.grad(loss, list(rates)), strict=True):
                    sums[p] += float(g.norm() / p.detach().norm())
            with torch.no_grad():
                for n, b in run.model.named_buffers():
                    assert n.endswith("num_batches_tracked") or not torch.equal(b, before[n])
                    b.copy_(before[n])
            largest = max(sums.values())
            for p, rate in rates.items():
                assert rate == pytest.approx(1e-3 * sums[p] / largest, rel=1e-3)
            assert run.optimizer is not held
            assert not run.optimizer.state
            names = {p: n for n, p in run.model.named_parameters()}
            records.append({names[p] for p in rates})

    full = Recipe.full(trainer.blocks, lr=1e-3)
    result = trainer.fit(full, *split, seed=0, hooks=Spy())
    norms = {
        f"{path}.{name}"
        for path, module in trainer.model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for name in ("weight", "bias")
    }
    assert norms
    everything = {n for n, _ in trainer.model.named_parameters()}
    assert records == [everything - norms] * 2
    # 40 images are three batches of the five asked for, twice
    assert result.images_backward == 2 * (40 + 40)
    assert all(torch.equal(trainer._pristine[n], state_of(trainer)[n]) for n in norms)


def test_float16_looks_at_scaled_gradients_and_returns_them_unscaled(images, split, monkeypatch):
    trainer, heads, look = make_trainer(images), [], []
    weight = dict(trainer.model.named_parameters())[trainer.blocks[-1].parameter_names[0]]
    weight.register_hook(lambda gradient: heads.append(float(gradient.norm())))

    class Look(Hooks):
        def before_epoch(self, run, epoch):
            idx = run.sampler.epoch(16)[0]
            for scaled in (False, True):
                with monkeypatch.context() as patch:
                    patch.setattr(type(run._scaler), "is_enabled", lambda _, answer=scaled: answer)
                    run.gradients(idx)
                look.append({n: p.grad.clone() for n, p in run.model.named_parameters()})

    trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0, hooks=Look(), epochs=1)
    assert heads[1] == pytest.approx(1024 * heads[0])
    for name, gradient in look[0].items():
        torch.testing.assert_close(look[1][name], gradient, msg=name)


def test_an_unknown_method_is_named():
    with pytest.raises(BioTuneError, match="method 'sgd' is not one of full, linear-probe"):
        get_method("sgd")


@pytest.mark.parametrize("name", ["full", "auto-rgn"])
def test_memory_running_out_anywhere_halves_what_is_held(images, split, name):
    trainer = make_trainer(images, epochs=1)
    trainer.model.register_forward_pre_hook(refuse_more_than(8))
    setting = {"lr": 1e-3}
    result = get_method(name).run(trainer, *split, setting=setting, seed=0)
    assert not result.diverged
    assert trainer.predict(split[1]).shape == (len(split[1]), 3)


def test_the_optimizers_memory_running_out_is_one_clear_line(images, split, monkeypatch):
    def out(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", out)
    with pytest.raises(BioTuneError, match="optimizer's state"):
        get_method("full").run(make_trainer(images), *split, setting={"lr": 1e-3}, seed=0)


def refuse_more_than(most):
    def hook(_module, args):
        if len(args[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return hook
