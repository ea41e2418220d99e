"""Devices by name, autocast, and how much memory a run takes."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch

from biotune_optuna.errors import BioTuneError, LostDeviceError
from biotune_optuna.models.states import one_line

_log = logging.getLogger("biotune_optuna.finetune")

# cuBLAS reads this when its first handle is made, which may be long before a run is asked to be
# deterministic. The value is what it takes by itself on recent cards.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

ONE_AT_A_TIME = threading.RLock()
"""Held while a network trains or predicts: dropout and torchvision's mixing draw from torch's
generator, which a process has but one of, and a trainer has but one network."""

_MIB = 2**20

_Module = TypeVar("_Module", bound=torch.nn.Module)
_Result = TypeVar("_Result")
# the last is what cuDNN and cuBLAS say: CUDNN_STATUS_ALLOC_FAILED
_OOM_PHRASES = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
# what cuDNN says where no algorithm's workspace fits, and also where it has none for a layer
_PERHAPS_OOM_PHRASES = (
    "unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm",
)
_DEVICES = Path("/dev")  # where the driver has a file nvidia0, nvidia1, ... for each card


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
        name: ``"auto"`` takes CUDA, else MPS, else the CPU. Where the machine has an NVIDIA card
            that cannot be used, a warning says why.

    Raises:
        BioTuneError: If the name is unknown, the device is absent, or this PyTorch has no kernels
            for it.
    """
    text = str(name).strip().lower()
    if text == "auto":
        return _best_device()
    kind, _, number = text.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise BioTuneError(f"device {text!r} is not one of auto, cpu, cuda, cuda:N, mps")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(number or 0)
        if index >= count:
            have = f"cuda:0 to cuda:{count - 1}" if count else "no usable CUDA device"
            raise BioTuneError(f"device {text!r} is not here: there is {have}; try auto or cpu")
        if why := _not_built_for(index):
            raise BioTuneError(f"device {text!r} cannot be used: {why}")
        return torch.device("cuda", index)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise BioTuneError("device 'mps' is not here: this torch has no usable Metal; try auto")
    return torch.device("mps", 0) if kind == "mps" else torch.device("cpu")


def _best_device() -> torch.device:
    """Return the first usable card, else Metal, else the CPU; say why where a card is not."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    refused = [_not_built_for(index) for index in range(count)]
    if "" in refused:
        return torch.device("cuda", refused.index(""))
    if torch.backends.mps.is_available():
        return torch.device("mps", 0)
    if why := next(iter(refused), "") or _why_no_cuda():
        _warn_of_cpu(why)
    return torch.device("cpu")


def _not_built_for(index: int) -> str:
    """Say in words that this PyTorch has no kernels for a card; "" where it has."""
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", a) for a in torch.cuda.get_arch_list()]
    known = [(m[1], int(m[2]), int(m[3])) for m in built if m]
    major, minor = torch.cuda.get_device_capability(index)
    fits = (
        # compiled for this generation, or for any older one in a form that the driver compiles
        (have == major and low <= minor) if kind == "sm" else (have, low) <= (major, minor)
        for kind, have, low in known
    )
    if not known or any(fits):
        return ""
    return (
        f"{torch.cuda.get_device_name(index)} has compute capability {major}.{minor}, and PyTorch "
        f"{torch.__version__} was built for {', '.join(torch.cuda.get_arch_list())}; install a "
        "PyTorch that was built for it"
    )


def _why_no_cuda() -> str:
    """Say why there is no CUDA on a machine that has an NVIDIA card; "" where there is none."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return ""
    if not any(_DEVICES.glob("nvidia[0-9]*")):
        return ""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} was built without CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return one_line(error)
    return "PyTorch finds no CUDA device"


@functools.cache
def _warn_of_cpu(why: str) -> None:
    """Say once that the CPU is taken although there is a card."""
    _log.warning("training on the CPU, although this machine has an NVIDIA card: %s", why)


def kind_of(device: torch.device, amp: torch.dtype | None) -> str:
    """Name a device and the type it computes in, as ``"NVIDIA H200, bf16"`` or ``"CPU, float32"``.

    Trainings of one kind are alike to rounding; what is stored of a training says its kind.

    Args:
        device: The device.
        amp: Autocast type or None.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    types = {None: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return f"{name}, {types[amp]}"


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


def prediction_dtype(
    amp: Literal["auto", "off", "bf16", "fp16"], device: torch.device
) -> torch.dtype | None:
    """Return the autocast type for prediction: that of training, but none for fp16 on the CPU."""
    return None if amp == "fp16" and device.type == "cpu" else amp_dtype(amp, device)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(p in str(error) for p in _OOM_PHRASES)


def is_lost(error: BaseException) -> bool:
    """Whether an error of a CUDA kernel or card has made the process's CUDA unusable."""
    kinds: Any = getattr(torch, "AcceleratorError", ())  # there from PyTorch 2.8 on
    said = isinstance(error, kinds) or (
        isinstance(error, RuntimeError) and str(error).startswith("CUDA error: ")
    )
    return said and not out_of_memory(error) and "CUBLAS_STATUS" not in str(error)


