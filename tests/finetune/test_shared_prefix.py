"""Networks that begin alike: what they share runs once, and nothing else changes."""

import numpy as np
import pytest
import timm
import torch

from biotune_optuna.finetune.prefix.shared import SharedPrefix, mean_probabilities
from biotune_optuna.models.blocks import model_blocks
from biotune_optuna.models.states import with_values


def sample(n):
    return torch.randn((n, 3, 48, 48), generator=torch.Generator().manual_seed(n))


def family(name, frozen):
    """Three networks that differ in all blocks but the first few."""
    torch.manual_seed(0)
    options = {"img_size": 48} if "vit" in name else {}
    model = timm.create_model(name, num_classes=5, **options).eval()
    blocks = model_blocks(model)
    tensors = dict(model.named_parameters())
    behind = [n for block in blocks[frozen:] for n in block.parameter_names]
    others = [
        with_values(model, {n: tensors[n] + 0.05 * torch.randn_like(tensors[n]) for n in behind})
        for _ in range(2)
    ]
    return [model, *others], blocks


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit", "test_convnext"])
def test_the_logits_are_those_of_the_networks_apart(name):
    n_blocks = len(family(name, 0)[1])
    for frozen in (0, n_blocks // 2, n_blocks - 1):
        networks, blocks = family(name, frozen)
        shared = SharedPrefix.find(networks, blocks, sample)
        assert shared.blocks == frozen
        images = sample(6)
        with torch.inference_mode():
            found = shared(images)
            apart = torch.stack([network(images) for network in networks], dim=1)
        assert found.shape == (6, 3, 5)
        torch.testing.assert_close(found, apart, rtol=1e-5, atol=1e-6)
        passes = shared.passes(images[:1])
        assert passes == 3 if frozen == 0 else 1 <= passes < 3


def test_members_of_different_recipes_share_the_longest_common_beginning():
    networks, blocks = family("test_efficientnet", 4)
    longer = with_values(networks[0], {n: t * 2 for n, t in head(networks[0]).items()})
    shared = SharedPrefix.find([networks[0], longer, networks[1]], blocks, sample)
    assert shared.blocks == 4
    assert SharedPrefix.find([networks[0], longer], blocks, sample).blocks == len(blocks) - 1


def head(model):
    return dict(model.get_classifier().named_parameters(prefix="classifier"))


def test_without_blocks_the_networks_run_apart():
    networks, _ = family("test_efficientnet", 3)
    shared = SharedPrefix.find(networks, (), sample)
    assert shared.blocks == 0
    with torch.inference_mode():
        assert shared(sample(2)).shape == (2, 3, 5)


def test_a_cut_that_changes_the_logits_is_not_taken(monkeypatch):
    networks, blocks = family("test_efficientnet", 4)
    forward = networks[1].forward
    # what a network does before its first block is no part of any module
    monkeypatch.setattr(networks[1], "forward", lambda images: forward(images * 1.5))
    assert SharedPrefix.find(networks, blocks, sample).blocks == 0


def test_the_mean_is_taken_in_double_precision():
    rows = [np.full((1, 2), value, dtype=np.float32) for value in (1.0, 1e-8, 1e-8)]
    found = mean_probabilities(rows)
    assert found.dtype == np.float32
    assert found[0, 0] == np.float32((1 + 2e-8) / 3)
