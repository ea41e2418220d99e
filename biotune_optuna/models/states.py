"""State dicts: read from files, loaded into a model without surprises, put back after a run."""

from __future__ import annotations

import copy
import hashlib
import logging
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biotune_optuna.errors import ModelError
from biotune_optuna.files import check_lookup
from biotune_optuna.models.blocks import output_layers

logger = logging.getLogger("biotune_optuna.models")

# Where training scripts put the state dict inside a checkpoint; averaged weights first, as timm.
_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model_state", "model")
_DEEPEST = 3
_WRAPPERS = ("module.", "_orig_mod.")
_SAVE_TENSORS = 'torch.save(torch.load(FILE, weights_only=False){}, "weights.pth")'
_STRANGERS = (
    (b"version https://git-lfs", "it is a pointer of Git LFS: run git lfs pull"),
    (b"<!doctype html", "it is a web page, as a failed download leaves it"),
    (b"<html", "it is a web page, as a failed download leaves it"),
    (b"\x1f\x8b", "it is packed by gzip: unpack it"),
    (b"\x89HDF", "it is an HDF5 file, as of Keras; give weights of timm's model"),
)
_COUNTER = ".num_batches_tracked"  # old files lack it, and the usual BatchNorm has no use for it


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a file without unpickling anything.

    Args:
        path: A ``.safetensors`` file, or a PyTorch checkpoint (``.pth``, ``.pt``, ``.bin``,
            ``.tar``), whose state dict may lie under one of the usual keys.

    Returns:
        Tensor name -> tensor on the CPU, without the prefixes of DDP and ``torch.compile``.

    Raises:
        ModelError: If the file does not exist, cannot be looked up or holds anything but tensors.
    """
    path = Path(path).expanduser()
    check_lookup(path, ModelError)
    if not path.is_file():
        raise ModelError(
            f"weights {str(path)!r}: no such file; give 'auto', 'hub', 'none' "
            "or a .safetensors or .pth file"
        )
    # Sizes of a header that is JSON come first in safetensors, whatever the file is called.
    head = _head(path)
    for magic, why in _STRANGERS:
        if head.lower().startswith(magic.lower()):
            raise ModelError(f"weights {str(path)!r} cannot be read: {why}")
    if head[8:9] == b"{" or (path.suffix.lower() == ".safetensors" and not _is_torch(head)):
        content: Any = _read_safetensors(path)
    else:
        content = _read_checkpoint(path)
    return {_strip(str(key)): value for key, value in _state_dict(content, str(path)).items()}


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(32)
    except OSError as error:
        raise ModelError(f"weights {str(path)!r} cannot be read: {error.strerror}") from None


def _is_torch(head: bytes) -> bool:
    """Whether a file begins as a ZIP archive or a pickle does."""
    return head.startswith((b"PK\x03\x04", b"\x80\x02"))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weights {str(path)!r} cannot be read: {one_line(error)}") from error


def _read_checkpoint(path: Path) -> Any:
    try:
        # By its name alone, PyTorch would take some files for others.
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about what is refused anyhow
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        said = str(error)
        foreign = re.findall(r"(?:GLOBAL|global|class) `?([A-Za-z_][\w.]*\.[\w.]+)", said)
        cure = ""
        if "TorchScript" in said:
            why = "it is a TorchScript program"
            cure = "; save the state_dict of the model that it was made of"
        elif foreign:
            why = f"it holds {foreign[0]}, and nothing but tensors is loaded"
            cure = "; if you trust the file, save its state_dict alone: "
            is_model = re.search(r"(?i)\b(timm|torchvision|torch\.nn)\b", foreign[0])
            cure += _SAVE_TENSORS.format(".state_dict()" if is_model else '["state_dict"]')
        elif not isinstance(error, OSError) and (
            len(said) < 8 or "Weights only" in said or "PytorchStreamReader" in said
        ):
            why = "it is damaged, or no checkpoint of PyTorch"
        else:
            why = one_line(error)
        raise ModelError(
            f"weights {str(path)!r} cannot be read as tensors alone: {why}{cure}"
        ) from error


def _state_dict(content: Any, shown: str) -> Mapping[str, Tensor]:
    """Return the state dict of a checkpoint: all of it, or what lies under some key.

    Raises:
        ModelError: There is none, or several, none of them under a usual key.
    """
    found = _state_dicts(content)
    for key in ("", *_CONTAINERS):
        if key in found:
            return found[key]
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise ModelError(
            f"weights {shown!r} hold several state dicts: {_list(sorted(found))}; save one of them "
            "in a file of its own"
        )
    while isinstance(content, Mapping):
        inner = next((c for k in _CONTAINERS if isinstance(c := content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"weights {shown!r} hold no state dict but {type(content).__name__}")
    foreign = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    raise ModelError(f"weights {shown!r} hold other things than tensors: {_list(foreign)}")


def _state_dicts(content: Any, depth: int = 0) -> dict[str, Mapping[str, Tensor]]:
    """Return what holds tensors alone, by its key at the top; under "" if all of it does."""
    if not isinstance(content, Mapping) or not content or depth > _DEEPEST:
        return {}
    if all(isinstance(value, Tensor) for value in content.values()):
        return {"": content}
    found = {}
    for key, value in content.items():
        if isinstance(key, str) and (inner := _state_dicts(value, depth + 1)):
            known = next((inner[one] for one in ("", *_CONTAINERS) if one in inner), None)
            if known is not None or len(inner) == 1:
                found[key] = next(iter(inner.values())) if known is None else known
    return found


def load_strictly(model: nn.Module, state: dict[str, Tensor], described: str) -> bool:
    """Load everything but a head of another size; refuse and list whatever does not fit.

    Args:
        model: A timm model; left untouched if the weights are refused.
        state: Tensor name -> tensor.
        described: What to call the weights in messages.

    Returns:
        True if the weights' own head was loaded, False if it had another number of classes.

    Raises:
        ModelError: If any tensor is missing, unknown or of another shape.
    """
    target = model.state_dict()
    state = _without_prefix(state, target)
    problems = _misfits(model, state, target)
    if problems:
        # Checkpoints in the layout of a model's original authors: timm knows how to translate.
        translated = _translate_like_timm(model, state)
        if translated is not None and not _misfits(model, translated, target):
            state, problems = translated, []
    if problems:
        raise ModelError(
            f"weights ({described}) do not fit {type(model).__name__}: {_list(problems)}"
        )
    _check_values(model, state, described)
    replaced = _replaced_head(model, state, target)
    if replaced:
        logger.info("new classifier: %s had another size in %s", ", ".join(replaced), described)
    own = {k: value for k, value in target.items() if k in replaced or k not in state}
    model.load_state_dict({k: own[k] if k in own else state[k] for k in target})
    return not replaced


def _without_prefix(state: dict[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take away what all names begin with where the model was part of another: ``backbone.``."""
    parts = {name.partition(".")[0] for name in target}
    while state and len(first := {name.partition(".")[0] for name in state}) == 1 - len(
        first & parts
    ):
        (prefix,) = first
        if any(len(name) <= len(prefix) + 1 for name in state):
            break
        state = {name[len(prefix) + 1 :]: value for name, value in state.items()}
    return state


