"""What a GPU asks of the engine, as far as a CPU can show it: choice, switches, errors."""

from __future__ import annotations

import logging
import os
import types

import numpy as np
import pytest
import torch

from biotune_optuna.errors import BioTuneError, LostDeviceError
from biotune_optuna.finetune import device as module
from biotune_optuna.finetune.device import (
    evaluated_at_once,
    full_precision,
    is_lost,
    kernels,
    kind_of,
    out_of_memory,
    prediction_dtype,
    resolve_device,
    tried_out,
    with_less,
)
from biotune_optuna.finetune.feeds import outputs

CUDA = torch.device("cuda", 0)
BUILT = ["sm_75", "sm_80", "sm_90a", "compute_120"]


@pytest.fixture
def cards(monkeypatch):
    """Pretends that there are cards of these compute capabilities."""

    def pretend(*capabilities):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: BUILT)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Card {i}")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        module._warn_of_cpu.cache_clear()

    return pretend


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (12, 0), (13, 1)])
def test_a_card_that_torch_was_built_for_is_taken(cards, capability):
    cards(capability)
    assert resolve_device("auto") == resolve_device("cuda") == CUDA


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (10, 0), (11, 0)])
def test_a_card_without_kernels_is_refused_by_name_and_told_of_by_auto(cards, capability, caplog):
    cards(capability)
    why = f"Card 0 has compute capability {capability[0]}.{capability[1]}, and PyTorch"
    with pytest.raises(BioTuneError, match=f"device 'cuda:0' cannot be used: {why}"):
        resolve_device("cuda:0")
    with caplog.at_level(logging.WARNING):
        assert [resolve_device("auto").type for _ in range(2)] == ["cpu", "cpu"]
    assert caplog.text.count("training on the CPU, although") == 1
    assert why in caplog.text


def test_auto_takes_the_first_card_that_can_be_used(cards):
    cards((6, 1), (9, 0))
    assert resolve_device("auto") == torch.device("cuda", 1)


def test_auto_says_why_a_card_cannot_be_used(cards, monkeypatch, tmp_path, caplog):
    cards()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(module, "_DEVICES", tmp_path)
    assert resolve_device("auto").type == "cpu"
    assert not caplog.text, "there is no card"
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 12020).")

    monkeypatch.setattr(torch.cuda, "init", init)
    assert resolve_device("auto").type == "cpu"
    assert "The NVIDIA driver on your system is too old (found version 12020)." in caplog.text
    monkeypatch.setattr(torch.version, "cuda", None)
    resolve_device("auto")
    assert "was built without CUDA" in caplog.text
    caplog.clear()
    module._warn_of_cpu.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    resolve_device("auto")
    assert not caplog.text, "somebody has hidden the cards"


def test_a_device_and_its_type_are_named(cards):
    cards((9, 0))
    assert kind_of(torch.device("cpu"), None) == "CPU, float32"
    assert kind_of(torch.device("mps", 0), torch.float16) == "MPS, fp16"


def test_fp16_predicts_on_a_cpu_without_it():
    cpu = torch.device("cpu")
    assert prediction_dtype("fp16", cpu) is None
    assert prediction_dtype("bf16", cpu) is torch.bfloat16
    assert prediction_dtype("fp16", CUDA) is torch.float16


CONV, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul
NEW = hasattr(getattr(CONV, "conv", None), "fp32_precision")


def switches():
    return CONV.conv.fp32_precision, MATMUL.fp32_precision


@pytest.mark.skipif(not NEW, reason="torch has no switches by operation")
@pytest.mark.parametrize("matmul", ["tf32", "ieee"])
@pytest.mark.parametrize("conv", ["tf32", "ieee"])
def test_checks_run_without_tf32_whatever_switch_was_used(conv, matmul):
    before = switches()
    try:
        CONV.conv.fp32_precision, MATMUL.fp32_precision = conv, matmul
        with full_precision(CUDA):
            assert switches() == ("ieee", "ieee")
        assert switches() == (conv, matmul)
    finally:
        CONV.conv.fp32_precision, MATMUL.fp32_precision = before


def test_checks_run_without_tf32_in_an_older_torch(monkeypatch):
    conv = types.SimpleNamespace(allow_tf32=True)
    matmul = types.SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch.backends, "cudnn", conv)
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    with full_precision(CUDA):
        assert (conv.allow_tf32, matmul.allow_tf32) == (False, False)
    assert (conv.allow_tf32, matmul.allow_tf32) == (True, True)


NO_ENGINE = "GET was unable to find an engine to execute this computation"


def test_cudnns_doubtful_words_count_while_less_can_be_tried():
    held = [8]

    def attempt():
        if held[0] > 2:
            raise RuntimeError(NO_ENGINE)
        return held[0]

    def less():
        held[0] //= 2

    assert not out_of_memory(RuntimeError(NO_ENGINE))
    assert with_less(attempt, less) == 2


@pytest.mark.parametrize("said", [NO_ENGINE, "Unable to find a valid cuDNN algorithm to run"])
def test_cudnns_doubtful_words_stand_where_nothing_less_can_be_tried(said):
    def attempt():
        raise RuntimeError(said)

    def less():
        raise BioTuneError("memory ran out with 2 images at once")

    with pytest.raises(RuntimeError, match=said):
        with_less(attempt, less)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublas`"), False),
        (RuntimeError("shape mismatch"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (ValueError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_a_card_that_is_lost_is_told_from_other_errors(error, lost):
    assert is_lost(error) == lost


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="torch has no such error")
def test_a_lost_card_is_one_line_with_an_exit_code_of_its_own():
    said = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"
    with pytest.raises(LostDeviceError) as caught, kernels(CUDA, deterministic=False):
        raise torch.AcceleratorError(said)
    assert "device cuda:0 failed: CUDA error: an illegal memory access" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code not in (0, 1, 2)


def test_convolutions_are_tried_out_where_asked_alone():
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    with kernels(CUDA, deterministic=False):
        assert not cudnn.benchmark
        with tried_out(on=True):
            assert cudnn.benchmark
        with tried_out(on=False):
            assert not cudnn.benchmark
    with kernels(CUDA, deterministic=True), tried_out(on=True):
        assert not cudnn.benchmark
    assert cudnn.benchmark == before


def test_a_deterministic_run_fills_no_memory_and_asks_cublas_in_time():
    # read by cuBLAS when somebody first multiplies, long before a run is asked to be deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    memory = torch.utils.deterministic
    before = memory.fill_uninitialized_memory
    with kernels(torch.device("cpu"), deterministic=True):
        assert not memory.fill_uninitialized_memory
    assert memory.fill_uninitialized_memory == before


@pytest.mark.parametrize(
    ("device", "sizes"), [(CUDA, [150, 150]), (torch.device("cpu"), [256, 44])], ids=str
)
def test_a_gpu_looks_at_parts_of_one_size(device, sizes):
    """Each size of batch has kernels of its own; on a CPU the export's batches are followed."""
    seen = []

    def forward(few):
        seen.append(len(few))
        return torch.from_numpy(few).float().view(-1, 1)

    found, fitted = outputs(forward, np.arange(300), 256, device, None)
    assert seen == sizes
    assert fitted == 256
    assert found.flatten().tolist() == list(range(300))
    assert evaluated_at_once(16, device) == (256 if device == CUDA else 32)
    assert evaluated_at_once(200, device) == 400
