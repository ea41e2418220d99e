from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from biotune_optuna.finetune.prefix.cache import CachedFeatures, PrefixCache
from biotune_optuna.finetune.prefix.cut import find_cut
from biotune_optuna.finetune.trainer import Trainer, TrainSettings
from biotune_optuna.models.blocks import model_blocks
from biotune_optuna.recipe import Recipe
from tests.kit.networks import DEVICE, SETTINGS, make_images, make_model

VIT = {"img_size": 32, "proj_drop_rate": 0.1, "drop_path_rate": 0.1}


def make_trainer(images, name="test_resnet", options=None, cache=None, **settings):
    model, blocks = make_model(name, n_classes=images.n_classes, **(options or {}))
    chosen = {"epochs": 3, "batch_size": 16, "patience": None, **SETTINGS, **settings}
    return Trainer(model, blocks, images, TrainSettings(**chosen), device=DEVICE, cache=cache)


def freezing(trainer, length, lr=1e-3):
    multipliers = [0.0] * length + [1.0] * (len(trainer.blocks) - length)
    return Recipe.from_multipliers(trainer.blocks, multipliers, lr=lr)


def curve(result):
    return [(r.train_loss, r.score) for r in result.epochs]


def tensors(model):
    both = (*model.named_parameters(), *model.named_buffers())
    return {n: t.detach().clone() for n, t in both}


@pytest.mark.parametrize("length", [1, 3, "head"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {"drop_path_rate": 0.2}),
        ("test_efficientnet", {"drop_path_rate": 0.2}),
        ("test_vit", VIT),
        ("test_convnext", {"drop_path_rate": 0.2}),
    ],
)
def test_the_cache_changes_rounding_alone(images, split, name, options, length):
    """Losses, scores, weights and BatchNorm statistics, with dropout and drop-path at work."""
    results, states = [], []
    for megabytes in (0, 64):
        trainer = make_trainer(images, name, options, prefix_cache_mb=megabytes)
        recipe = freezing(trainer, len(trainer.blocks) - 1 if length == "head" else length)
        results.append(trainer.fit(recipe, *split, seed=4))
        states.append(tensors(trainer.model))
    plain, cached = results
    assert (plain.cache_hits, plain.cache_misses) == (0, 0)
    assert (cached.cache_hits, cached.cache_misses) == (3 * 60, 60)
    assert cached.images_forward == plain.images_forward
    np.testing.assert_allclose(np.array(curve(plain)), np.array(curve(cached)), rtol=2e-3)
    for tensor, value in states[0].items():
        difference = (states[1][tensor].float() - value.float()).abs().max()
        # Adam's first steps are as long as the rate whatever the gradient, so rounding of a
        # gradient near zero may turn a step round
        assert difference <= 2e-3 * value.float().abs().max() + 1.5e-3, tensor


def test_gradients_of_the_suffix_are_the_whole_networks(images):
    trainer = make_trainer(images, "test_efficientnet")
    cut = trainer._prefixes._cut(3)
    names = {n for b in trainer.blocks[3:] for n in b.parameter_names}
    batch, labels = images.batch(np.arange(16)), images.labels(np.arange(16))

    def gradients(forward):
        trainer.reset(0)
        freezing(trainer, 3).apply(trainer.model)
        freezing(trainer, 3).train_mode(trainer.model)
        nn.functional.cross_entropy(forward(), labels).backward()
        found = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if n in names}
        trainer.model.zero_grad(set_to_none=True)
        return found, tensors(trainer.model)

    whole, whole_state = gradients(lambda: trainer.model(batch))
    with torch.no_grad():
        trainer.model.eval()
        features = cut.prefix(batch)
    with cut.installed() as suffix:
        found, state = gradients(lambda: suffix(features))
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    for name, value in whole_state.items():  # train-mode BatchNorm
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)


def test_cold_and_warm_caches_give_equal_bits(images, split):
    warm, cold = make_trainer(images), make_trainer(images)
    recipe = freezing(warm, 2)
    warm.fit(freezing(warm, 3), *split, seed=0)
    warm.fit(recipe, split[0], split[1], seed=1)
    warm.fit(freezing(warm, 5, lr=1e6), split[1], split[0], seed=1)
    again, first = (t.fit(recipe, *split, seed=7) for t in (warm, cold))
    assert curve(again) == curve(first)
    assert (again.cache_misses, first.cache_misses) == (0, 60)
    assert again.cache_hits == first.cache_hits
    after = tensors(cold.model)
    assert all(torch.equal(after[n], t) for n, t in tensors(warm.model).items())