def _check_values(model: nn.Module, state: Mapping[str, Tensor], described: str) -> None:
    """Refuse what loading would turn into other numbers, or numbers that are none.

    Raises:
        ModelError: There is such a tensor.
    """
    for name, own in model.named_parameters():
        tensor = state.get(name, own)
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ModelError(
                f"weights ({described}): {name} is of type {tensor.dtype}, whose scale is not "
                "known; give weights in float16, bfloat16 or float32"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"weights ({described}): {name} holds NaN or infinite values, as of a training "
                "that diverged; give others"
            )


def _misfits(
    model: nn.Module, state: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> list[str]:
    replaced = _replaced_head(model, state, target)
    wrong = [
        f"{key} has shape {tuple(state[key].shape)}, not {tuple(value.shape)}"
        for key, value in target.items()
        if key in state and key not in replaced and state[key].shape != value.shape
    ]
    missing = [
        f"{key} is missing"
        for key in target
        if key not in state and key not in replaced and not key.endswith(_COUNTER)
    ]
    unknown = [f"{key} is unknown" for key in state if key not in target]
    return wrong + missing + unknown


def _replaced_head(
    model: nn.Module, state: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> set[str]:
    """Tensors of output layers that are missing whole, or of another number of classes."""
    replaced: set[str] = set()
    for path in output_layers(model):
        keys = [key for key in target if key.startswith(f"{path}.")]
        shapes = [(state[key].shape, target[key].shape) for key in keys if key in state]
        other = any(old != new for old, new in shapes)
        fits = all(len(old) and old[1:] == new[1:] for old, new in shapes)
        # The hub keeps some models (DINOv2, SigLIP) without a head: then it has none here either.
        if not shapes or (len(shapes) == len(keys) and other and fits):
            replaced.update(keys)
    return replaced


def _translate_like_timm(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if not callable(convert):
        return None
    try:
        converted = convert(dict(state), model)
    except Exception:  # noqa: BLE001 - a converter fed with foreign weights fails in its own way
        return None
    return converted if isinstance(converted, dict) else None


def _strip(key: str) -> str:
    while wrapper := next((one for one in _WRAPPERS if key.startswith(one)), None):
        key = key.removeprefix(wrapper)
    return key


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line, its first 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _list(items: list[str], limit: int = 5) -> str:
    rest = f"; and {len(items) - limit} more" if len(items) > limit else ""
    return "; ".join(items[:limit]) + rest


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, those outside the state dict too."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def copy_into(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Copy values into those of a model's parameters and buffers that they name."""
    tensors = all_tensors(model)
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(value)


def with_values(model: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a model with other values, in eval mode; what they do not name is shared.

    Args:
        model: The model; it is left as it is.
        values: Parameters and buffers by name.
    """
    shared = {id(t): t for name, t in all_tensors(model).items() if name not in values}
    twin = copy.deepcopy(model, shared)
    copy_into(twin, values)
    fresh_eval(twin)
    return twin


def digest(tensors: Mapping[str, Tensor], structure: str = "") -> str:
    """SHA-256 over names, types, shapes and values of tensors, in 64 hexadecimal digits.

    Args:
        tensors: The tensors by name, in any order.
        structure: What else counts, such as the network's structure.
    """
    sha = hashlib.sha256(structure.encode())
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().cpu().contiguous()
        sha.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def restore(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Copy values into a model's parameters and buffers; leave it in eval mode.

    Raises:
        ModelError: One of them has another shape by now: copied all the same, its values would be
            repeated along it.
    """
    tensors = all_tensors(model)
    for name, tensor in tensors.items():
        if tensor.shape != values[name].shape:
            raise ModelError(
                f"{name} of {type(model).__name__} has changed its shape while it ran, from "
                f"{tuple(values[name].shape)} to {tuple(tensor.shape)}; choose another model"
            )
    copy_into(model, {name: values[name] for name in tensors})
    fresh_eval(model)


# their gradient needs their input, so in training autograd copies it before it is overwritten
_OVERWRITING = (nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Mish)


def out_of_place(model: nn.Module) -> None:
    """Have those activations write elsewhere whose input would be copied first; same numbers."""
    for module in model.modules():
        if type(module) in _OVERWRITING:
            module.inplace = False  # type: ignore[assignment]


def fresh_eval(model: nn.Module) -> None:
    """Put a model into eval mode without what its modules derived from earlier weights.

    Some attentions of timm keep their biases from one evaluation to the next, and all versions of
    it forget them on the way to train mode.
    """
    model.train()
    model.eval()
