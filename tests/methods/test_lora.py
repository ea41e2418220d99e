"""Low-rank adapters: what they adapt, and that merging changes nothing."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from biotune_optuna.errors import ModelError
from biotune_optuna.finetune.trainer import Trainer, TrainSettings
from biotune_optuna.methods.registry import get_method
from biotune_optuna.models.blocks import model_blocks
from tests.kit.networks import DEVICE, SETTINGS, make_trainer, state_of


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_nfnet"])
def test_lora_merged_equals_unmerged(images, split, name, monkeypatch):
    lora = pytest.importorskip("biotune_optuna.methods.lora")
    pytest.importorskip("peft")
    trainer = make_trainer(images, name, {"img_size": 32} if name == "test_vit" else None)
    unmerged = []
    merge_into = lora.merge_into

    def watch(model, adapted):
        adapted.eval()
        with torch.no_grad():
            unmerged.append(adapted(images.batch(split[1])).softmax(1).cpu().numpy())
        merge_into(model, adapted)

    monkeypatch.setattr(lora, "merge_into", watch)
    before = state_of(trainer)
    result = get_method("lora").run(trainer, *split, setting={"lr": 1e-2}, seed=0)
    np.testing.assert_allclose(trainer.predict(split[1]), unmerged[0], rtol=1e-3, atol=1e-5)
    after = state_of(trainer)
    head = trainer.blocks[-1].parameter_names
    adapted = {f"{path}.weight" for path in lora.adaptable_layers(trainer)}
    moved = {n for n in after if not torch.equal(before[n], after[n])}
    assert moved == adapted | set(head)
    # rank 8 at most: no more than eight singular values of any update differ from zero
    widest = max(adapted, key=lambda n: min(after[n].flatten(1).shape))
    update = (after[widest] - before[widest]).flatten(1)
    singular = torch.linalg.svdvals(update.double())
    assert min(update.shape) > 8
    assert (singular[8:] < 1e-3 * singular[0]).all()
    assert 0 < result.trainable_fraction < 1
    assert not any("lora" in n for n, _ in trainer.model.named_modules())


def test_lora_leaves_grouped_convolutions_frozen(images):
    lora = pytest.importorskip("biotune_optuna.methods.lora")
    trainer = make_trainer(images, "test_efficientnet")
    modules = dict(trainer.model.named_modules())
    grouped = {n for n, m in modules.items() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert grouped
    assert not grouped & set(lora.adaptable_layers(trainer))


def test_lora_does_not_count_adapters_that_the_network_passes_by(images, split, caplog):
    pytest.importorskip("peft")

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3 * 32 * 32, 8)
            self.second = nn.Linear(8, 8)
            self.head = nn.Linear(8, images.n_classes)

        def forward(self, x):
            x = self.first(x.flatten(1))
            return self.head(nn.functional.linear(x, self.second.weight))

    blocks = model_blocks(Mixed(), patterns={n: n for n in ("first", "second", "head")})
    trainer = Trainer(Mixed(), blocks, images, TrainSettings(epochs=1, **SETTINGS), device=DEVICE)
    with caplog.at_level("INFO", "biotune_optuna.finetune"):
        result = get_method("lora").run(trainer, *split, setting={"lr": 1e-3}, seed=0)
    assert result.trainable_parameters == 8 * (3 * 32 * 32 + 8) + 9 * images.n_classes
    assert "never acted: second" in caplog.text


def test_lora_refuses_a_network_that_its_merged_adapters_change(images, split):
    lora = pytest.importorskip("biotune_optuna.methods.lora")
    pytest.importorskip("peft")

    class Tripled(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, 3 * self.weight, self.bias)

    model = nn.Sequential(nn.Flatten(), Tripled(3 * 32 * 32, 8), nn.Linear(8, images.n_classes))
    blocks = model_blocks(model, patterns={"first": r"1\.", "head": r"2\."})
    trainer = Trainer(model, blocks, images, TrainSettings(epochs=2, **SETTINGS), device=DEVICE)
    assert lora.adaptable_layers(trainer) == ["1"]
    with pytest.raises(ModelError, match="lora cannot train Sequential"):
        get_method("lora").run(trainer, *split, setting={"lr": 1e-1}, seed=0)


def test_lora_adapts_layers_by_their_whole_names(images):
    lora = pytest.importorskip("biotune_optuna.methods.lora")
    pytest.importorskip("peft")

    class Deep(nn.Module):
        """Its inner "conv" ends like the outer one, and must not be adapted with it."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.inner = nn.Module()
            self.inner.conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.fc = nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(self.inner.conv(self.conv(x)).mean((2, 3)))

    model = Deep()
    patterns = {"conv": "conv", "inner": "inner", "head": "fc"}
    blocks = model_blocks(model, patterns=patterns)
    trainer = Trainer(model, blocks, images, TrainSettings(**SETTINGS), device=DEVICE)
    adapted = lora.with_adapters(trainer, rank=2, alpha=2, seed=0)
    found = {n.partition(".lora_")[0] for n, _ in adapted.named_parameters() if ".lora_" in n}
    assert found == set(lora.adaptable_layers(trainer)) == {"conv"}


def test_adapters_are_merged_in_float32_and_cast_once(images, monkeypatch):
    """TF32 would round what is added to the weights; autocast casts for each adapter anyway."""
    pytest.importorskip("peft")
    from peft.tuners.lora import LoraLayer

    from biotune_optuna.finetune import device
    from biotune_optuna.methods.lora import merge_into, with_adapters

    trainer = make_trainer(images)
    adapted = with_adapters(trainer, rank=2, alpha=2, seed=0)
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    assert layers
    assert not any(layer.cast_input_dtype_enabled for layer in layers)
    exact = []

    @contextlib.contextmanager
    def full_precision(_device):
        exact.append([layer.merged for layer in layers])
        yield
        exact.append([layer.merged for layer in layers])

    monkeypatch.setattr(device, "full_precision", full_precision)
    merge_into(trainer.model, adapted)
    assert exact == [[False] * len(layers), [True] * len(layers)]