def test_eviction_does_not_change_results(images, split):
    roomy = make_trainer(images)
    expected = [curve(roomy.fit(freezing(roomy, n), *split, seed=0)) for n in (1, 2, 1)]
    need = roomy._prefixes._cut(1).bytes_per_image * 60
    tight = make_trainer(images, cache=PrefixCache(need / 2**20))
    results = [tight.fit(freezing(tight, n), *split, seed=0) for n in (1, 2, 1)]
    assert [curve(r) for r in results] == expected
    assert [r.cache_misses for r in results] == [60, 60, 60]
    assert tight._prefixes.cache.nbytes <= need


def test_the_budget_alone_decides_whatever_ran_before(images, split):
    roomy = make_trainer(images)
    per_image = {n: roomy._prefixes._cut(n).bytes_per_image for n in range(1, 6)}
    assert per_image[1] > per_image[3]
    # room for the third cut and not for the first; an explicit cache holds whatever it likes
    megabytes = 60 * per_image[3] / 2**20
    trainer = make_trainer(images, cache=PrefixCache(64), prefix_cache_mb=megabytes)
    hits = [trainer.fit(freezing(trainer, n), *split, seed=0).cache_hits for n in (1, 3, 1, 3)]
    assert hits == [0, 180, 0, 180]


def test_the_deepest_cut_that_fits_is_taken(images, split):
    trainer = make_trainer(images, "test_vit", VIT)
    sizes = {n: trainer._prefixes._cut(n).bytes_per_image for n in range(1, len(trainer.blocks))}
    found = trainer._prefixes.find(freezing(trainer, 3), *split)
    assert found.cut is trainer._prefixes._cut(3)
    trainer._prefixes._cuts[3] = None  # as if it had not agreed
    found = trainer._prefixes.find(freezing(trainer, 3), *split)
    assert found.cut is trainer._prefixes._cut(2)
    assert sizes[2] > 0


def test_a_prefix_sees_each_image_once_over_epochs_seeds_and_recipes(images, split):
    trainer = make_trainer(images)
    trainer.fit(freezing(trainer, 3), *split, seed=0, epochs=1)
    images.served.clear()
    for seed in range(3):
        trainer.fit(freezing(trainer, 3, lr=10.0**-seed), *split, seed=seed)
    assert images.served == []
    # another fold shares the validation images
    result = trainer.fit(freezing(trainer, 3), split[0][:20], split[1], seed=0)
    assert result.cache_misses == 20


def test_trainers_share_a_cache_and_other_weights_do_not_match(images, split):
    cache = PrefixCache(64)
    first, same = (make_trainer(images, cache=cache) for _ in range(2))
    recipe = freezing(first, 2)
    expected = first.fit(recipe, *split, seed=0)
    found = same.fit(recipe, *split, seed=0)
    assert (curve(found), found.cache_misses) == (curve(expected), 0)
    model, blocks = make_model()
    with torch.no_grad():
        model.get_parameter(blocks[0].parameter_names[0]).mul_(1.01)
    settings = first.settings
    other = Trainer(model, blocks, images, settings, device=DEVICE, cache=cache)
    assert other.fit(recipe, *split, seed=0).cache_misses == 60
    pixels = make_images(seed=9)
    foreign = make_trainer(pixels, cache=cache)
    assert foreign.fit(recipe, *split, seed=0).cache_misses == 60


@pytest.mark.parametrize(
    "settings", [{"augment": "flip"}, {"mixup": 0.2}, {"cutmix": 1.0}, {"frozen_norm": "train"}]
)
def test_what_changes_before_the_cut_turns_the_cache_off(images, split, settings):
    trainer = make_trainer(images, **settings)
    assert trainer.fit(freezing(trainer, 3), *split, seed=0).cache_hits == 0


