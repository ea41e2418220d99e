"""Devices by name, autocast, and how much memory a run takes."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

import torch

from biotune_optuna.errors import BioTuneError

ONE_AT_A_TIME = threading.RLock()
"""Held while a network trains or predicts: dropout and torchvision's mixing draw from torch's
generator, which a process has but one of, and a trainer has but one network."""

_MIB = 2**20

_Module = TypeVar("_Module", bound=torch.nn.Module)
_Result = TypeVar("_Result")
# the last is what cuDNN and cuBLAS say: CUDNN_STATUS_ALLOC_FAILED
_OOM_PHRASES = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")


def channels_last(model: _Module) -> _Module:
    """Put a model's tensors of four dimensions into the memory format ``torch.channels_last``.

    ``model.to(memory_format=...)`` fails at those of five, which the lambda layers of timm have.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return model


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` into a device that is there.

    Args:
        name: ``"auto"`` takes CUDA, else MPS, else the CPU.

    Raises:
        BioTuneError: If the name is unknown or the device is absent.
    """
    text = str(name).strip().lower()
    if text == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps", 0) if torch.backends.mps.is_available() else torch.device("cpu")
    kind, _, number = text.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise BioTuneError(f"device {text!r} is not one of auto, cpu, cuda, cuda:N, mps")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(number or 0)
        if index >= count:
            have = f"cuda:0 to cuda:{count - 1}" if count else "no usable CUDA device"
            raise BioTuneError(f"device {text!r} is not here: there is {have}; try auto or cpu")
        return torch.device("cuda", index)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise BioTuneError("device 'mps' is not here: this torch has no usable Metal; try auto")
    return torch.device("mps", 0) if kind == "mps" else torch.device("cpu")


def amp_dtype(
    amp: Literal["auto", "off", "bf16", "fp16"], device: torch.device
) -> torch.dtype | None:
    """Return the autocast type of a setting on a device; None means full precision.

    Raises:
        BioTuneError: If fp16 is asked for on the CPU, where training in it is not supported.
    """
    if amp == "off" or (amp == "auto" and device.type != "cuda"):
        return None
    if amp == "auto":
        with torch.cuda.device(device):  # older ones only emulate bf16, slowly
            real = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if real else torch.float16
    if amp == "fp16" and device.type == "cpu":
        raise BioTuneError("amp 'fp16' does not train on the CPU; use bf16, auto or off")
    return torch.bfloat16 if amp == "bf16" else torch.float16


def autocast(
    device: torch.device, amp: torch.dtype | None
) -> contextlib.AbstractContextManager[object]:
    """Mixed precision in a type; nothing at all for None."""
    return contextlib.nullcontext() if amp is None else torch.autocast(device.type, dtype=amp)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(p in str(error) for p in _OOM_PHRASES)


def release_memory(device: torch.device) -> None:
    """Free what is no longer used, after memory ran out."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def with_less(attempt: Callable[[], _Result], less: Callable[[], None]) -> _Result:
    """Try until memory suffices.

    Args:
        attempt: What takes memory.
        less: Called where it ran out, before the next try: takes less at once, or raises.
    """
    while True:
        try:
            return attempt()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # outside the handler: the error's traceback would keep the tensors alive
        less()


@contextlib.contextmanager
def isolated_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for dropout and the like, and restore them afterwards.

    These are the CPU's and the device's; those of other devices are left alone.
    """
    on_metal = torch.mps.get_rng_state() if device.type == "mps" else None
    on_cuda = [device.index or 0] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=on_cuda):
            torch.default_generator.manual_seed(seed)  # torch's own manual_seed seeds every device
            for index in on_cuda:
                torch.cuda.default_generators[index].manual_seed(seed)
            if on_metal is not None:
                torch.mps.manual_seed(seed)
            yield
    finally:
        if on_metal is not None:
            torch.mps.set_rng_state(on_metal)


@contextlib.contextmanager
def kernels(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Choose torch's kernels for a run and restore the choice afterwards.

    With ``deterministic``, torch uses deterministic algorithms alone; without, cuDNN may try out
    its convolutions and keep the fastest.

    Raises:
        BioTuneError: If torch has no deterministic kernel for an operation inside.
    """
    if device.type != "cuda" and not deterministic:
        yield
        return
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark,
        cudnn.deterministic,
    )
    if deterministic:
        # cuBLAS reads this when its handle is made
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    cudnn.benchmark = not deterministic
    cudnn.deterministic = deterministic
    try:
        yield
    except RuntimeError as error:
        if deterministic and (operation := _without_deterministic_kernel(error)):
            raise BioTuneError(
                f"deterministic=True cannot be kept on {device.type}: torch has no deterministic "
                f"kernel for {operation}; set deterministic=False or choose another model"
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark, cudnn.deterministic = before[2], before[3]


def _without_deterministic_kernel(error: RuntimeError) -> str:
    """Return the operation that an error of torch says has no deterministic kernel; else ""."""
    text = str(error)
    operation, found, _ = text.partition(" does not have a deterministic")
    if found:
        return operation.strip().splitlines()[-1]
    # cuBLAS chose its workspace before we could: CUBLAS_WORKSPACE_CONFIG came too late or is wrong
    return "cuBLAS without CUBLAS_WORKSPACE_CONFIG=:4096:8" if "CUBLAS_WORKSPACE" in text else ""


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Convolve in float32 proper inside: TF32's rounding would drown what a check looks for."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class PeakMemory:
    """The most memory seen since it was made.

    Args:
        device: CUDA counts its own allocations; elsewhere the process's resident memory is read
            at each `sample`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peak = 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def sample(self) -> None:
        """Look at the memory in use now."""
        if self._device.type != "cuda":
            self._peak = max(self._peak, _resident_mb())

    @property
    def megabytes(self) -> float:
        """Peak in MiB."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / _MIB
        return self._peak


def _resident_mb() -> float:
    """Resident memory of this process now; its peak where only that is known; 0 on Windows."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / _MIB
    except (OSError, ValueError):
        if sys.platform == "win32":
            return 0.0
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / _MIB  # there bytes, else KiB
