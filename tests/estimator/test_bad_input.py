"""What BioTuneClassifier says to bad images, labels and parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.exceptions import NotFittedError

from biotune_optuna import BioTuneClassifier, BioTuneError
from biotune_optuna.finetune.trainer import Trainer
from tests.kit.estimator import as_files, tiny


class NA:
    """As pandas.NA is."""

    def __ne__(self, other: object) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None


ZEROS = np.zeros((10, 8, 8), np.uint8)
HALVES = [0, 1] * 5

BAD = {
    "rows": (np.zeros((10, 64)), HALVES, r"shape \(10, 64\)"),
    "five channels": (np.zeros((10, 8, 8, 5)), HALVES, "1, 3 or 4 channels"),
    "no images": (ZEROS[:0], [], r"no images"),
    "too few labels": (ZEROS, HALVES[:-1], "10 images and y 9 labels"),
    "no labels": (ZEROS, None, "requires y"),
    "one class": (ZEROS, [1] * 10, "1 class"),
    "no label": (ZEROS, ["b", "a", None, *"abababa"], "y: no label at position 2"),
    "NaN as label": (ZEROS, np.array([*"ababab", np.nan, *"aba"], object), "label at position 6"),
    "NaN among numbers": (ZEROS, [1.0, np.nan, *HALVES[:8]], "no label at position 1"),
    "NA": (ZEROS, [*"ab", NA(), *"abababa"], "no label at position 2"),
    "numbers and text": (ZEROS, [1, "1"] * 5, "1 at position 0 and '1' at position 1"),
    "regression": (ZEROS, np.linspace(0, 1, 10), "continuous"),
    "NaN": (np.full((10, 8, 8), np.nan), HALVES, "NaN"),
    "too bright": (np.full((10, 8, 8), 300.0), HALVES, "300"),
    "negative": (np.full((10, 8, 8), -1), HALVES, "-1"),
    "one picture": (Image.new("RGB", (8, 8)), HALVES, "X is one picture"),
    "pixels of one picture": (np.zeros((10, 16, 3)), HALVES, r"give image\[None"),
    "text": (np.full((10, 8, 8), "a"), HALVES, "uint8 or floats"),
    "a number": (3, HALVES, "X is a int"),
}


@pytest.mark.parametrize(("images", "labels", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_clear_line(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny().fit(images, labels)
    assert "\n" not in str(caught.value)


def test_bad_files_are_named(
    fitted: BioTuneClassifier, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    paths = as_files(digits[0][:6], tmp_path / "images")
    Path(paths[4]).write_bytes(Path(paths[4]).read_bytes()[:40])
    with pytest.raises(BioTuneError, match=r"004\.png"):
        tiny().fit(paths, HALVES[:6])
    with pytest.raises(ValueError, match=r"004\.png"):
        fitted.predict(paths)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet_50"}, "resnet50"),
        ({"n_trials": 0, "study_params": {"lr": "auto"}}, "n_trials 0"),
        ({"timeout": -1.0, "study_params": {"lr": "auto"}}, "timeout -1.0 is too short"),
        ({"n_trials": None}, "n_trials, timeout or both"),
        ({"metric": "beauty"}, "beauty"),
        ({"confirm": {"top_k": 1}}, "confirm .* neither true, false nor a ConfirmPlan"),
        ({"study_params": {"seeds": 3}}, "'seeds', which is no field of StudySpec"),
        ({"study_params": {"model": "x"}}, "'model', which StudySpec gets"),
        ({"train_params": {"epochs": 3}}, "'epochs', which TrainSettings gets"),
        ({"storage": "sqlite:////nowhere/at/all.db"}, "/nowhere"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_parameters_are_one_clear_line_before_anything_is_trained(
    changes: dict[str, Any],
    message: str,
    digits: tuple[np.ndarray, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr(Trainer, "fit", refuse)
    with pytest.raises(BioTuneError, match=message) as caught:
        tiny(**changes).fit(*digits)
    assert "\n" not in str(caught.value)


def test_groups_are_heeded_with_images_in_memory(digits: tuple[np.ndarray, np.ndarray]) -> None:
    classifier = BioTuneClassifier("test_efficientnet", study_params={"group_regex": "("})
    with pytest.raises(BioTuneError, match="no regular expression"):
        classifier.fit(*digits)


def test_bad_images_are_skipped_when_asked(tmp_path: Path) -> None:
    files = []
    for i in range(24):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(np.full((8, 8), 10 * i, dtype=np.uint8)).save(files[-1])
    files[5].write_bytes(b"no picture")
    labels = [i % 2 for i in range(24)]
    with pytest.raises(BioTuneError, match=r"5\.png"):
        tiny(n_trials=1).fit(files, labels)
    tiny(n_trials=1, study_params={"n_seeds": 1, "lr": (1e-3, 3e-2), "skip_bad_images": True}).fit(
        files, labels
    )


def test_unfitted() -> None:
    with pytest.raises(NotFittedError):
        tiny().predict(ZEROS)
    with pytest.raises(NotFittedError):
        tiny().save("anywhere")
