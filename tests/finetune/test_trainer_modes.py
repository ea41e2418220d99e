"""Trainer: networks whose modules keep something between evaluations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from biotune_optuna.finetune import loop
from biotune_optuna.recipe import BlockRecipe, Recipe
from tests.kit.networks import Spy, curve, make_images, make_trainer, recipe_for, state_of

KEEPING = {
    "efficientvit_m0": {"img_size": 64, "embed_dim": (16, 16, 16), "num_heads": (1, 1, 1)},
    "levit_128s": {"img_size": 64, "embed_dim": (16, 16, 16), "num_heads": (1, 1, 1)},
    "tiny_vit_5m_224": {"embed_dims": (16, 16, 16, 16), "num_heads": (1, 1, 1, 1)},
}
"""Small networks whose attentions keep their biases in eval mode."""


def keeping_trainer(name, **settings):
    trainer = make_trainer(make_images(n=32, size=64), name, KEEPING[name], **settings)
    with torch.no_grad():  # norms that start at zero would hide the attention
        for path, tensor in trainer.model.named_parameters():
            if path.endswith("bn.weight"):
                tensor.fill_(1.0)
                trainer._pristine[path].fill_(1.0)
    return trainer


TRAIN, VAL = np.arange(16), np.arange(16, 32)


@pytest.mark.parametrize("name", KEEPING)
def test_validation_sees_the_weights_of_its_epoch(name, monkeypatch):
    validated = []

    def watch(*args):
        validated.append(real(*args))
        return validated[-1]

    real = loop.probabilities
    monkeypatch.setattr(loop, "probabilities", watch)
    trainer = keeping_trainer(name, schedule="constant", batch_size=8)
    # at so high a rate the biases of an epoch before give quite other probabilities
    trainer.fit(Recipe.full(trainer.blocks, lr=3e-2), TRAIN, VAL, seed=0)
    np.testing.assert_allclose(validated[-1][0], trainer.predict(VAL), atol=1e-6)


@pytest.mark.parametrize("name", ["efficientvit_m0", "tiny_vit_5m_224"])
def test_a_frozen_prefix_is_cached_from_pristine_weights_whatever_ran_before(name):
    used, fresh = (keeping_trainer(name, batch_size=8) for _ in range(2))
    frozen = recipe_for(used, [0] * (len(used.blocks) - 1))
    first = used.fit(frozen, TRAIN[:8], VAL, seed=0, epochs=1)
    assert first.cache_misses, "else there is no cut that could be used again"
    used.fit(Recipe.full(used.blocks, lr=3e-2), TRAIN, VAL, seed=0)
    again, alone = (t.fit(frozen, TRAIN, VAL, seed=1) for t in (used, fresh))
    assert curve(again) == curve(alone)


def test_what_is_frozen_inside_such_an_attention_stays_in_eval_mode():
    trainer = keeping_trainer("levit_128s", batch_size=8)
    keeping = [
        (path, module)
        for path, module in trainer.model.named_modules()
        if type(module).train is not torch.nn.Module.train
    ]
    held = f"{keeping[0][0]}.qkv."
    parts = {True: ([], []), False: ([], [])}  # frozen or not: names of parameters, of buffers
    for name, _ in trainer.model.named_parameters():
        parts[name.startswith(held)][0].append(name)
    for name, _ in trainer.model.named_buffers():
        parts[name.startswith(held)][1].append(name)
    blocks = tuple(
        BlockRecipe(f"frozen {frozen}", float(not frozen), tuple(parameters), tuple(buffers))
        for frozen, (parameters, buffers) in parts.items()
    )
    spy = Spy(lambda run: [m.training for _, m in keeping] + [keeping[0][1].qkv.bn.training])
    trainer.fit(Recipe(blocks, lr=1e-2), TRAIN, VAL, seed=0, hooks=spy)
    assert spy.seen == [[True] * len(keeping) + [False]] * 3
    now = state_of(trainer)
    assert parts[True][1]
    for name in (*parts[True][0], *parts[True][1]):
        assert torch.equal(now[name], trainer._pristine[name])
