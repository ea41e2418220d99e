"""Networks that are built in unusual ways: buffers made on the way, tensors of five dimensions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from biotune_optuna.errors import ModelError
from biotune_optuna.finetune.device import channels_last
from biotune_optuna.methods.registry import get_method
from biotune_optuna.models.blocks import model_blocks
from biotune_optuna.models.states import all_tensors, restore
from biotune_optuna.recipe import Recipe
from tests.kit.networks import make_model, make_trainer, recipe_for

CONVIT = {"img_size": 32, "patch_size": 8, "depth": 3, "local_up_to_layer": 2}
"""timm's ConViT computes the positions of its patches when it first sees an image."""


def test_a_buffer_that_is_made_at_the_first_image_is_the_same_in_every_run(images, split):
    trainer = make_trainer(images, "convit_tiny", CONVIT)
    recipe = recipe_for(trainer, [0.0, 1.0])
    losses = [
        [r.train_loss for r in trainer.fit(recipe, *split, seed=0, keep_weights=True).epochs]
        for _ in range(3)
    ]
    assert losses[0] == losses[1] == losses[2]
    fresh, _ = make_model("convit_tiny", n_classes=images.n_classes, **CONVIT)
    fresh.load_state_dict(trainer.model.state_dict())
    fresh.eval()
    with torch.no_grad():
        expected = fresh(images.batch(split[1])).softmax(1).cpu().numpy()
    np.testing.assert_allclose(trainer.predict(split[1]), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["auto-rgn", "lora"])
def test_other_methods_leave_such_a_buffer_alone(images, split, method):
    if method == "lora":
        pytest.importorskip("peft")
    trainer = make_trainer(images, "convit_tiny", CONVIT)
    before = trainer.model.blocks[0].attn.rel_indices.clone()
    assert before.any()
    get_method(method).run(trainer, *split, setting={"lr": 1e-3}, seed=0)
    assert torch.equal(trainer.model.blocks[0].attn.rel_indices, before)


def test_values_are_not_repeated_along_a_tensor_that_has_grown():
    model = nn.BatchNorm1d(3)
    values = {name: tensor.clone() for name, tensor in all_tensors(model).items()}
    restore(model, values)
    model.running_mean = torch.zeros(2, 3)
    with pytest.raises(ModelError, match=r"running_mean of BatchNorm1d has changed .* from \(3,\)"):
        restore(model, values)


def test_only_tensors_of_four_dimensions_have_channels():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(1, 2, (1, 3, 3)), nn.Linear(4, 2))
    expected = [p.detach().clone() for p in model.parameters()]
    assert channels_last(model) is model
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[1].weight.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected, strict=True))


def test_lora_leaves_dilated_convolutions_frozen(images, split):
    lora = pytest.importorskip("biotune_optuna.methods.lora")
    pytest.importorskip("peft")
    trainer = make_trainer(images, "test_resnet", {"output_stride": 8})
    modules = dict(trainer.model.named_modules())
    dilated = {n for n, m in modules.items() if getattr(m, "dilation", 1) not in (1, (1, 1))}
    assert dilated
    assert not dilated & set(lora.adaptable_layers(trainer))
    result = get_method("lora").run(trainer, *split, setting={"lr": 1e-3}, seed=0)
    assert np.isfinite(result.score)


def test_unfreezing_a_network_of_one_block_trains_it():
    model = nn.Linear(3, 2)
    (block,) = model_blocks(model, patterns={"head": ".*"})
    full = Recipe.full([block], lr=1e-3)
    for name in ("unfreeze-last-first", "unfreeze-first-last"):
        assert [r.multipliers for r in get_method(name).recipes(full, 4)] == [{"head": 1.0}]
