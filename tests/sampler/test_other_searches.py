"""What another search has left: its trials in a new study, its study under the same id."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna
import pytest

from biotune_optuna.errors import StudyError
from biotune_optuna.evolution.settings import SearchSettings
from biotune_optuna.sampler import claims
from biotune_optuna.sampler.sampler import BioTuneSampler, slot_of
from biotune_optuna.schema import CONFIG_KEY
from biotune_optuna.storage.open import open_storage
from tests.kit.sampler import make_sampler, make_space

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna.storages import BaseStorage

SPACE = make_space()


def objective(trial: optuna.Trial) -> float:
    return sum(SPACE.suggest(trial).params.values())


def searched(sampler: optuna.samplers.BaseSampler, n_trials: int) -> optuna.Study:
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=n_trials)
    return study


@pytest.mark.parametrize("n_added", [2, 8])
def test_added_trials_of_a_search_fill_no_slots(n_added: int) -> None:
    wanted = SPACE.genome(dict.fromkeys(SPACE.gene_names, 0.61) | {"lr": 2e-3})

    def begin(others: optuna.Study) -> list[tuple[int, int, str]]:
        sampler = make_sampler(space=SPACE, seed=5, initial=[wanted])
        study = optuna.create_study(sampler=sampler)
        study.add_trials(others.trials)
        study.optimize(objective, n_trials=8)
        own = study.trials[n_added:]
        assert own[0].params == pytest.approx(wanted.params)
        assert [one for one in own if slot_of(one).parents]
        return [(slot.generation, slot.index, slot.role) for slot in map(slot_of, own)]

    ours = searched(make_sampler(space=SPACE, seed=0), n_added)
    assert begin(ours)[0] == (0, 0, "initial")
    foreign = searched(optuna.samplers.RandomSampler(seed=0), n_added)
    foreign_copy = optuna.create_study()
    foreign_copy.add_trials(
        optuna.trial.create_trial(value=t.value, params=t.params, distributions=t.distributions)
        for t in ours.trials
    )
    assert begin(ours) == begin(foreign_copy)
    assert begin(foreign)[0] == (0, 0, "initial")


def test_a_claim_published_while_another_looks_is_seen_or_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = optuna.storages.InMemoryStorage()
    first, second = (
        optuna.create_study(
            study_name="s", storage=storage, sampler=make_sampler(space=SPACE), load_if_exists=True
        )
        for _ in range(2)
    )
    below = storage.create_new_trial(first._study_id)  # its worker is about to claim
    waiting = [below]

    def finishing_the_first(read: Callable[..., object]) -> Callable[..., object]:
        def read_and_finish(*arguments: object) -> object:
            found = read(*arguments)
            found = list(found) if isinstance(found, list) else found
            if waiting:
                trial = optuna.trial.Trial(first, waiting.pop())
                first.tell(trial, objective(trial))
            return found

        return read_and_finish

    for name in ("read_trials", "study_config"):
        monkeypatch.setattr(claims, name, finishing_the_first(getattr(claims, name)))
    trial = second.ask()
    assert [slot_of(one).index for one in (first.trials[0], trial)] == [0, 1]


def test_a_copied_study_goes_on_in_its_generation() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(
        study_name="old", storage=storage, sampler=make_sampler(space=SPACE)
    )
    study.add_trials(searched(make_sampler(space=SPACE, seed=0), 3).trials)
    study.optimize(objective, n_trials=8)
    optuna.copy_study(
        from_study_name="old", from_storage=storage, to_storage=storage, to_study_name="new"
    )
    copied = optuna.load_study(study_name="new", storage=storage, sampler=make_sampler(space=SPACE))
    for one in (study, copied):
        one.optimize(objective, n_trials=4)
    assert [t.params for t in copied.trials] == [t.params for t in study.trials]
    assert slot_of(copied.trials[-1]).generation >= 3


@pytest.mark.parametrize("n_trials", [1, 5])
def test_a_study_deleted_and_begun_anew_is_a_search_of_its_own(
    tmp_path: Path, n_trials: int
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    sampler = make_sampler(space=SPACE, seed=3)

    def begin(storage: BaseStorage, direction: str) -> optuna.Study:
        study = optuna.create_study(
            study_name="s", storage=storage, sampler=sampler, direction=direction
        )
        study.optimize(objective, n_trials=n_trials)
        return study

    first = begin(storage, "minimize")
    optuna.delete_study(study_name="s", storage=storage)
    second = begin(storage, "maximize")
    assert second._study_id == first._study_id
    assert second._storage.get_study_system_attrs(second._study_id)[CONFIG_KEY]["seed"] == 3
    second.optimize(objective, n_trials=9)
    reference = optuna.create_study(sampler=make_sampler(space=SPACE, seed=3), direction="maximize")
    reference.optimize(objective, n_trials=n_trials + 9)
    assert [t.params for t in second.trials] == [t.params for t in reference.trials]


@pytest.mark.parametrize("name", ["population_size", "n_elites", "candidates", "reevaluations"])
def test_whole_numbers_may_be_quotients_and_nothing_else(name: str) -> None:
    def sampler(value: object) -> BioTuneSampler:
        settings = SearchSettings.of("default", **{"population_size": 4, name: value})
        return BioTuneSampler(space=SPACE, seed=1, strategy=settings)

    exact, quotient = searched(sampler(3), 9), searched(sampler(6 / 2), 9)
    assert [t.params for t in quotient.trials] == [t.params for t in exact.trials]
    for value in (3.5, "3"):
        with pytest.raises(StudyError, match=f"^{name} {value!r} is no whole number$"):
            sampler(value)


def test_a_seed_is_a_whole_number() -> None:
    with pytest.raises(StudyError, match=r"^seed 1\.5 is no whole number"):
        BioTuneSampler(seed=1.5)


def test_a_study_that_keeps_settings_of_an_earlier_version_goes_on() -> None:
    study = searched(make_sampler("default", space=SPACE), 2)
    storage, study_id = study._storage, study._study_id
    kept = storage.get_study_system_attrs(study_id)[CONFIG_KEY]
    settings = kept["settings"] | {"kappa": 0.5, "caution": 1.5}
    storage.set_study_system_attr(study_id, CONFIG_KEY, kept | {"settings": settings})
    study.sampler = make_sampler("default", space=SPACE)
    study.optimize(objective, n_trials=6)
    assert [t.params for t in study.trials] == [
        t.params for t in searched(make_sampler("default", space=SPACE), 8).trials
    ]


def test_a_study_that_keeps_a_quotient_goes_on() -> None:
    study = searched(make_sampler(space=SPACE), 2)
    storage, study_id = study._storage, study._study_id
    kept = storage.get_study_system_attrs(study_id)[CONFIG_KEY]
    settings = kept["settings"] | {"population_size": 3.0}
    storage.set_study_system_attr(study_id, CONFIG_KEY, kept | {"settings": settings})
    study.sampler = make_sampler(space=SPACE)
    study.optimize(objective, n_trials=6)
    assert [t.params for t in study.trials] == [
        t.params for t in searched(make_sampler(space=SPACE), 8).trials
    ]
