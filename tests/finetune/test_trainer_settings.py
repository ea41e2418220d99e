"""Trainer: settings and devices."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from biotune_optuna.errors import BioTuneError, DataError
from biotune_optuna.finetune.device import (
    PeakMemory,
    amp_dtype,
    isolated_randomness,
    kernels,
    out_of_memory,
    resolve_device,
)
from biotune_optuna.finetune.hooks import Hooks
from biotune_optuna.finetune.trainer import Trainer, TrainSettings
from biotune_optuna.models.blocks import model_blocks
from biotune_optuna.recipe import Recipe
from tests.kit.networks import DEVICE, make_model, make_trainer


def test_settings_go_through_json_and_name_what_is_wrong():
    settings = TrainSettings.paper(epochs=5)
    assert TrainSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert (settings.optimizer, settings.schedule_epochs, settings.batch_size) == ("adam", 100, 96)
    with pytest.raises(BioTuneError, match="'epoch' is not one of epochs"):
        TrainSettings.from_dict({"epoch": 3})


def test_a_trainer_of_other_epochs_keeps_the_schedule_where_it_fits(images):
    trainer = make_trainer(images, epochs=10, schedule_epochs=12, warmup_epochs=4)
    found = {}
    for epochs in (1, 4, 5, 12, 20):
        other = trainer.with_settings(epochs=epochs).settings
        found[epochs] = (other.schedule_epochs, other.warmup_epochs)
    assert found == {1: (12, 0), 4: (12, 3), 5: (12, 4), 12: (12, 4), 20: (20, 4)}
    assert make_trainer(images).with_settings(epochs=20).settings.schedule_epochs is None


def test_numbers_of_numpy_become_pythons():
    settings = TrainSettings(epochs=np.int64(5), batch_size=np.int32(8), mixup=np.float32(0.5))
    assert settings == TrainSettings(epochs=5, batch_size=8, mixup=0.5)
    assert json.dumps(settings.to_dict())
    with pytest.raises(BioTuneError, match=r"epochs 2\.5 is not a whole number"):
        TrainSettings(epochs=np.float64(2.5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs 0 is not a whole number of at least 1"),
        ({"patience": 0}, "at least 1 or None"),
        ({"batch_size": 1}, "batch_size 1 is not a whole number of at least 2"),
        ({"batch_size": 32.0}, "batch_size 32.0 is not a whole number"),
        ({"mixup": -0.1}, "mixup -0.1 is not a number of at least 0"),
        ({"label_smoothing": 1.0}, "not in"),
        ({"metric": "auc"}, "metric 'auc' is not one of macro_accuracy"),
        ({"schedule": "plateau"}, "schedule 'plateau' is not one of constant"),
        ({"augment": "crop_flip"}, "augment 'crop_flip' is not one of none, flip, crop"),
        ({"augment": None}, "augment None is not one of none"),
        ({"epochs": 9, "schedule_epochs": 8}, "schedule_epochs 8 is below epochs 9"),
        ({"epochs": 3, "warmup_epochs": 3}, "warmup_epochs 3 is not below epochs 3"),
        ({"grad_clip": 0.0}, "grad_clip 0.0 is not a number above 0 or None"),
        ({"grad_clip": math.nan}, "grad_clip nan"),
        ({"epochs": True}, "epochs True"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(BioTuneError, match=words):
        TrainSettings(**change)


@pytest.mark.parametrize(
    ("device", "words"),
    [("gpu", "'gpu' is not one of auto"), ("cuda:99", "'cuda:99' is not here")],
)
def test_absent_devices_are_named(images, device, words):
    model, blocks = make_model()
    with pytest.raises(BioTuneError, match=words):
        Trainer(model, blocks, images, TrainSettings(), device=device)


def test_devices_by_name():
    assert resolve_device("cpu") == torch.device("cpu")
    auto = resolve_device("auto")
    assert auto.type == "cuda" if torch.cuda.is_available() else auto.type in ("cpu", "mps")
    assert amp_dtype("auto", torch.device("cpu")) is None
    assert amp_dtype("bf16", torch.device("cpu")) is torch.bfloat16


def test_metal_is_compared_by_its_index(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # tensors on it say "mps:0", which is not equal to "mps"
    assert resolve_device("mps") == resolve_device("auto") == torch.device("mps:0")


@pytest.mark.parametrize(("real", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_takes_bf16_only_where_it_is_not_emulated(monkeypatch, real, dtype):
    def supported(including_emulation: bool = True) -> bool:
        return real or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    assert amp_dtype("auto", torch.device("cuda", 0)) is dtype


def test_images_elsewhere_than_the_training_are_refused(images):
    model, blocks = make_model()
    served = images.batch
    images.batch = lambda *a, **k: served(*a, **k).to("meta")
    with pytest.raises(DataError, match="images are on meta and training is on"):
        Trainer(model, blocks, images, TrainSettings(), device=DEVICE)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_memory_running_out(error, is_memory):
    assert out_of_memory(error) == is_memory


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_peak_memory_is_told_in_mib_where_there_is_no_proc(monkeypatch, platform, unit):
    def absent(*_args, **_options):
        raise FileNotFoundError

    usage = types.SimpleNamespace(ru_maxrss=300 * 2**20 // unit)
    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    memory = PeakMemory(torch.device("cpu"))
    memory.sample()
    assert memory.megabytes == 300


def test_only_the_generators_that_are_restored_are_seeded(monkeypatch):
    seeded = []
    for module in (torch.cuda, torch.mps):
        for name in ("manual_seed", "manual_seed_all"):
            monkeypatch.setattr(module, name, seeded.append, raising=False)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(7))
    before = torch.random.get_rng_state()
    with isolated_randomness(7, torch.device("cpu")):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not seeded


def test_the_cuda_device_of_a_run_is_seeded_and_restored(monkeypatch):
    # torch's own generators of the CPU stand in for those of three CUDA devices
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda i: generators[i].get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, i: generators[i].set_state(s))
    with isolated_randomness(7, torch.device("cuda", 1)):
        assert [g.initial_seed() for g in generators] == [0, 7, 2]
    assert [g.initial_seed() for g in generators] == [0, 1, 2]


def test_an_operation_without_deterministic_kernel_is_named_in_one_line(images, split):
    class Unpooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, images.n_classes)

        def forward(self, x):
            x, where = nn.functional.max_pool2d(self.first(x), 2, return_indices=True)
            return self.head(nn.functional.max_unpool2d(x, where, 2).mean((2, 3)))

    blocks = model_blocks(Unpooled(), patterns={"first": r"first\.", "head": r"head\."})
    recipe = Recipe.full(blocks, lr=1e-3)
    for deterministic in (True, False):
        settings = TrainSettings(epochs=1, deterministic=deterministic)
        trainer = Trainer(Unpooled(), blocks, images, settings, device=DEVICE)
        if deterministic:
            with pytest.raises(BioTuneError, match="kernel for max_unpool") as caught:
                trainer.fit(recipe, *split, seed=0)
            assert "deterministic=False" in str(caught.value)
            assert "\n" not in str(caught.value)
            assert not torch.are_deterministic_algorithms_enabled()
        else:
            assert trainer.fit(recipe, *split, seed=0).stopped == "finished"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "kthvalue CUDA does not have a deterministic implementation, but you set it.\nYou can",
            "for kthvalue CUDA; set",
        ),
        (
            "Deterministic behavior was enabled, but this operation uses CuBLAS.\nTo enable, set "
            "CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8",
            "for cuBLAS without CUBLAS_WORKSPACE_CONFIG=:4096:8; set that variable",
        ),
    ],
)
def test_torchs_words_on_determinism_become_one_line(message, words):
    with (
        pytest.raises(BioTuneError, match=words) as caught,
        kernels(torch.device("cpu"), deterministic=True),
    ):
        raise RuntimeError(message)
    assert "\n" not in str(caught.value)


def test_an_unknown_optimizer_and_fp16_on_the_cpu_are_refused(images):
    with pytest.raises(BioTuneError, match="'adamx' is not one that timm knows"):
        make_trainer(images, optimizer="adamx")
    with pytest.raises(BioTuneError, match="'adahessian' is not one that timm knows"):
        make_trainer(images, optimizer="adahessian")  # it would need second derivatives
    with pytest.raises(BioTuneError, match="fp16"):
        make_trainer(images, amp="fp16")


class _Uncached(Hooks):
    prefix_is_fixed = False


def test_a_compiled_network_trains_alike(images, split, monkeypatch):
    # torch's own front end with its plainest back end, which needs no compiler
    compiled = []

    def compile_plainly(model):
        compiled.append(model)
        return real(model, backend="eager")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile_plainly)
    results = []
    for on in (False, True):
        trainer = make_trainer(images, epochs=2, compile=on)
        recipe = Recipe.full(trainer.blocks, lr=1e-3)
        results.append([trainer.fit(recipe, *split, seed=seed) for seed in (0, 0)])
    assert compiled == [trainer.model]
    half = Recipe.layer_decay(trainer.blocks, lr=1e-3, decay=0.5)
    trainer.fit(half, *split, seed=0)  # other rates, the same blocks train
    assert len(compiled) == 1
    names = [block.name for block in trainer.blocks]
    part = Recipe.from_multipliers(trainer.blocks, [0.0] + [1.0] * (len(names) - 1), lr=1e-3)
    trainer.fit(part, *split, seed=0, hooks=_Uncached())
    assert len(compiled) == 2, "another pattern of frozen blocks is another network"
    again = trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), *split, seed=0)
    assert len(compiled) == 3
    assert [r.train_loss for r in again.epochs] == [r.train_loss for r in results[1][0].epochs]
    plain, other = ([[r.train_loss for r in run.epochs] for run in runs] for runs in results)
    assert other[0] == other[1]
    np.testing.assert_allclose(plain[0], other[0], rtol=1e-2)
