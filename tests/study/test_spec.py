"""What is identity, what may change, and which runs follow from a spec."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from biotune_optuna._version import __version__
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.errors import BioTuneError, StudyError
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.recipe import BlockRecipe
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.setup import Setup
from biotune_optuna.study.spec import StudySpec, default_name
from biotune_optuna.study.study import study_of
from tests.kit.studies import tiny_spec


def test_a_spec_survives_json() -> None:
    spec = tiny_spec(lr=(1e-3, 1e-2), fingerprints={"data": "ab"}, train_size=None)
    assert StudySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    paper = StudySpec.paper(model="resnet50", data="flowers")
    assert StudySpec.from_dict(json.loads(json.dumps(paper.to_dict()))) == paper


def test_numbers_of_numpy_and_paths_become_plain() -> None:
    spec = tiny_spec(
        image_size=np.int64(32),
        lr=[np.float64(1e-3), np.float32(0.5)],
        racing=np.True_,
        weights=Path("/models/w.safetensors"),
        data=Path("digits"),
    )
    plain = tiny_spec(lr=(1e-3, 0.5), weights="/models/w.safetensors", data="./digits")
    assert json.dumps(spec.to_dict()) == json.dumps(plain.to_dict())
    plan = ConfirmPlan(top_k=np.int64(2), rates=np.logspace(-4, -2, 3))
    assert json.loads(json.dumps(dataclasses.asdict(plan)))["rates"] == [1e-4, 1e-3, 1e-2]


def test_a_number_of_trials_of_numpy_can_be_stored(setup: Setup, tmp_path: Path) -> None:
    study = study_of(setup, storage=open_storage(f"sqlite:///{tmp_path}/s.db"), name="s")
    assert study.search(np.int64(1)).total == 1


def test_a_field_of_a_later_version_is_named() -> None:
    with pytest.raises(StudyError, match="'colour'"):
        StudySpec.from_dict(tiny_spec().to_dict() | {"colour": 1})


def test_identity_differences_are_named_and_places_are_none() -> None:
    spec = tiny_spec()
    assert spec.differences(tiny_spec(data="/elsewhere/digits", weights="hub")) == []
    assert spec.differences(tiny_spec(seed=3)) == ["seed: 0, not 3"]
    other = tiny_spec(train=TrainSettings(epochs=9, batch_size=20))
    assert spec.differences(other) == ["train.epochs: 2, not 9"]
    assert tiny_spec(fingerprints={"data": "a"}).differences(
        tiny_spec(fingerprints={"data": "b"})
    ) == ["fingerprints.data: 'a', not 'b'"]


def test_every_slot_has_seeds_of_its_own_on_the_same_folds() -> None:
    spec = tiny_spec(n_seeds=3, n_folds=2)
    slots = [(0, 0), (0, 1), (1, 0), (1, 7), (1, -1), (1, -2)]
    runs = [spec.search_runs(generation=g, index=i) for g, i in slots]
    assert all([run.fold for run in one] == [0, 1, 0, 1, 0, 1] for one in runs)
    assert len({run.seed for one in runs for run in one}) == 6 * len(slots)
    assert spec.search_runs(generation=1, index=7, repeat=1) == runs[3]  # again, in its own slot


def test_a_study_made_before_trials_had_seeds_of_their_own_keeps_its_one() -> None:
    new = tiny_spec()
    old = new.to_dict()
    del old["own_seeds"]
    kept = StudySpec.from_dict(old)
    assert new.own_seeds
    assert not kept.own_seeds
    assert kept.differences(new) == []
    assert kept.search_runs(generation=3, index=2) == kept.search_runs()
    assert not StudySpec.paper(model="resnet50", data="flowers").own_seeds


def test_without_own_seeds_all_genomes_see_the_same_runs_and_repeats_get_their_own() -> None:
    spec = tiny_spec(n_seeds=3, n_folds=2, own_seeds=False)
    runs = spec.search_runs()
    assert [run.fold for run in runs] == [0, 1, 0, 1, 0, 1]
    assert [run.index for run in runs] == list(range(6))
    assert len({run.seed for run in runs}) == 6
    assert spec.search_runs(generation=5, index=3) == runs
    again = {run.seed for run in spec.search_runs(repeat=1)}
    assert not again & {run.seed for run in runs}


def test_the_paper_trains_a_generation_on_one_fold() -> None:
    spec = StudySpec.paper(model="resnet50", data="flowers")
    assert [run.fold for run in spec.search_runs(generation=3)] == [1, 1, 1]
    assert [run.fold for run in spec.search_runs(generation=4)] == [0, 0, 0]


def test_confirmation_never_uses_a_seed_of_the_search() -> None:
    spec = tiny_spec(n_seeds=50)
    search = {run.seed for r in range(5) for run in spec.search_runs(repeat=r)}
    search |= {run.seed for i in range(-5, 40) for run in spec.search_runs(index=i)}
    fresh = {run.seed for run in spec.confirm_runs(50)} | {*spec.final_seeds(3)}
    assert len(fresh) == 53
    assert not search & fresh


def test_other_files_are_named_with_the_cure(setup: Setup, tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    study_of(setup, storage=storage, name="s")
    fingerprints = {**setup.spec.fingerprints, "data": "d", "splits": "s"}
    elsewhere = dataclasses.replace(setup.spec, fingerprints=fingerprints)
    with pytest.raises(StudyError, match="not 'd'; the files found here are not") as caught:
        study_of(dataclasses.replace(setup, spec=elsewhere), storage=storage, name="s")
    assert "fingerprints.data" in str(caught.value)
    assert "splits" not in str(caught.value)
    other = dataclasses.replace(setup.spec, seed=7)
    with pytest.raises(StudyError, match="seed: 0, not 7; give the same values"):
        study_of(dataclasses.replace(setup, spec=other), storage=storage, name="s")


@pytest.mark.parametrize("kind", ["study.db", "study.log"])
def test_of_two_who_begin_a_study_at_once_the_second_is_told(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    other = dataclasses.replace(setup, spec=dataclasses.replace(setup.spec, seed=7))
    slow, fast = open_storage(tmp_path / kind), open_storage(tmp_path / kind)
    look = slow.get_all_trials

    def look_late(*args: Any, **options: Any) -> list[optuna.trial.FrozenTrial]:
        monkeypatch.undo()
        found = look(*args, **options)
        study_of(other, storage=fast, name="s")
        return found

    monkeypatch.setattr(slow, "get_all_trials", look_late)
    with pytest.raises(StudyError, match="seed: 7, not 0"):
        study_of(setup, storage=slow, name="s")
    study_of(other, storage=slow, name="s")


def test_the_study_of_another_major_version_is_refused(setup: Setup, tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    study = study_of(setup, storage=storage, name="s").study
    stored = study.user_attrs["biotune"]
    major, rest = stored["version"].split(".", 1)
    study.set_user_attr("biotune", {**stored, "version": f"{major}.99.{rest}"})
    study_of(setup, storage=storage, name="s")
    study.set_user_attr("biotune", {**stored, "version": f"{int(major) + 1}.{rest}"})
    with pytest.raises(StudyError, match=f"made by version {int(major) + 1}"):
        study_of(setup, storage=storage, name="s")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_seeds": 0}, "n_seeds 0"),
        ({"n_folds": 1, "scheme": "kfold"}, "n_folds 1"),
        ({"model": ["resnet18", "resnet50"]}, "is no name; give one architecture"),
        ({"max_blocks": 2}, "max_blocks 2 is too small; give at least 3"),
        ({"image_size": 4}, "image_size 4"),
        ({"scheme": "loo"}, "'loo'"),
        ({"preset": "best"}, "'best'"),
        ({"val_fraction": 1.0}, "val_fraction 1.0"),
        ({"seed": -1}, "seed -1"),
        (
            {"seed": 2**63},
            "seed 9223372036854775808 is too large; give at most 9223372036854775807",
        ),
        ({"preset": "paper", "scheme": "kfold", "n_folds": 2}, "preset 'paper'"),
    ],
)
def test_bad_values_are_named(changes: dict, message: str) -> None:
    with pytest.raises(BioTuneError, match=message):
        tiny_spec(**changes)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("/home/me/My Flowers/", "My-Flowers-resnet50"),
        ("flowers.csv", "flowers-resnet50"),
        ("torch/cifar10", "cifar10-resnet50"),
        (r"C:\images\bees", "bees-resnet50"),
    ],
)
def test_names_are_made_of_data_and_model(data: str, name: str) -> None:
    assert default_name("resnet50", data) == name


def test_a_study_of_an_early_version_opens_and_still_tells_other_images(
    setup: Setup, tmp_path: Path
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    early = {**setup.spec.fingerprints, "data": setup.source.early_fingerprint}
    spec = dataclasses.replace(setup.spec, fingerprints=early)
    study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
    study.set_user_attr("biotune", {"version": __version__, "spec": spec.to_dict()})
    opened = study_of(setup, storage=storage, name="s")
    assert opened.spec.fingerprints == early  # what exports and reports name stays the same
    assert study.user_attrs["biotune"]["spec"]["fingerprints"] == early
    other = copy.copy(setup.source)
    other.content_hashes = ("else", *other.content_hashes[1:])
    other.__dict__.pop("early_fingerprint", None)
    with pytest.raises(StudyError, match=r"fingerprints\.data"):
        study_of(dataclasses.replace(setup, source=other), storage=storage, name="s")


def test_another_order_of_the_classes_is_another_study(setup: Setup, tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    study_of(setup, storage=storage, name="s")
    other = copy.copy(setup.source)
    other.classes, other.labels = other.classes[::-1], len(other.classes) - 1 - other.labels
    other.__dict__.pop("fingerprint", None)
    found = {**setup.spec.fingerprints, "data": other.fingerprint}
    spec = dataclasses.replace(setup.spec, fingerprints=found)
    with pytest.raises(StudyError, match="classes come in another order"):
        study_of(dataclasses.replace(setup, spec=spec), storage=storage, name="s")


def test_genes_are_searched_beside_blocks_and_rates():
    spec = StudySpec(model="resnet50", data="d", genes=("mode", "augment", "length"), mirror=True)
    space = spec.space([BlockRecipe(name, 1.0) for name in ("stem", "body", "head")])
    assert space.modes
    assert space.training == {
        "augment": ("none", "crop", "trivial-noflip", "crop-flip", "trivial"),
        "length": (1.0, 0.5, 2.0),
    }
    assert spec.most_epochs == 2 * spec.train.epochs
    assert StudySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    plain = StudySpec(model="resnet50", data="d")
    assert "augment" in str(spec.differences(plain))
    assert plain.most_epochs == plain.train.epochs


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"genes": ("colour",)}, "gene 'colour' is unknown; choose among mode, augment"),
        ({"genes": ("ema", "ema")}, "gene 'ema' is given twice"),
        ({"genes": ("mode",), "preset": "paper"}, "preset 'paper' has no gene 'mode'"),
        ({"genes": ("mode",), "variant": "scaled"}, "gene 'mode' needs the variant 'exponential'"),
        (
            {"genes": ("augment",), "train": TrainSettings(augment="flip")},
            "augment 'flip' is set and the gene 'augment' searches it; give one of them",
        ),
        (
            {"genes": ("balance",), "train": TrainSettings(sampling="balanced")},
            "sampling 'balanced' is set and the gene 'balance' searches it",
        ),
    ],
)
def test_genes_that_make_no_sense_are_refused(fields, said):
    with pytest.raises(StudyError) as error:
        StudySpec(model="resnet50", data="d", **fields)
    assert said in str(error.value)
