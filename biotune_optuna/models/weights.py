"""Models with pre-trained weights, from wherever these can be had.

``create_model`` is the only place that builds networks. Weights come from timm's hub, from a local
file, from a small pip package, or not at all; the classifier of another size is replaced by a new
one that depends on the seed alone; whatever else does not fit is listed and refused.
"""

from __future__ import annotations

import copy
import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.models._registry import _deprecated_models
from torch import nn

from biotune_optuna.errors import ModelError
from biotune_optuna.models import hub, packages
from biotune_optuna.models.blocks import classifier_paths, output_layers
from biotune_optuna.models.states import (
    all_tensors,
    copy_into,
    digest,
    load_strictly,
    one_line,
    read_state_dict,
)

logger = logging.getLogger("biotune_optuna.models")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network, and what must be known about it to train, name and export it.

    Attributes:
        model: The network, on the CPU, in train mode, with ``num_classes`` outputs.
        name: timm's name as given.
        num_classes: Number of outputs.
        weights: Where the weights came from, for people.
        weights_fingerprint: SHA-256 (hex) over the names, types, shapes and values of every tensor
            outside the classifier: equal trunks have equal fingerprints wherever they came from.
        data_config: What the weights expect of images: ``input_size`` (channels, height, width),
            ``mean``, ``std`` (per channel, of values in 0-1), ``interpolation``, ``crop_pct``.
        head_is_new: Whether the classifier was drawn from the seed; False where the weights brought
            one of the right size.
        model_args: Further arguments that the model was built with (``img_size``, ...).
    """

    model: nn.Module
    name: str
    num_classes: int
    weights: str
    weights_fingerprint: str
    data_config: dict[str, Any]
    head_is_new: bool
    model_args: dict[str, Any]


def create_model(
    name: str,
    *,
    num_classes: int,
    weights: str | Path = "auto",
    seed: int = 0,
    **kwargs: Any,
) -> LoadedModel:
    """Build a timm model with pre-trained weights and a head for ``num_classes`` classes.

    Args:
        name: A timm model name, with or without a pre-trained tag (``resnet50.a1_in1k``).
        num_classes: Number of classes, at least 1.
        weights: ``"hub"`` downloads through timm, or takes what timm has in its cache; ``"auto"``
            takes an installed pip package with weights of this architecture, else the hub;
            ``"none"`` starts from random weights; anything else is a ``.safetensors`` or ``.pth``
            file with the full state dict. Nothing is ever unpickled.
        seed: Decides the weights of the new head (and of the trunk with ``"none"``). PyTorch's
            global random state is left as it was.
        **kwargs: Passed to ``timm.create_model`` (``img_size``, ``drop_path_rate``, ...).

    Returns:
        The model and its facts.

    Raises:
        ModelError: Unknown model, weights that cannot be had or do not fit, or a model without a
            classifier.
    """
    check_name(name)
    name = current_name(name)
    if num_classes < 1:
        raise ModelError(f"num_classes={num_classes}: a classifier needs at least one class")
    source = str(weights)
    if source == "auto":
        source = "package" if packages.find(name) else "hub"
    if source == "hub":
        with _seeded(seed), hub.clear_errors(name):
            model = timm.create_model(name, pretrained=True, num_classes=num_classes, **kwargs)
        described = f"hub: {hub.location(name)}"
        head_kept = hub.n_classes(name) == num_classes
    else:
        model = _build(name, num_classes, seed, kwargs)
        described, head_kept = _load_local(model, name, source)
    if not classifier_paths(model):
        raise ModelError(f"{name} has no classifier: choose a model with a classification head")
    if not head_kept:
        reset_head(model, seed)
    config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    kept = ("input_size", "mean", "std", "interpolation", "crop_pct")
    return LoadedModel(
        model=model,
        name=name,
        num_classes=num_classes,
        weights=described,
        weights_fingerprint=trunk_fingerprint(model),
        data_config={key: config[key] for key in kept},
        head_is_new=not head_kept,
        model_args=dict(kwargs),
    )


def meta_model(name: str, *, num_classes: int = 1000) -> nn.Module:
    """Return a model without memory or values, for looking at its structure.

    Args:
        name: A timm model name.
        num_classes: Number of outputs.

    Returns:
        The model on PyTorch's ``meta`` device.

    Raises:
        ModelError: Unknown model.
    """
    check_name(name)
    with torch.device("meta"):
        return _build(name, num_classes, 0, {})


def reset_head(model: nn.Module, seed: int, paths: Sequence[str] = ()) -> None:
    """Give the classifier new weights that depend on ``seed`` alone.

    The layers that compute the class scores are drawn anew with PyTorch's default for their class
    (``reset_parameters``), on the CPU, so that every device gets the same values. Other layers of
    the head (its norm, hidden layers) keep their pre-trained weights. The global random state is
    left as it was.

    Args:
        model: A timm model, on any device; or any module, with ``paths``.
        seed: Seed of the new weights.
        paths: Modules to draw anew where the model does not say which of them classify.

    Raises:
        ModelError: If the model has no classifier, or one that cannot be re-initialised.
    """
    layers = output_layers(model) or {path: model.get_submodule(path) for path in paths}
    if not layers:
        raise ModelError(f"{type(model).__name__} has no classifier to initialise")
    with _seeded(seed):
        for path, layer in layers.items():
            fresh = copy.deepcopy(layer).to("cpu")
            reset = getattr(fresh, "reset_parameters", None)
            if not callable(reset):
                raise ModelError(
                    f"layer {path!r} ({type(layer).__name__}) of the head cannot be "
                    "re-initialised; give it a reset_parameters method"
                )
            reset()
            copy_into(layer, all_tensors(fresh))


def trunk_fingerprint(model: nn.Module) -> str:
    """SHA-256 over all tensors of a timm model outside the classifier's output layers."""
    outputs = tuple(f"{path}." for path in output_layers(model)) or ("\0",)
    return digest({n: t for n, t in model.state_dict().items() if not n.startswith(outputs)})


