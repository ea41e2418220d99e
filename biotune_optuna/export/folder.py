"""Writing and reading the folder of a tuned model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import timm
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import PretrainedCfg

from biotune_optuna._version import __version__
from biotune_optuna.data.preprocessing import Preprocessing as Preprocessing  # noqa: PLC0414 - handed on
from biotune_optuna.errors import BioTuneError, ModelError
from biotune_optuna.export.card import render_card
from biotune_optuna.export.members import MEMBERS, MEMBERS_CONFIG, describe, read, shares_of
from biotune_optuna.export.predict import Predictor
from biotune_optuna.files import check_lookup
from biotune_optuna.finetune.calibration import Calibration
from biotune_optuna.jsonable import read_json
from biotune_optuna.models.blocks import output_layers
from biotune_optuna.models.weights import create_model
from biotune_optuna.names import control_characters
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn


WEIGHTS, CONFIG, LABELS = "model.safetensors", "config.json", "labels.json"
PREPROCESSING, RECIPE, CARD = "preprocessing.json", "recipe.json", "README.md"
ORIGIN, TRAINED_ON = "origin", "trained_on"
CALIBRATION: Final = "calibration.json"
"""Temperatures, of one member (``"single"``) and of all (``"members"``)."""

GRAPH: Final = "model.onnx"
"""The model as an ONNX graph, see `biotune_optuna.export.onnx`."""

OPTIONAL = frozenset({CARD, MEMBERS, MEMBERS_CONFIG, CALIBRATION, GRAPH})
FILES = frozenset({WEIGHTS, CONFIG, LABELS, PREPROCESSING, RECIPE}) | OPTIONAL

# Where the pre-trained weights came from is no property of the tuned ones.
_SOURCE_KEYS = frozenset(
    {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "tag"}
    | {"architecture", "label_names", "label_descriptions", "label_offset", "notes"}
    | {"test_input_size", "test_crop_pct", "pool_size"}
)
# What a folder from elsewhere may not pass to timm: other places to load from.
_FORBIDDEN_ARGS = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
    | {"num_classes", "features_only", "name", "weights", "seed"}
)


def export_model(
    directory: str | Path,
    *,
    model: nn.Module,
    model_name: str,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    recipe: Recipe,
    card: Mapping[str, Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
    origin: str | None = None,
    trained_on: str | None = None,
    members: Sequence[nn.Module] = (),
    weights: Sequence[float] = (),
    calibration: Mapping[str, Calibration] | None = None,
) -> Path:
    """Write a tuned model as a folder in timm's hub layout.

    timm reads the first member; the others lie beside it, as far as they differ from it.

    The folder appears whole or not at all. An earlier export in the same place is replaced, unless
    it has another origin; any other folder with something in it is left alone.

    Args:
        directory: The folder to write.
        model: The network with its tuned weights, on any device; it is not changed.
        model_name: timm's model name, with or without a pre-trained tag.
        classes: Class names in the order of the outputs.
        preprocessing: What the network expects of images.
        recipe: How it was trained.
        card: Facts for the model card, heading -> content; see
            `biotune_optuna.export.card.render_card`.
        model_args: Further arguments that the model was built with (`LoadedModel.model_args`).
        origin: What the model was made of, in a word; None replaces an export of any origin.
        trained_on: `ImageSource.fingerprint` of the images; None where they are not known.
        members: Further networks of the same make; the model predicts the mean of their
            probabilities and those of ``model``.
        weights: How much ``model`` and each of ``members`` count in it; none where all count alike.
        calibration: What its probabilities are tempered by: ``"single"`` of ``model`` alone,
            ``"members"`` of all together; what is absent leaves them as they are.

    Returns:
        The folder.

    Raises:
        ModelError: If the classes do not fit the model, or the model is not one of timm's.
        BioTuneError: If the folder is not ours to replace or cannot be written.
    """
    target = Path(directory)
    _check(model, model_name, classes)
    check_target(target, origin)
    documents = {
        CONFIG: _config(model, model_name, classes, preprocessing, dict(model_args or {}))
        | {k: v for k, v in ((ORIGIN, origin), (TRAINED_ON, trained_on)) if v is not None},
        LABELS: list(classes),
        PREPROCESSING: preprocessing.to_dict(),
        RECIPE: recipe.to_dict(),
    }
    if calibration:
        kinds = {kind: one.to_dict() for kind, one in calibration.items()}
        documents[CALIBRATION] = {"schema_version": 1, **kinds}
    text = render_card(
        model_name=model_name,
        classes=classes,
        preprocessing=preprocessing,
        recipe=recipe,
        facts=card or {},
    )
    try:
        place = target.resolve()  # of "..", the name and the parent are others
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as scratch:
            new = Path(scratch, "new")
            new.mkdir()
            # In plain memory on the CPU; shared tensors are written twice.
            held = model.state_dict().items()
            tensors = {name: one.detach().cpu().contiguous().clone() for name, one in held}
            save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
            if members:
                documents[MEMBERS_CONFIG], others = describe(
                    [model, *members], new / WEIGHTS, weights
                )
                save_file(others, new / MEMBERS, metadata={"format": "pt"})
            for name, content in documents.items():
                written = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
                (new / name).write_text(written, encoding="utf-8")
            (new / CARD).write_text(text, encoding="utf-8")
            # safetensors makes files that only their owner may read, whatever the umask
            for file in new.glob("*.safetensors"):
                file.chmod((new / CARD).stat().st_mode & 0o777)
            check_target(target, origin)  # minutes may have passed since
            _swap(new, place, Path(scratch, "old"))
    except (OSError, SafetensorError) as error:  # the latter is no OSError when the disk is full
        why = getattr(error, "strerror", None) or error
        raise BioTuneError(
            f"cannot write the model to {str(target)!r}: {why}; give another folder"
        ) from error
    return target


def load_exported(
    directory: str | Path, *, device: str | torch.device = "auto", single: bool = False
) -> Predictor:
    """Read a folder that `export_model` wrote.

    Args:
        directory: The folder.
        device: ``auto``, ``cpu``, ``cuda:N`` or ``mps``.
        single: Whether the first member is to predict alone, where there are several.

    Returns:
        The model, ready to predict.

    Raises:
        ModelError: If the folder is not such an export or is damaged. Nothing is unpickled.
    """
    folder = Path(directory)
    for path in (folder, folder / CONFIG):  # a folder that is seen may yet be closed
        check_lookup(path, ModelError)
    if not folder.is_dir():
        raise ModelError(f"no such folder: {str(folder)!r}; give a folder made by biotune export")
    missing = sorted(name for name in FILES - OPTIONAL if not (folder / name).is_file())
    if missing:
        raise ModelError(
            f"{str(folder)!r} is no exported model: {', '.join(missing)} missing; "
            "give a folder made by biotune export"
        )
    config, classes = _read_json(folder / CONFIG, dict), _read_json(folder / LABELS, list)
    for name in classes:
        if not isinstance(name, str) or control_characters(name):
            raise ModelError(f"{LABELS} in {str(folder)!r} holds {name!r}, which is no class name")
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict) or _FORBIDDEN_ARGS & arguments.keys():
        raise ModelError(f"{CONFIG} in {str(folder)!r} holds model_args that are not allowed")
    loaded = create_model(
        str(config.get("architecture")),
        num_classes=max(1, len(classes)),
        weights=folder / WEIGHTS,
        **arguments,
    )
    if loaded.head_is_new:
        raise ModelError(
            f"{LABELS} in {str(folder)!r} names {len(classes)} classes, "
            f"which is not the number in {WEIGHTS}"
        )
    members: list[nn.Module] = []
    weights: tuple[float, ...] = ()
    if not single and any((folder / name).exists() for name in (MEMBERS, MEMBERS_CONFIG)):
        how = _read_json(folder / MEMBERS_CONFIG, dict)
        _, *members = read(folder, how, loaded.model, WEIGHTS)
        weights = shares_of(how, 1 + len(members), folder)
    calibration = None
    if (folder / CALIBRATION).exists():
        kinds = _read_json(folder / CALIBRATION, dict)
        if one := kinds.get("members" if members else "single"):
            calibration = Calibration.from_dict(one, f"{CALIBRATION} in {str(folder)!r}")
    return Predictor(
        loaded.model,
        members=members,
        weights=weights,
        calibration=calibration,
        name=loaded.name,
        classes=[str(name) for name in classes],
        preprocessing=Preprocessing.from_dict(_read_json(folder / PREPROCESSING, dict)),
        recipe=Recipe.from_dict(_read_json(folder / RECIPE, dict)),
        device=device,
        trained_on=config.get(TRAINED_ON),
    )


def _check(model: nn.Module, model_name: str, classes: Sequence[str]) -> None:
    if ":" in model_name or not timm.is_model(model_name):
        raise ModelError(
            f"{model_name!r} is not a model of timm, so timm could not load the export"
        )
    outputs = {int(layer.weight.shape[0]) for layer in output_layers(model).values()}  # type: ignore[index]
    if outputs != {len(classes)}:
        has = " and ".join(map(str, sorted(outputs))) or "no"
        raise ModelError(f"{len(classes)} class names do not fit a model with {has} outputs")


def check_target(target: Path, origin: str | None = None) -> None:
    """Refuses anything that is not a new name, an empty folder or an earlier export.

    Args:
        target: The folder.
        origin: What the new model is made of; an export of another origin is refused too.

    Raises:
        BioTuneError: If an export may not, or cannot, be put in its place.
    """
    check_lookup(target)
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_dir():
        raise BioTuneError(f"{str(target)!r} exists and is not a folder; give another name")
    try:
        found = {entry.name for entry in target.iterdir()}
    except OSError as error:
        raise BioTuneError(f"cannot read {str(target)!r}: {error.strerror}") from error
    foreign = sorted(found - FILES)
    if found and (foreign or not {WEIGHTS, PREPROCESSING, RECIPE} <= found):
        what = f"holds {', '.join(foreign[:3])}" if foreign else "is no earlier export"
        raise BioTuneError(f"folder {str(target)!r} {what}; give a new or empty folder")
    if found and origin is not None and _origin(target) not in (None, origin):
        raise BioTuneError(
            f"folder {str(target)!r} holds a model of other images or of another network; give "
            "another folder, or the study another name"
        )
    if target.is_mount() or target.samefile("."):
        raise BioTuneError(
            f"folder {str(target)!r} is in use, as a mount point or the current folder, and cannot "
            "be replaced; give a new folder in it"
        )


def _origin(target: Path) -> Any:
    """Return what an earlier export was made of; None where it does not say."""
    try:
        return _read_json(target / CONFIG, dict).get(ORIGIN)
    except ModelError:
        return None


def _swap(new: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise


def _config(
    model: nn.Module,
    model_name: str,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    model_args: dict[str, Any],
) -> dict[str, Any]:
    """Timm's hub configuration, readable by every version since 1.0."""
    source = getattr(model, "pretrained_cfg", None) or {}
    known = {field.name for field in fields(PretrainedCfg)} - _SOURCE_KEYS
    kept = {key: value for key, value in source.items() if key in known and value is not None}
    pretrained = {
        **kept,
        "tag": "biotune",
        "custom_load": False,
        "input_size": [3, preprocessing.size, preprocessing.size],
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_pct,
        "crop_mode": "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "num_classes": len(classes),
    }
    config: dict[str, Any] = {
        "architecture": model_name.partition(".")[0],
        "num_classes": len(classes),
        "num_features": getattr(model, "num_features", None),
        "label_names": list(classes),
        "pretrained_cfg": pretrained,
        "biotune_optuna": __version__,
    }
    if model_args:
        config["model_args"] = model_args
    try:
        json.dumps(config)
    except (TypeError, ValueError) as error:
        raise ModelError(f"model arguments cannot be written as JSON: {error}") from error
    return config


def _read_json(path: Path, kind: type) -> Any:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error}") from None
    if not isinstance(content, kind):
        raise ModelError(f"{str(path)!r} holds no JSON {kind.__name__}")
    return content
