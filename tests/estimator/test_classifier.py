"""BioTuneClassifier: what it learns, and in pipelines, folds, grids and storages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from biotune_optuna import BioTuneClassifier, BioTuneError, ConfirmPlan, Predictor, open_storage
from biotune_optuna.models.candidates import Candidate
from tests.kit.estimator import tiny

# -- learning and predicting --------------------------------------------------------------------


def test_fitted_state(fitted: BioTuneClassifier, digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    assert_array_equal(fitted.classes_, ["nought", "one", "two"])
    assert len(fitted.study_.trials) == 2
    assert fitted.best_score_ == fitted.study_.best_value
    assert fitted.recipe_.multipliers.keys() >= {"stem", "head"}
    assert fitted.confirmation_ is not None
    assert {r.name for r in fitted.confirmation_.rivals} == {"full", "linear-probe"}
    assert fitted.confirmation_.n_test == 0  # nothing of X is set aside for a test
    assert fitted.confirmation_.n_train + fitted.confirmation_.n_val == len(images)
    probabilities = fitted.predict_proba(images)
    assert probabilities.shape == (90, 3)
    assert_allclose(probabilities.sum(axis=1), 1)
    assert_array_equal(fitted.predict(images), fitted.classes_[probabilities.argmax(axis=1)])
    assert fitted.score(images, labels) == np.mean(fitted.predict(images) == labels)


def test_learns(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    classifier = tiny(n_trials=3, epochs=20, study_params={"n_seeds": 1, "lr": (3e-3, 3e-2)})
    assert classifier.fit(images[:60], labels[:60]).score(images[60:], labels[60:]) > 0.6


def test_the_model_is_the_mean_of_its_members(digits: tuple[np.ndarray, np.ndarray]) -> None:
    assert len(tiny(n_trials=1).fit(*digits).exported_.members) == 4
    assert len(tiny(members=1, n_trials=1).fit(*digits).exported_.members) == 0
    two = tiny(members=np.int64(2), n_trials=1).fit(*digits)
    (other,) = two.exported_.members
    apart = [
        Predictor(
            model,
            name=two.exported_.name,
            classes=two.exported_.classes,
            preprocessing=two.exported_.preprocessing,
        )
        for model in (two.exported_.model, other)
    ]
    images = digits[0]
    alone = [np.stack([p.probabilities for p in one.predict(list(images))]) for one in apart]
    assert_allclose(two.predict_proba(images), np.mean(alone, axis=0), atol=1e-6)


def test_the_model_may_be_the_searchs_own_in_several_views(
    digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    plan = ConfirmPlan(from_search=True, views=("zoom",))
    classifier = tiny(confirm=plan, members=3, n_trials=3).fit(*digits)
    found, exported = classifier.confirmation_, classifier.exported_
    assert set(found.from_search) <= {0, 1, 2}
    assert not found.rivals
    assert not any(one.scores for one in found.candidates)
    assert (1 + len(exported.members), exported.weights) == (found.members, found.weights)
    assert exported.preprocessing.views == ("zoom",)
    again = BioTuneClassifier.load(classifier.save(tmp_path / "kept"), device="cpu")
    images = digits[0][:20]
    assert_allclose(again.predict_proba(images), classifier.predict_proba(images), atol=1e-6)
    assert (again.confirm.from_search, again.confirm.views) == (True, ("zoom",))


def test_same_seed_same_classifier(
    fitted: BioTuneClassifier, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    again = clone(fitted).fit(*digits)
    assert again.recipe_ == fitted.recipe_
    assert_array_equal(again.predict_proba(digits[0]), fitted.predict_proba(digits[0]))


def test_batches_agree(fitted: BioTuneClassifier, digits: tuple[np.ndarray, np.ndarray]) -> None:
    images = digits[0][:10]
    one_by_one = np.vstack([fitted.predict_proba(images[i : i + 1]) for i in range(10)])
    assert_allclose(one_by_one, fitted.predict_proba(images), atol=1e-5)


def test_cv_results(fitted: BioTuneClassifier) -> None:
    results = fitted.cv_results_
    assert {len(column) for column in results.values()} == {2}
    assert results["params"][0] == fitted.study_.trials[0].params
    assert results["param_lr"][1] == fitted.study_.trials[1].params["lr"]
    best = results["number"][results["rank_test_score"] == 1]
    assert fitted.study_.best_trial.number in best
    assert results["mean_test_score"].max() == fitted.best_score_


def test_false_of_numpy_does_not_confirm(digits: tuple[np.ndarray, np.ndarray]) -> None:
    fitted = tiny(confirm=np.False_, n_trials=np.int64(1), epochs=np.int64(1)).fit(*digits)
    assert fitted.confirmation_ is None


def test_callbacks_see_every_trial(digits: tuple[np.ndarray, np.ndarray]) -> None:
    seen: list[int] = []
    tiny(callbacks=(lambda _study, trial: seen.append(trial.number),)).fit(*digits)
    assert seen == [0, 1]


# -- company ------------------------------------------------------------------------------------


def test_pipeline_and_cross_validation(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    pipeline = make_pipeline(FunctionTransformer(lambda x: x[:, ::-1]), tiny(n_trials=1))
    scores = cross_val_score(pipeline, images, labels, cv=2, error_score="raise")
    assert scores.shape == (2,)
    direct = tiny(n_trials=1).fit(images[:, ::-1], labels)
    assert_array_equal(
        pipeline.fit(images, labels).predict_proba(images), direct.predict_proba(images[:, ::-1])
    )


def test_storage_makes_fit_resumable(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    first = tiny(storage=url, n_trials=2, random_state=7).fit(*digits)
    seen: list[int] = []
    callbacks = (lambda _study, trial: seen.append(trial.number),)
    # without a seed of its own it takes that of the study which is there
    second = tiny(storage=url, n_trials=3, random_state=None, callbacks=callbacks).fit(*digits)
    assert seen == [2]
    assert first.study_.study_name == second.study_.study_name
    whole = tiny(n_trials=3, random_state=7).fit(*digits)
    assert [t.value for t in second.study_.trials] == [t.value for t in whole.study_.trials]
    with pytest.raises(BioTuneError, match=r"epochs: 1, not 2"):
        tiny(storage=url, random_state=7, study_name=first.study_.study_name, epochs=2).fit(*digits)


def test_storage_may_be_a_path(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    tiny(storage=file, n_trials=1).fit(*digits)
    assert len(open_storage(file, create=False).get_all_studies()) == 1


def test_folds_have_studies_of_their_own(
    digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    classifier = tiny(storage=storage, n_trials=1)
    cross_val_score(classifier, *digits, cv=3, error_score="raise")
    names = {study.study_name for study in storage.get_all_studies()}
    assert len(names) == 3
    assert all(name.startswith("array-") and name.endswith("test_efficientnet") for name in names)


def test_points_of_a_grid_have_studies_of_their_own(
    digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    grid = GridSearchCV(
        tiny(storage=f"sqlite:///{tmp_path}/study.db", n_trials=1),
        {"batch_size": [20, 30]},
        cv=2,
        error_score="raise",
        refit=False,
    )
    grid.fit(*digits)
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    assert len(storage.get_all_studies()) == 4


def test_a_password_is_not_shown(digits: tuple[np.ndarray, np.ndarray]) -> None:
    classifier = tiny(storage="postgresql://me:s3cret@host/db")
    for shown in (classifier, make_pipeline(classifier), GridSearchCV(classifier, {})):
        for text in (repr(shown), str(shown), shown._repr_html_()):
            assert "s3cret" not in text
            assert "me:***@host/db" in text


def test_an_interrupted_fit_leaves_the_classifier_as_it_was(
    digits: tuple[np.ndarray, np.ndarray],
) -> None:
    images, labels = digits

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    fresh = tiny(n_trials=1, callbacks=(interrupt,))
    with pytest.raises(KeyboardInterrupt):
        fresh.fit(images, labels)
    with pytest.raises(NotFittedError):
        fresh.predict(images)
    fitted = tiny(n_trials=1).fit(images, labels)
    before = fitted.predict(images)
    fitted.set_params(callbacks=(interrupt,))
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(images, np.array([f"class {label}" for label in labels]))
    assert_array_equal(fitted.predict(images), before)


def test_the_network_may_be_left_open(
    digits: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("test_efficientnet", "test_vit")
    found = [Candidate(name, 1_000_000) for name in names]
    monkeypatch.setattr("biotune_optuna.study.auto.select", lambda _among, _limits: found)
    classifier = tiny(model="auto").fit(*digits)
    assert classifier.exported_.name in names
    assert classifier.study_.user_attrs["biotune"]["choice"]["chosen"] == classifier.exported_.name
    with pytest.raises(BioTuneError, match="needs a network that is known, and model 'auto'"):
        tiny(model="auto", time_limit=60).fit(*digits)