def current_name(name: str) -> str:
    """Return what timm calls a model now, for a name of its older releases.

    Args:
        name: A timm model name, such as ``"tf_efficientnet_b0_ns"``.
    """
    new = str(_deprecated_models.get(name) or name)
    return new if timm.is_model(new.partition(".")[0]) else name


def check_name(name: str) -> None:
    """Refuse what timm has no model of.

    Args:
        name: A timm model name, with or without a pre-trained tag.

    Raises:
        ModelError: Unknown model or tag; the nearest names are listed.
    """
    plain = re.sub(r"^(hf[-_]hub:)?(timm/)?", "", name)
    if plain != name and timm.is_model(plain):
        raise ModelError(f"model {name!r}: give timm's name alone, {plain!r}")
    if ":" in name or "/" in name or not timm.is_model(name):
        near = difflib.get_close_matches(name.lower(), timm.list_models(), n=4, cutoff=0.5)
        hint = f"; the nearest names are {', '.join(near)}" if near else ""
        raise ModelError(f"unknown model {name!r}{hint} (timm.list_models() has them all)")
    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and not tags and (now := current_name(architecture)) != architecture:
        raise ModelError(f"model {name!r}: timm calls it {now!r} now")
    if tag and tag not in tags:
        raise ModelError(
            f"unknown pre-trained tag {tag!r} of {architecture}: "
            f"{'there are ' + ', '.join(tags) if tags else 'it has no pre-trained weights'}"
        )


def _build(name: str, num_classes: int, seed: int, kwargs: Mapping[str, Any]) -> nn.Module:
    with _seeded(seed):
        try:
            return timm.create_model(name, pretrained=False, num_classes=num_classes, **kwargs)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ModelError(f"{name} cannot be built: {one_line(error)}") from error


def _load_local(model: nn.Module, name: str, source: str) -> tuple[str, bool]:
    """Load from a package or a file; return what to call it and whether its head was taken."""
    if source == "none":
        return "none: random initialisation", False
    if source == "package":
        package, file = packages.find(name) or ("", Path())
        state = packages.translate(read_state_dict(file), model)
        described = f"pip package {package}: {file.name}"
    else:
        state = read_state_dict(source)
        described = f"file: {Path(source).name}"
    return described, load_strictly(model, state, described)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws on the CPU depend on ``seed`` inside, and are as if untouched outside."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