def release_memory(device: torch.device) -> None:
    """Free what is no longer used, after memory ran out."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def with_less(attempt: Callable[[], _Result], less: Callable[[], None]) -> _Result:
    """Try until memory suffices.

    Args:
        attempt: What takes memory.
        less: Called where it ran out, before the next try: takes less at once, or raises a
            `BioTuneError`. Where the error may have meant something else too, the error itself is
            raised then.
    """
    while True:
        doubtful: RuntimeError | None = None
        try:
            return attempt()
        except RuntimeError as error:
            if not out_of_memory(error):
                if not any(phrase in str(error) for phrase in _PERHAPS_OOM_PHRASES):
                    raise
                doubtful = error.with_traceback(None)
        # outside the handler: the error's traceback would keep the tensors alive
        try:
            less()
        except BioTuneError:
            if doubtful is not None:
                raise doubtful from None
            raise


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


def rewinder(device: torch.device, generator: torch.Generator | None) -> Callable[[], None]:
    """Return what sets generators back to where they are now: torch's own and one more.

    Args:
        device: The device.
        generator: Another generator on the CPU, or None.
    """
    on_cuda = device.type == "cuda"
    state, other = torch.get_rng_state(), None if generator is None else generator.get_state()
    there = torch.cuda.get_rng_state(device) if on_cuda else None

    def rewind() -> None:
        torch.set_rng_state(state)
        if there is not None:
            torch.cuda.set_rng_state(there, device)
        if generator is not None and other is not None:
            generator.set_state(other)

    return rewind


def evaluated_at_once(batch_size: int, device: torch.device) -> int:
    """Return how many images are looked at together, without gradients: twice a batch to train on.

    On CUDA at least 256, for small batches leave a card idle.
    """
    return max(256, 2 * batch_size) if device.type == "cuda" else 2 * batch_size


@contextlib.contextmanager
def kernels(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Choose torch's kernels for a run and restore the choice afterwards.

    With ``deterministic``, torch uses deterministic algorithms alone. cuDNN tries out no
    convolutions but in `tried_out`.

    Raises:
        BioTuneError: If torch has no deterministic kernel for an operation inside.
        LostDeviceError: If the card can no longer be used by this process.
    """
    if device.type != "cuda" and not deterministic:
        yield
        return
    cudnn = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark,
        cudnn.deterministic,
        memory.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(deterministic)
    cudnn.benchmark = False
    cudnn.deterministic = deterministic
    memory.fill_uninitialized_memory = False  # nothing here reads memory that nobody wrote
    try:
        yield
    except RuntimeError as error:
        if device.type == "cuda" and is_lost(error):
            raise LostDeviceError(f"device {device} failed: {one_line(error)}") from error
        if deterministic and (operation := _without_deterministic_kernel(error)):
            cure = "set deterministic=False or choose another model"
            if operation.startswith("cuBLAS"):
                cure = "set that variable in the environment before Python starts"
            raise BioTuneError(
                f"deterministic=True cannot be kept on {device.type}: torch has no deterministic "
                f"kernel for {operation}; {cure}"
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark, cudnn.deterministic = before[2], before[3]
        memory.fill_uninitialized_memory = before[4]


@contextlib.contextmanager
def tried_out(*, on: bool) -> Iterator[None]:
    """Have cuDNN try out its convolutions inside and keep the fastest, where that is ``on``.

    Each size of batch is tried once a process, which takes longer than many steps: of use for the
    batches that most steps have.
    """
    if not on:
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.deterministic
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _without_deterministic_kernel(error: RuntimeError) -> str:
    """Return the operation that an error of torch says has no deterministic kernel; else ""."""
    text = str(error)
    operation, found, _ = text.partition(" does not have a deterministic")
    if found:
        return operation.strip().splitlines()[-1]
    # another library used cuBLAS before this package was imported, or somebody chose otherwise
    return "cuBLAS without CUBLAS_WORKSPACE_CONFIG=:4096:8" if "CUBLAS_WORKSPACE" in text else ""


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32 proper inside: TF32's rounding would drown what a check looks for."""
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    conv: Any = getattr(cudnn, "conv", None)
    name, exact = "allow_tf32", cast("object", False)
    owners: list[Any] = [cudnn, matmul]
    if hasattr(conv, "fp32_precision"):  # from PyTorch 2.9 on; the older switches would clash
        name, exact, owners = "fp32_precision", "ieee", [conv, matmul]
    before = [getattr(owner, name) for owner in owners]
    for owner in owners:
        setattr(owner, name, exact)
    try:
        yield
    finally:
        for owner, value in zip(owners, before, strict=True):
            setattr(owner, name, value)


class PeakMemory:
    """The most memory seen since it was made.

    Args:
        device: CUDA counts all that the process has allocated there: pixels, cached prefixes and
            pre-trained weights too, and in a process's first run what cuDNN takes to try out
            convolutions. Elsewhere the process's resident memory is read at each `sample`.
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