@pytest.mark.parametrize("change", [{"augment": "flip"}, {"mixup": 0.2}, {"prefix_cache_mb": 0}])
def test_other_settings_decide_anew_what_is_cached(images, split, change):
    trainer = make_trainer(images)
    recipe = freezing(trainer, 3)
    expected = trainer.fit(recipe, *split, seed=0)
    assert expected.cache_hits == 180
    other = trainer.with_settings(**change)
    assert other.settings == dataclasses.replace(trainer.settings, **change)
    found = other.fit(recipe, *split, seed=0)
    fresh = make_trainer(images, **change).fit(recipe, *split, seed=0)
    assert (found.cache_hits, curve(found)) == (0, curve(fresh))
    again = trainer.fit(recipe, *split, seed=0)
    assert (again.cache_misses, curve(again)) == (0, curve(expected))


def test_another_precision_has_cuts_and_features_of_its_own(images, split):
    trainer = make_trainer(images)
    recipe = freezing(trainer, 3)
    trainer.fit(recipe, *split, seed=0)
    found = trainer.with_settings(amp="bf16").fit(recipe, *split, seed=0)
    fresh = make_trainer(images, amp="bf16").fit(recipe, *split, seed=0)
    assert (found.cache_misses, curve(found)) == (60, curve(fresh))
    assert trainer.with_settings(epochs=2).fit(recipe, *split, seed=0).cache_misses == 0


def test_settings_cannot_be_replaced_from_outside(images):
    trainer = make_trainer(images)
    with pytest.raises(AttributeError):
        trainer.settings = TrainSettings(augment="flip")


def test_cached_views_take_turns_and_are_the_same_for_every_seed(images, split):
    trainer = make_trainer(images, augment="flip", cached_views=2)
    recipe = freezing(trainer, 3)
    first = trainer.fit(recipe, *split, seed=0)
    assert (first.cache_misses, first.cache_hits) == (2 * 40 + 20, 180)
    assert trainer.fit(recipe, *split, seed=1).cache_misses == 0
    found = trainer._prefixes.find(recipe, *split)
    views = [view(np.sort(split[0])) for view in found.train]
    assert not torch.equal(views[0][0], views[1][0])
    assert curve(
        make_trainer(images, augment="flip", cached_views=2).fit(recipe, *split, seed=0)
    ) == curve(first)


def test_a_recipe_of_other_blocks_uses_the_models_own_cuts(images, split):
    trainer = make_trainer(images)
    coarse = model_blocks(trainer.model, 4)
    assert len(coarse) < len(trainer.blocks)
    recipe = Recipe.from_multipliers(coarse, [0, 0, *[1.0] * (len(coarse) - 2)], lr=1e-3)
    frozen = {n for b in coarse[:2] for n in b.parameter_names}
    length = sum(frozen.issuperset(b.parameter_names) for b in trainer.blocks)
    assert length > 2
    found = trainer._prefixes.find(recipe, *split)
    assert found.cut is trainer._prefixes._cut(length)
    before = tensors(trainer.model)
    assert trainer.fit(recipe, *split, seed=0).cache_hits == 180
    after = tensors(trainer.model)
    moved = {n for n, _ in trainer.model.named_parameters() if not torch.equal(before[n], after[n])}
    assert moved == {n for b in coarse[2:] for n in b.parameter_names}


def test_randomness_before_the_cut_is_found(images, split):
    # timm's resnet drops units of the pooled features, which a linear probe's cut would swallow
    trainer = make_trainer(images, options={"drop_rate": 0.5})
    head = len(trainer.blocks) - 1
    assert trainer._prefixes._cut(head) is None
    assert trainer._prefixes._cut(head - 1) is not None
    # one block earlier, the dropout is behind the cut
    assert trainer.fit(freezing(trainer, head), *split, seed=0).cache_hits == 180


# -- networks that cannot be cut -----------------------------------------------------------------


@dataclasses.dataclass
class Part:
    name: str
    parameter_names: tuple
    buffer_names: tuple = ()


class Plain(nn.Module):
    """stem -> body -> pooled -> head, with hooks for what must not be missed."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Skipping(Plain):
    """Looks back behind the cut."""

    def forward(self, x):
        early = self.stem(x)
        return self.head((self.body(early) + early.relu()).mean((2, 3)))


class Scaled(Plain):
    """Multiplies by a parameter of the body before any of its modules runs."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return self.head(self.body(self.stem(x) * self.scale).mean((2, 3)))


