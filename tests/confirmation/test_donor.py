"""A search that begins with what an earlier study found."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import optuna
import pytest

from biotune_optuna.confirmation.donor import begin_like
from biotune_optuna.confirmation.record import Confirmation, Contender
from biotune_optuna.errors import StudyError
from biotune_optuna.recipe import Recipe
from biotune_optuna.sampler.ranking import rank_finished
from biotune_optuna.sampler.sampler import BioTuneSampler, slot_of
from biotune_optuna.schema import CONFIRM_KEY, LIKE_KEY
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.board import board_of
from biotune_optuna.study.objective import recipe_summary
from biotune_optuna.study.setup import Setup
from biotune_optuna.study.study import TuningStudy, study_of

pytestmark = pytest.mark.usefixtures("quiet")


def value(recipe: Recipe) -> float:
    """Untrained: what trains more is better."""
    return len(recipe.trainable) / len(recipe.blocks) - recipe.lr


def earlier(
    setup: Setup, url: str, name: str = "earlier", time: str = "2026-01-01", trials: int = 12
) -> optuna.Study:
    """A study that was searched and confirmed; its winner is not the best by value."""
    study = study_of(setup, storage=open_storage(url), name=name).study
    study.optimize(lambda t: value(setup.space.suggest(t).decode()), n_trials=trials)
    winner = rank_finished(study, setup.space)[-1]
    recipe = setup.space.genome(study.trials[winner].params).decode()
    contender = Contender(name=f"trial {winner}", trial=winner, recipe=recipe_summary(recipe))
    found = Confirmation(candidates=(contender,), chosen=contender.name, time=time)
    study.set_user_attr(CONFIRM_KEY, found.to_dict())
    return study


def fresh(setup: Setup, url: str, name: str = "new") -> TuningStudy:
    return study_of(setup, storage=open_storage(url), name=name)


def recipes_of(study: TuningStudy) -> list[tuple[object, ...]]:
    space = study.setup.space
    return [space.genome(trial.params).decode().key() for trial in study.study.trials]


def test_it_begins_with_the_confirmed_recipe_and_the_best_others(setup: Setup, url: str) -> None:
    donor = earlier(setup, url)
    found = Confirmation.of(donor.user_attrs)
    wanted = [found.winner.trial, *rank_finished(donor, setup.space)[:2]]
    study = fresh(setup, url)
    said = begin_like(study)
    assert f"study 'earlier' (trials {', '.join(map(str, wanted))})" in said
    study.study.optimize(lambda t: value(setup.space.suggest(t).decode()), n_trials=5)
    donors = [setup.space.genome(donor.trials[n].params).decode().key() for n in wanted]
    assert recipes_of(study)[:3] == donors
    assert [slot_of(t).role for t in study.study.trials] == ["donated"] * 3 + ["initial"] * 2
    assert [slot_of(t).index for t in study.study.trials][3:] == [0, 1], "they take no slot"
    assert study.study.trials[0].user_attrs["donor"] == f"earlier, trial {wanted[0]}"
    assert study.study.user_attrs[LIKE_KEY] == {"study": "earlier", "trials": wanted}


def test_a_study_is_given_recipes_once_and_only_before_it_begins(setup: Setup, url: str) -> None:
    earlier(setup, url)
    study = fresh(setup, url)
    assert begin_like(study)
    assert begin_like(study) == ""
    assert begin_like(fresh(setup, url)) == ""
    assert len(study.study.trials) == 3
    begun = fresh(setup, url, "begun")
    begun.study.optimize(lambda t: value(setup.space.suggest(t).decode()), n_trials=1)
    assert begin_like(begun) == ""
    assert len(begun.study.trials) == 1


def test_the_one_confirmed_last_gives_and_none_that_does_not_fit(setup: Setup, url: str) -> None:
    assert begin_like(fresh(setup, url)) == ""
    earlier(setup, url, "old", "2026-01-01")
    earlier(setup, url, "late", "2026-03-01")
    earlier(setup, url, "middle", "2026-02-01")
    other = dataclasses.replace(setup.spec, model="test_resnet")
    earlier(dataclasses.replace(setup, spec=other), url, "other model", "2026-04-01")
    unconfirmed = study_of(setup, storage=open_storage(url), name="unconfirmed").study
    unconfirmed.optimize(lambda t: value(setup.space.suggest(t).decode()), n_trials=5)
    assert "study 'late'" in begin_like(fresh(setup, url))


def test_another_database_may_give(setup: Setup, url: str, tmp_path: Path) -> None:
    elsewhere = f"sqlite:///{tmp_path}/elsewhere.db"
    donor = earlier(setup, elsewhere)
    study = fresh(setup, url)
    assert "study 'earlier'" in begin_like(study, f"earlier@{elsewhere}")
    assert len(study.study.trials) == 3
    assert len(donor.trials) == 12


def test_what_cannot_give_is_named(setup: Setup, url: str) -> None:
    board_of(earlier(setup, url))  # no study of the user's
    with pytest.raises(StudyError, match=r"no study 'none' to begin like; .* 'earlier', 'new'$"):
        begin_like(fresh(setup, url), "none")
    plain = optuna.create_study(storage=open_storage(url), study_name="plain")
    plain.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=2)
    with pytest.raises(StudyError, match="study 'plain' has other blocks than test_efficientnet"):
        begin_like(fresh(setup, url), "plain")


def test_a_donated_recipe_whose_worker_died_is_evaluated_by_another(setup: Setup, url: str) -> None:
    earlier(setup, url)
    study = fresh(setup, url)
    begin_like(study)
    sampler = study.study.sampler
    assert isinstance(sampler, BioTuneSampler)
    trial = study.study.ask()
    first = setup.space.suggest(trial).params
    sampler.release(trial)
    study.study.optimize(lambda t: value(setup.space.suggest(t).decode()), n_trials=4)
    done = [t for t in study.study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert sum(t.params == first for t in done) == 1
    assert [slot_of(t).role for t in done].count("donated") == 3
