"""The ways in which images and labels come to BioTuneClassifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.datasets import load_digits

from biotune_optuna import BioTuneClassifier, open_images
from biotune_optuna.estimator.inputs import images_of
from tests.kit.estimator import as_files, tiny
from tests.kit.images import digit_folder


class Series:
    """As pandas.Series is."""

    def __init__(self, values: list[str]) -> None:
        self.to_numpy = lambda: np.array(values, object)


WAYS = {
    "channel last": lambda x, _: x[..., np.newaxis],
    "rgb": lambda x, _: np.repeat(x[..., np.newaxis], 3, axis=3),
    "channel first": lambda x, _: x[:, np.newaxis],
    "float in 0-1": lambda x, _: x / 255,
    "float in 0-255": lambda x, _: x.astype(np.float32),
    "int64": lambda x, _: x.astype(np.int64),
    "tensor": lambda x, _: torch.from_numpy(x).float().unsqueeze(1) / 255,
    "pictures": lambda x, _: [Image.fromarray(image) for image in x],
    "files": as_files,
    "array of files": lambda x, folder: np.array(as_files(x, folder)),
    "series of files": lambda x, folder: Series(as_files(x, folder)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_ways_in_agree(
    way: Any, fitted: BioTuneClassifier, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """The same images give the same predictions, however they come in, both to fit and predict."""
    images, labels = digits
    given = way(images, tmp_path / "images")
    one_batch = {"n_trials": 1, "batch_size": len(images)}  # files may come in another order
    classifier = tiny(**one_batch).fit(given, labels)
    assert_array_equal(classifier.predict_proba(given), classifier.predict_proba(images))
    plain = tiny(**one_batch).fit(images, labels)
    assert_allclose(classifier.predict_proba(given), plain.predict_proba(images), atol=1e-3)


def test_scale_of_floats_is_remembered(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """A dark image among [0, 255] floats is not taken for a bright one among [0, 1]."""
    images, labels = digits
    classifier = tiny(n_trials=1).fit(images.astype(float), labels)
    dark = (images[:3] // 255).astype(float)
    assert_array_equal(
        classifier.predict_proba(dark), classifier.predict_proba(dark.astype(np.uint8))
    )
    unit = tiny(n_trials=1).fit(images / 255, labels)
    with pytest.raises(ValueError, match="same scale in fit and predict"):
        unit.predict(images.astype(float))


def test_source_with_its_own_labels_and_parts(tmp_path: Path) -> None:
    source = open_images(digit_folder(tmp_path / "digits", per_class=10, classes=2))
    classifier = tiny(n_trials=1).fit(source)
    assert_array_equal(classifier.classes_, ["digit-0", "digit-1"])
    assert classifier.predict(source).shape == (20,)
    same = tiny(n_trials=1).fit(tmp_path / "digits")
    assert_array_equal(same.predict_proba(source), classifier.predict_proba(source))


def test_label_types(tmp_path: Path) -> None:
    images = np.rint(load_digits(n_class=2).images[:40] * 255 / 16).astype(np.uint8)
    target = load_digits(n_class=2).target[:40]
    for labels in (target * 10 - 5, target.astype(bool), target.astype(float), target.tolist()):
        classifier = tiny(n_trials=1).fit(images, labels)
        assert_array_equal(classifier.classes_, np.unique(labels))
        assert classifier.predict(images).dtype == np.unique(labels).dtype
        loaded = BioTuneClassifier.load(classifier.save(tmp_path / str(np.asarray(labels).dtype)))
        assert_array_equal(loaded.classes_, classifier.classes_)


def test_fractions_are_refused_after_whole_numbers(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    classifier = tiny(n_trials=1).fit(images, labels)
    with pytest.raises(ValueError, match="at most 1"):
        classifier.predict(images / 255)
    with pytest.warns(UserWarning, match="nearly black"):
        next(images_of(images / 255, 1.0))
    assert_array_equal(classifier.predict(images.astype(float)), classifier.predict(images))