def plain_trainer(images, model):
    torch.manual_seed(0)
    model = model()
    parts = {}
    for name, _ in model.named_parameters():
        parts.setdefault(name.split(".")[0].replace("scale", "body"), []).append(name)
    blocks = [Part(n, tuple(parts[n])) for n in ("stem", "body", "head")]
    return Trainer(model, blocks, images, TrainSettings(epochs=1), device=DEVICE)


@pytest.mark.parametrize(("model", "cached"), [(Plain, True), (Skipping, False), (Scaled, False)])
def test_a_cut_that_loses_something_is_refused(images, split, model, cached):
    trainer = plain_trainer(images, model)
    result = trainer.fit(freezing(trainer, 1), *split, seed=0)
    assert (result.cache_hits > 0) == cached


def test_the_gradient_check_is_what_finds_a_parameter_used_early(images):
    trainer = plain_trainer(images, Scaled)
    suffix = {n for b in trainer.blocks[1:] for n in b.parameter_names}
    cut = find_cut(trainer.model.eval(), suffix, lambda n: images.batch(np.arange(n)))
    batch = images.batch(np.arange(4))
    others = [p for n, p in trainer.model.named_parameters() if n in suffix and n != "scale"]
    assert cut.agrees(batch, others)
    assert not cut.agrees(batch, [*others, trainer.model.scale])


def test_a_model_is_whole_again_after_a_cached_run(images, split):
    trainer = make_trainer(images, "test_efficientnet")
    plain = make_trainer(images, "test_efficientnet", prefix_cache_mb=0)
    for t in (trainer, plain):
        t.fit(freezing(t, 4), *split, seed=0)
    assert not any("forward" in m.__dict__ for m in trainer.model.modules())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in trainer.model.modules())
    np.testing.assert_allclose(
        trainer.predict(split[1]), plain.predict(split[1]), rtol=1e-2, atol=1e-3
    )

    def fail(record):
        raise KeyError

    with pytest.raises(KeyError):
        trainer.fit(freezing(trainer, 4), *split, seed=0, on_epoch=fail)
    assert not any("forward" in m.__dict__ for m in trainer.model.modules())


def test_memory_running_out_while_filling_takes_fewer_images_at_once(images, split):
    trainer = make_trainer(images)
    expected = trainer.fit(freezing(trainer, 3), *split, seed=0)
    served = images.batch

    def batch(idx, **options):
        if len(idx) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return served(idx, **options)

    images.batch = batch
    other = make_trainer(images)
    images.served.clear()
    result = other.fit(freezing(other, 3), *split, seed=0)
    assert {len(b) for b in images.served if len(b) > 4} == {8}
    assert (result.cache_misses, result.cache_hits) == (60, 180)
    np.testing.assert_allclose(np.array(curve(result)), np.array(curve(expected)), rtol=1e-3)


def test_bf16_features_are_stored_as_they_come(images, split):
    trainer = make_trainer(images, amp="bf16")
    whole = make_trainer(images, amp="bf16", prefix_cache_mb=0)
    results = [t.fit(freezing(t, 3), *split, seed=0) for t in (trainer, whole)]
    found = trainer._prefixes.find(freezing(trainer, 3), *split)
    assert found.train[0](split[0])[0].dtype == torch.bfloat16
    np.testing.assert_allclose(*(np.array(curve(r))[:, 0] for r in results), rtol=0.05)


# -- the store itself ----------------------------------------------------------------------------


def test_features_come_back_in_their_memory_format():
    kept = CachedFeatures(np.array([2, 5, 7]), 9)
    values = torch.randn(3, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    tokens = torch.randn(3, 6, 5)
    kept.write(0, (values[:2], tokens[:2]))
    kept.write(2, (values[2:], tokens[2:]))
    found, more = kept(np.array([7, 2, 5]))
    assert torch.equal(found, values[[2, 0, 1]])
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(more, tokens[[2, 0, 1]])
    assert kept.nbytes == 4 * (3 * 16 + 3 * 30)


def test_least_recently_used_goes_first():
    def entry():
        made = CachedFeatures(np.arange(4), 4)
        made.write(0, (torch.zeros(4, 2**16),))  # 1 MiB
        return made

    cache = PrefixCache(2.5)
    seen = [cache.get(key, entry, 2**20)[1] for key in "abacb"]
    assert seen == [False, False, True, False, False]
    assert len(cache) == 2
    assert cache.nbytes == 2 * 2**20
    cache.clear()
    assert cache.nbytes == 0
