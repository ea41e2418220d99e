"""The models of a search's best trials: which are kept, what they hold, and what is deleted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState, create_trial

from biotune_optuna.errors import StudyError
from biotune_optuna.report.status import format_status, study_status
from biotune_optuna.schema import KEPT_KEY, KEPT_MODEL_KEY, TrialRecord
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.keeping import SearchModel, SearchModels, best_kept, check_kept, note_kept
from biotune_optuna.study.kept import KeptWeights
from biotune_optuna.study.setup import Setup
from biotune_optuna.study.study import TuningStudy, study_of


def searched(setup: Setup, url: str, total: int, keep: int | None) -> TuningStudy:
    study = study_of(setup, storage=open_storage(url), name="s")
    return study.search(total, keep_models=keep)


def files(study: TuningStudy) -> set[str]:
    return {path.name for path in study.models.folder.iterdir()}


def names(study: TuningStudy, count: int) -> set[str]:
    """Files of the best trials, by their values alone."""
    done = [t for t in study.study.trials if t.state == TrialState.COMPLETE]
    best = sorted(done, key=lambda t: (-(t.value or 0.0), t.number))[:count]
    return {f"{TrialRecord(trial).kept.digest}.safetensors" for trial in best}


def test_a_copied_study_has_a_folder_of_its_own(url: str, tmp_path: Path) -> None:
    study = optuna.create_study(study_name="s", storage=open_storage(url))
    note_kept(study, 2)
    optuna.copy_study(
        from_study_name="s",
        from_storage=study._storage,
        to_storage=study._storage,
        to_study_name="copy",
    )
    copy = optuna.load_study(study_name="copy", storage=study._storage)
    assert copy.user_attrs[KEPT_KEY] == study.user_attrs[KEPT_KEY]
    assert SearchModels(copy, tmp_path).folder != SearchModels(study, tmp_path).folder


def test_the_best_trials_models_are_kept_and_predict_what_they_were_judged_by(
    setup: Setup, url: str
) -> None:
    study = searched(setup, url, 5, 2)
    plain = searched(setup, url.replace("study.db", "plain.db"), 5, None)
    assert [t.value for t in study.study.trials] == [t.value for t in plain.study.trials]
    assert not any(TrialRecord(t).kept.digest for t in plain.study.trials)
    assert study.models.folder.parent == Path(url.removeprefix("sqlite:///")).with_name(
        "study-artifacts"
    ).joinpath("models")
    assert files(study) == names(study, 2)
    labels = setup.source.labels[setup.splits.val]
    for trial in study.models.best():
        model = study.models.get(trial)
        assert model is not None
        setup.trainer.put(model.changed)
        found = setup.trainer.predict(setup.splits.val)
        np.testing.assert_array_equal(found, model.probabilities)
        recall = [np.mean(found.argmax(1)[labels == c] == c) for c in np.unique(labels)]
        assert np.mean(recall) == pytest.approx(TrialRecord(trial).runs[0].score)
        frozen = study.setup.space.genome(trial.params).decode().frozen
        held = {n for b in setup.blocks if b.name in frozen for n in b.parameter_names}
        assert not held & set(model.changed), "what is frozen is not kept"
    kept = study_status(study.study)["kept"]
    assert kept.startswith("The models of the 2 best trials are kept: ")
    assert kept in format_status(study_status(study.study))
    assert study_status(plain.study)["kept"] == ""


def test_another_call_goes_on_keeping_and_may_keep_others(setup: Setup, url: str) -> None:
    study = searched(setup, url, 3, 3)
    assert len(files(study)) == 3
    study = searched(setup, url, 4, None)  # as a worker, which is told nothing
    assert files(study) == names(study, 3)
    study = searched(setup, url, 4, 1)
    assert files(study) == names(study, 1)
    study = searched(setup, url, 4, 0)
    assert files(study) == set()
    assert searched(setup, url, 5, None).study.trials[-1].state == TrialState.COMPLETE
    assert files(study) == set()


def kept_by_hand(url: str, values: list[float], most: int) -> tuple[SearchModels, list[str]]:
    """A study of made-up trials whose models were offered one after the other."""
    study = optuna.create_study(storage=open_storage(url), direction="maximize")
    note_kept(study, most)
    models = SearchModels(study, Path(url.removeprefix("sqlite:///")).with_name("models"))
    digests = []
    for number, value in enumerate(values):
        trial = study.ask()
        models.offer(trial, value, model(number))
        digests.append(TrialRecord(study.trials[number]).kept.digest)
        study.tell(trial, value)
    return models, digests


def model(number: int) -> SearchModel:
    import torch

    return SearchModel({"a": torch.full((3,), float(number))}, np.eye(2, dtype=np.float32))


def test_worse_models_are_not_written_and_give_way(url: str) -> None:
    models, digests = kept_by_hand(url, [0.5, 0.7, 0.5, 0.6, 0.4], 2)
    assert [bool(digest) for digest in digests] == [True, True, False, True, False]
    assert [trial.number for trial in models.best()] == [1, 3]
    models.tidy()
    assert {p.stem for p in models.folder.iterdir()} == {digests[1], digests[3]}
    assert models.get(models.study.trials[0]) is None
    found = models.get(models.study.trials[3])
    assert found is not None
    assert found.changed["a"].tolist() == [3.0] * 3
    assert best_kept(models.study.trials, 0) == []


def test_what_a_killed_worker_left_is_deleted_and_a_running_trials_file_is_not(url: str) -> None:
    models, digests = kept_by_hand(url, [0.5], 1)
    dead, alive = models.study.ask(), models.study.ask()
    models.offer(dead, 0.9, model(7))
    models.offer(alive, 0.8, model(8))
    half = models.folder / f"{'b' * 64}.{'0' * 32}"
    half.write_bytes(b"half a file")
    models.study.tell(dead, state=TrialState.FAIL)
    models.tidy()
    running = TrialRecord(models.study.trials[alive.number]).kept.digest
    assert {p.stem for p in models.folder.iterdir()} == {digests[0], running}


@pytest.mark.parametrize("digest", ["../../victim", "/{root}/victim", "victim", 7, None, []])
def test_no_text_of_a_database_names_a_file_to_delete_or_to_read(
    url: str, tmp_path: Path, digest: object
) -> None:
    models, _ = kept_by_hand(url, [0.5], 1)
    victims = [tmp_path / "victim", tmp_path / "victim.safetensors"]
    victims += [models.folder / "victim.safetensors", models.folder / f"{'c' * 64}.txt"]
    for victim in victims:
        victim.write_bytes(b"x")
    link = models.folder / f"{'d' * 64}.safetensors"
    link.symlink_to(victims[0])
    named = str(digest).replace("{root}", str(tmp_path)) if isinstance(digest, str) else digest
    stored = {KEPT_MODEL_KEY: {"digest": named, "bytes": 1}}
    models.study.add_trial(create_trial(value=0.9, user_attrs=stored))
    assert models.get(models.study.trials[-1]) is None
    models.tidy()
    assert all(victim.exists() for victim in victims)
    assert link.is_symlink()


@pytest.mark.parametrize("tensors", [{}, {"weights/a": torch.zeros(3)}], ids=["empty", "other"])
def test_a_file_that_holds_no_model_is_none(url: str, tensors: dict[str, torch.Tensor]) -> None:
    models, _ = kept_by_hand(url, [0.5], 1)
    digest = KeptWeights(models.folder).put(tensors)
    stored = {KEPT_MODEL_KEY: {"digest": digest, "bytes": 1}}
    models.study.add_trial(create_trial(value=0.9, user_attrs=stored))
    assert models.get(models.study.trials[-1]) is None


@pytest.mark.parametrize("name", ["..", "../..", "/", "x" * 32, 3])
def test_no_text_of_a_database_names_another_folder(url: str, tmp_path: Path, name: object) -> None:
    study = optuna.create_study(storage=open_storage(url), direction="maximize")
    study.set_user_attr(KEPT_KEY, {"most": 1, "id": name})
    stray = tmp_path / f"{'e' * 64}.safetensors"
    stray.write_bytes(b"x")
    models = SearchModels(study, tmp_path / "models")
    assert models.folder.parent == tmp_path / "models"
    models.tidy()
    assert stray.exists()


def test_a_full_disk_costs_the_model_alone(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from biotune_optuna.study import kept

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "save_file", full)
    models, _ = kept_by_hand(url, [0.5], 1)
    assert models.study.trials[0].value == 0.5
    assert models.get(models.study.trials[0]) is None
    assert "No space left" in caplog.text


def test_a_study_in_memory_takes_its_models_with_it(setup: Setup) -> None:
    study = study_of(setup, storage=optuna.storages.InMemoryStorage(), name="m")
    study.search(2, keep_models=2)
    folder = study.models.folder
    assert len(list(folder.iterdir())) == 2
    del study
    assert not folder.exists()


@pytest.mark.parametrize("most", [-1, 1.5, True, "3"])
def test_numbers_of_models_that_are_none_are_one_clear_line(setup: Setup, most: object) -> None:
    with pytest.raises(StudyError, match=f"keep_models {most!r} is no whole number"):
        check_kept(setup.spec, most)


def test_models_of_folds_cannot_be_kept(setup: Setup) -> None:
    folded = dataclasses.replace(setup.spec, n_folds=3)
    with pytest.raises(StudyError, match=r"keep_models 4 .* trains on 3 folds"):
        check_kept(folded, 4)
    check_kept(folded, 0)
