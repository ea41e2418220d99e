"""State dicts: read from files, loaded into a model without surprises, put back after a run."""

from __future__ import annotations

import copy
import hashlib
import logging
import re
import sys
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
_WRAPPERS = ("module.", "_orig_mod.")
_SAVE_TENSORS = 'torch.save(torch.load(FILE, weights_only=False)["state_dict"], "weights.pth")'
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
    if path.suffix.lower() == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return {_strip(key): value for key, value in load_file(path).items()}
        except (SafetensorError, OSError) as error:
            raise ModelError(f"weights {str(path)!r} cannot be read: {one_line(error)}") from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        foreign = re.findall(r"(?:GLOBAL|global|class) `?([A-Za-z_][\w.]*\.[\w.]+)", str(error))
        if foreign:
            why = f"it holds {foreign[0]}, and nothing but tensors is loaded"
            cure = "; if you trust the file, save its state_dict alone: " + _SAVE_TENSORS
        else:
            why, cure = one_line(error), ""
        raise ModelError(
            f"weights {str(path)!r} cannot be read as tensors alone: {why}{cure}"
        ) from error
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"weights {str(path)!r} hold no state dict but {type(content).__name__}")
    foreign = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if foreign:
        raise ModelError(f"weights {str(path)!r} hold other things than tensors: {_list(foreign)}")
    return {_strip(str(key)): value for key, value in content.items()}


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
    replaced = _replaced_head(model, state, target)
    if replaced:
        logger.info("new classifier: %s had another size in %s", ", ".join(replaced), described)
    own = {k: value for k, value in target.items() if k in replaced or k not in state}
    model.load_state_dict({k: own[k] if k in own else state[k] for k in target})
    return not replaced


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
