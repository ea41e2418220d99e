"""Saving, loading and pickling a classifier."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.testing import assert_array_equal

from biotune_optuna import BioTuneClassifier, BioTuneError
from tests.kit.estimator import tiny
from tests.kit.images import digit_folder


def test_save_and_load(
    fitted: BioTuneClassifier, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    folder = fitted.save(tmp_path / "classifier")
    assert fitted.save(folder) == folder  # once more into the same place
    loaded = BioTuneClassifier.load(folder, device="cpu")
    assert_array_equal(loaded.predict_proba(digits[0]), fitted.predict_proba(digits[0]))
    assert_array_equal(loaded.classes_, fitted.classes_)
    assert loaded.recipe_ == fitted.recipe_
    assert loaded.confirmation_ is not None
    assert fitted.confirmation_ is not None
    kept, known = (one.confirmation_.to_dict() for one in (loaded, fitted))
    assert json.dumps(kept) == json.dumps(known)  # a probe has no value of a search, which is NaN
    assert loaded.get_params() == fitted.get_params()
    assert not list(folder.rglob("*.pkl"))
    model = timm.create_model(f"local-dir:{folder / 'model'}", pretrained=True)
    assert model.num_classes == 3


def test_classes_in_another_order_than_that_of_text_can_be_loaded(tmp_path: Path) -> None:
    digit_folder(tmp_path, per_class=8, classes=2)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("*/*.png"))
    rows = [f"{path},{9 + int(path.parent.name == 'digit-1')}" for path in files]
    (tmp_path / "digits.csv").write_text("\n".join(["path,label", *rows]))
    classifier = tiny(n_trials=1).fit(tmp_path / "digits.csv")
    loaded = BioTuneClassifier.load(classifier.save(tmp_path / "saved"))
    assert loaded.classes_.tolist() == ["9", "10"]


def test_save_keeps_no_secret(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    classifier = tiny(n_trials=1).fit(*digits)
    classifier.set_params(storage="postgresql://me:s3cret@host/db")
    folder = classifier.save(tmp_path / "classifier")
    assert "s3cret" not in (folder / "estimator.json").read_text()


def test_load_refuses_what_is_damaged(fitted: BioTuneClassifier, tmp_path: Path) -> None:
    folder = fitted.save(tmp_path / "classifier")
    path = folder / "estimator.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"schema_version": 99}))
    with pytest.raises(BioTuneError, match="schema version 99"):
        BioTuneClassifier.load(folder)
    path.write_text(json.dumps(content | {"params": {"modell": "x"}}))
    with pytest.raises(BioTuneError, match="cannot be read"):
        BioTuneClassifier.load(folder)
    with pytest.raises(BioTuneError, match=r"BioTuneClassifier\.save"):
        BioTuneClassifier.load(tmp_path / "nowhere")


def test_numpy_numbers_of_a_grid_can_be_saved(fitted: BioTuneClassifier, tmp_path: Path) -> None:
    copied = copy.copy(fitted)
    copied.n_trials = np.int64(2)
    copied.save(tmp_path / "grid")
    assert BioTuneClassifier.load(tmp_path / "grid").n_trials == 2
    copied.weights = Path("/models/w.safetensors")
    copied.save(tmp_path / "path")
    assert BioTuneClassifier.load(tmp_path / "path").weights == "/models/w.safetensors"
    copied.n_trials = object()
    with pytest.raises(BioTuneError, match="must be plain values"):
        copied.save(tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


def test_save_leaves_foreign_folders_alone(fitted: BioTuneClassifier, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BioTuneError, match=r"holds 'thesis\.tex'"):
        fitted.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_pickle_in_another_process(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    classifier = tiny(storage=f"sqlite:///{tmp_path}/study.db").fit(*digits)
    (tmp_path / "classifier.pkl").write_bytes(pickle.dumps(classifier))
    np.save(tmp_path / "images.npy", digits[0])
    code = (
        "import pickle, numpy as np, torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "c = pickle.load(open('classifier.pkl', 'rb'))\n"
        "np.save('found.npy', c.predict_proba(np.load('images.npy')))\n"
        "print(len(c.study_.trials), c.study_.best_value)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["2", str(classifier.best_score_)]
    assert_array_equal(np.load(tmp_path / "found.npy"), classifier.predict_proba(digits[0]))
