"""A fitted classifier as a folder: JSON and safetensors, nothing that runs when it is read."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from biotune_optuna._version import __version__
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.record import Confirmation
from biotune_optuna.data.sources.arrays import label_names
from biotune_optuna.errors import BioTuneError, ModelError
from biotune_optuna.export import Predictor, export_model, load_exported
from biotune_optuna.files import replace_text
from biotune_optuna.jsonable import plain_value, read_json

SCHEMA_VERSION = 1
ESTIMATOR, MODEL = "estimator.json", "model"
_NOT_SAVED = frozenset({"callbacks", "storage", "cache_dir", "device"})


def write(folder: Path, exported: Predictor, content: Mapping[str, Any]) -> Path:
    """Write ``folder/model``, an exported model, and ``folder/estimator.json`` with the rest.

    Raises:
        BioTuneError: If the folder cannot be written or holds something else.
    """
    foreign = {p.name for p in folder.iterdir()} - {ESTIMATOR, MODEL} if folder.is_dir() else set()
    if foreign:
        raise BioTuneError(
            f"folder {str(folder)!r} holds {min(foreign)!r}; give a new or empty folder"
        )
    whole = {"schema_version": SCHEMA_VERSION, "version": __version__, **content}
    text = json.dumps(whole, indent=1, default=_number) + "\n"  # before anything is written
    assert exported.recipe is not None
    kind, trusted = "members" if exported.members else "single", exported.calibration
    export_model(
        folder / MODEL,
        model=exported.model,
        members=exported.members,
        weights=exported.weights,
        calibration={kind: trusted} if trusted else None,
        model_name=exported.name,
        classes=exported.classes,
        preprocessing=exported.preprocessing,
        recipe=exported.recipe,
        model_args=content["model_args"],
        card={
            "Metrics": f"Best validation score of the search, which tends to be too high: "
            f"{content['best_score']:.4f} ({content['params']['metric']}). "
            "No images were set aside for a test.",
        },
    )
    replace_text(folder / ESTIMATOR, text)
    return folder


def _number(value: object) -> object:
    """Return a NumPy number, as parameter grids have them, or a path as a plain value."""
    if isinstance(value, (np.generic, os.PathLike)):
        return plain_value(value)
    raise BioTuneError(f"{value!r} cannot be saved; a classifier's arguments must be plain values")


def read(folder: Path, device: str) -> tuple[dict[str, Any], Predictor]:
    """Read what `write` wrote; ``params`` and ``classes`` come back as they were given.

    Raises:
        ModelError: If the folder is no such classifier, is damaged or of another schema.
    """
    path = folder / ESTIMATOR
    try:
        content = read_json(path)
        version = content["schema_version"]
        if version != SCHEMA_VERSION:
            raise ModelError(
                f"{str(path)!r} has the schema version {version!r}; this version reads "
                f"{SCHEMA_VERSION}"
            )
        stored = content["classes"]
        content["classes"] = np.array(stored["values"], dtype=np.dtype(stored["dtype"]))
        content["params"] = _from_plain(content["params"])
        content["best_score"] = float(content["best_score"])
        content["model_args"] = dict(content["model_args"])
        if content["confirmation"] is not None:
            content["confirmation"] = Confirmation.from_dict(content["confirmation"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{str(path)!r} cannot be read ({type(error).__name__}: {error}); give a folder that "
            "BioTuneClassifier.save wrote"
        ) from None
    exported = load_exported(folder / MODEL, device=device)
    if label_names(content["classes"]) != exported.classes:
        raise ModelError(f"{str(path)!r} does not fit the model beside it")
    return content, exported


def plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return constructor arguments as JSON; what belongs to a place or process is left out."""
    data = {key: value for key, value in params.items() if key not in _NOT_SAVED}
    if isinstance(data["confirm"], ConfirmPlan):
        data["confirm"] = dataclasses.asdict(data["confirm"])
    if not isinstance(data["random_state"], (int, type(None))):
        data["random_state"] = None
    for key in ("train_params", "study_params"):
        data[key] = None if data[key] is None else dict(data[key])
    return data


def _from_plain(data: Mapping[str, Any]) -> dict[str, Any]:
    params = dict(data)
    if isinstance(params["confirm"], dict):
        plan = params["confirm"]
        lists = {key: tuple(value) for key, value in plan.items() if isinstance(value, list)}
        params["confirm"] = ConfirmPlan(**(plan | lists))
    return params
