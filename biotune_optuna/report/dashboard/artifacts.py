"""What trials and studies carry for the dashboard: tables, pictures, files."""

from __future__ import annotations

import csv
import io
import json
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from biotune_optuna.errors import StorageError
from biotune_optuna.report.view import as_view
from biotune_optuna.schema import ARTIFACT_PREFIX, DASHBOARD_ARTIFACT_PREFIX, RECIPE_KEY

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.artifacts import FileSystemArtifactStore
    from optuna.trial import FrozenTrial


MAX_PICTURE_CLASSES = 60


def artifact_store(folder: str | Path) -> FileSystemArtifactStore:
    """Open a folder of artifacts, made when it is missing.

    Args:
        folder: The folder; workers on several machines need a shared one.

    Raises:
        StorageError: The folder cannot be made.
    """
    from biotune_optuna.report.dashboard.files import OwnFiles

    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"artifact folder {str(folder)!r} cannot be made ({error.strerror});"
            " give a folder you may write to"
        ) from error
    return OwnFiles(path)


def attach_trial_artifacts(
    study: Study,
    trial: Trial | FrozenTrial,
    store: FileSystemArtifactStore,
    *,
    confusion: Sequence[Sequence[int]] | None = None,
    classes: Sequence[str] = (),
) -> list[str]:
    """Attach curves (CSV), recipe (JSON) and confusion matrix (PNG) to a running trial.

    To be called before the trial is told: a finished trial takes no attributes any more. The bytes
    are written before the link to them, so a crash between the two leaves no dangling link.

    Args:
        study: The trial's study.
        trial: A running trial whose attributes and intermediate values are stored.
        store: Where the bytes go.
        confusion: Counts, rows the true classes; None attaches no picture.
        classes: Names of the classes.

    Returns:
        Names of the attached files.
    """
    stored = study._storage.get_trial(trial._trial_id)
    files: dict[str, tuple[bytes, str]] = {}
    if stored.intermediate_values:
        table = curves_csv(study, stored).encode()
        files["curves.csv"] = (table, "text/csv")
    recipe = stored.user_attrs.get(RECIPE_KEY)
    if isinstance(recipe, Mapping):
        text = json.dumps({"schema_version": 1, "trial": stored.number, **recipe}, indent=2)
        files["recipe.json"] = (text.encode(), "application/json")
    if confusion is not None:
        files["confusion.png"] = (confusion_png(confusion, classes), "image/png")
    for name, (content, mimetype) in files.items():
        identity, meta = _write(store, name, content, mimetype)
        study._storage.set_trial_system_attr(trial._trial_id, ARTIFACT_PREFIX + identity, meta)
    return list(files)


def attach_model(
    study: Study, store: FileSystemArtifactStore, folder: str | Path, *, trial: int | None = None
) -> str:
    """Attach the exported model to the study and, when one is named, to the winning trial.

    An earlier model of the same content is not attached twice.

    Args:
        study: The study.
        store: Where the bytes go.
        folder: The exported model.
        trial: Number of the winning trial; it is finished, so the link is kept by the study.

    Returns:
        The artifact's id.
    """
    content = _zip(Path(folder))
    storage, study_id = study._storage, study._study_id
    identity = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{study_id}:{sha256(content).hexdigest()}"))
    attrs = storage.get_study_system_attrs(study_id)
    keys = [ARTIFACT_PREFIX + identity]
    if trial is not None:
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial)
        keys.append(f"{DASHBOARD_ARTIFACT_PREFIX}{trial_id}:{identity}")
    if all(key in attrs for key in keys):
        return identity
    _, meta = _write(store, "model.zip", content, "application/zip", identity=identity)
    for key in keys:
        storage.set_study_system_attr(study_id, key, meta)
    return identity


def curves_csv(study: Study, trial: FrozenTrial) -> str:
    """Learning curves as a table: run, epoch, score; runs and epochs from 1.

    Args:
        study: The trial's study.
        trial: A trial with intermediate values.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["run", "epoch", "score"])
    for number, run in enumerate(as_view(study).curves(trial), 1):
        writer.writerows([number, epoch, f"{score:.6g}"] for epoch, score in run)
    return stream.getvalue()


def confusion_png(confusion: Sequence[Sequence[int]], classes: Sequence[str] = ()) -> bytes:
    """Return a confusion matrix as a picture: counts, shaded by the share of the true class.

    Args:
        confusion: Counts, rows the true classes.
        classes: Their names; empty for numbers.
    """
    n = len(confusion)
    cell = 34 if n <= 12 else 24 if n <= 25 else 14 if n <= MAX_PICTURE_CLASSES else 4
    font = ImageFont.load_default(size=max(9, cell // 3))
    names = [str(c) for c in classes] if len(classes) == n else [str(i) for i in range(n)]
    names = [name if len(name) <= 18 else f"{name[:16]}…" for name in names]
    width = int(max(font.getlength(name) for name in names))
    margin = width + 14 if n <= MAX_PICTURE_CLASSES else 24
    end = margin + n * cell
    counts = np.array(confusion, dtype=np.float64)
    shares = counts / np.maximum(1.0, counts.sum(axis=1, keepdims=True))
    shades = np.rint(255 + shares[..., None] * (np.array([8, 48, 107]) - 255)).astype(np.uint8)
    picture = Image.new("RGB", (end + 30, end + 30), "white")
    picture.paste(Image.fromarray(shades).resize((n * cell, n * cell), 0), (margin, margin))
    pen = ImageDraw.Draw(picture)
    for i in range(n + 1):
        at = margin + i * cell - 1
        pen.line([(margin, at), (end, at)], "#d9dee4")
        pen.line([(at, margin), (at, end)], "#d9dee4")
    if n <= 25:
        for (i, j), share in np.ndenumerate(shares):
            if confusion[i][j]:
                centre = (margin + (j + 0.5) * cell - 0.5, margin + (i + 0.5) * cell - 0.5)
                ink = "white" if share > 0.5 else "#1f2933"
                pen.text(centre, str(confusion[i][j]), ink, font, anchor="mm")
    if n <= MAX_PICTURE_CLASSES:
        for i, name in enumerate(names):
            pen.text((margin - 6, margin + (i + 0.5) * cell), name, "#1f2933", font, anchor="rm")
            strip = Image.new("RGB", (margin - 6, cell), "white")
            ImageDraw.Draw(strip).text((0, cell / 2), name, "#1f2933", font, anchor="lm")
            picture.paste(strip.rotate(90, expand=True), (margin + i * cell, 0))
    pen.text((margin, end + 8), "rows: true, columns: predicted", "#52606d", font)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _write(
    store: FileSystemArtifactStore,
    name: str,
    content: bytes,
    mimetype: str,
    *,
    identity: str | None = None,
) -> tuple[str, str]:
    """Store bytes; return their id and the metadata as Optuna keeps it."""
    identity = identity or str(uuid.uuid4())
    store.write(identity, io.BytesIO(content))
    meta = {"artifact_id": identity, "filename": name, "mimetype": mimetype, "encoding": None}
    return identity, json.dumps(meta)


def _zip(folder: Path) -> bytes:
    """Return the folder's files, with fixed times so that equal models are equal bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
    return stream.getvalue()
