"""Images are not blown up far above their own size, unless somebody says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import optuna
import pytest

from biotune_optuna.data.sources.open import open_images
from biotune_optuna.schema import SPEC_KEY
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.setup import own_side, prepare
from biotune_optuna.study.spec import StudySpec
from biotune_optuna.study.study import create_study, load_study
from tests.kit.studies import tiny_spec


def spec(**changes: object) -> StudySpec:
    return tiny_spec(**({"image_size": None} | changes))


def test_small_images_are_trained_small(cache_dir: Path) -> None:
    setup = prepare(spec(), device="cpu", cache_dir=cache_dir)
    assert setup.image_size == setup.spec.size_found == 64  # of 8 pixels; the model's own is 160
    given = prepare(spec(image_size=48), device="cpu", cache_dir=cache_dir)
    assert (given.image_size, given.spec.size_found) == (48, None)


def test_large_images_have_the_models_own_size() -> None:
    pixels = np.zeros((20, 300, 400, 3), dtype=np.uint8)
    source = open_images(pixels, labels=[0, 1] * 10)
    assert own_side(224, source) == 224
    assert own_side(1024, source) == 608


def test_a_study_goes_on_with_its_size(url: str, cache_dir: Path) -> None:
    place = {"storage": url, "name": "s", "device": "cpu", "cache_dir": cache_dir}
    assert create_study(spec(), **place).setup.image_size == 64  # type: ignore[arg-type]
    assert create_study(spec(), **place).setup.image_size == 64  # type: ignore[arg-type]


def test_a_study_of_old_keeps_the_models_own(url: str, cache_dir: Path) -> None:
    """Studies stored nothing of the kind when the model's own size was the rule."""
    old = prepare(spec(size_found=0), device="cpu", cache_dir=cache_dir)
    assert old.image_size == 160
    stored = dataclasses.replace(old.spec, size_found=None).to_dict()
    del stored["size_found"]
    study = optuna.create_study(storage=open_storage(url), study_name="old", direction="maximize")
    study.set_user_attr(SPEC_KEY, {"version": "0.1.0", "spec": stored})
    found = load_study("old", storage=url, device="cpu", cache_dir=cache_dir)
    assert found.setup.image_size == 160
    again = create_study(spec(), storage=url, name="old", device="cpu", cache_dir=cache_dir)
    assert again.setup.image_size == 160


@pytest.mark.parametrize("size", [0, 96])
def test_the_size_found_is_no_identity(size: int) -> None:
    assert not spec().differences(spec(size_found=size))
