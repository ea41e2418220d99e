"""Several networks in one search: how good each is so far, and where that is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from biotune_optuna.confirmation.candidates import leading
from biotune_optuna.confirmation.protocol import Contest, Entrant
from biotune_optuna.confirmation.record import Ledger, trainings
from biotune_optuna.errors import ModelError, StudyError
from biotune_optuna.models.weights import check_name
from biotune_optuna.sampler.ranking import Belief, rank_finished
from biotune_optuna.schema import RACE_KEY, SPEC_KEY, Cost, TrialRecord, as_mapping
from biotune_optuna.study.choice import is_auto
from biotune_optuna.study.race import Race, Raced
from biotune_optuna.study.rates import RateCheck
from biotune_optuna.study.spec import default_name

if TYPE_CHECKING:
    from biotune_optuna.study.objective import Observer
    from biotune_optuna.study.study import TuningStudy


def check_models(models: Sequence[str]) -> None:
    """Refuse networks that cannot be searched side by side, before anything is opened.

    Raises:
        ModelError: If one is unknown, named twice or ``"auto"``.
    """
    for name in models:
        if is_auto(name):
            raise ModelError(f"model {name!r} chooses among networks itself; name it alone")
        check_name(name)
        if models.count(name) > 1:
            raise ModelError(f"model {name!r} is named twice; name each network once")


def race_of(storage: optuna.storages.BaseStorage, name: str, models: Sequence[str]) -> Race:
    """Return the race of a name as it is kept, a new one where there is none.

    Args:
        storage: Where its studies are.
        name: Name of the race; each study is called by it and by its network.
        models: The networks.

    Raises:
        StudyError: If that race has other networks.
    """
    new = Race(
        networks=tuple(Raced(name=model, study=default_name(model, name)) for model in models)
    )
    known = {one.study_name: one for one in storage.get_all_studies()}
    for one in new.networks:
        if one.study not in known:
            continue
        stored = Race.of(known[one.study].user_attrs.get(RACE_KEY))
        names = sorted(network.name for network in stored.networks)
        if stored and names != sorted(models):
            raise StudyError(
                f"study {one.study!r} was begun beside other networks: {', '.join(names)}; name "
                "the same, or give another --study"
            )
        if stored:
            return stored
    return new


def keep_race(storage: optuna.storages.BaseStorage, race: Race) -> None:
    """Write a race into the study of each of its networks."""
    for one in race.networks:
        study = optuna.load_study(study_name=one.study, storage=storage)
        study.set_user_attr(RACE_KEY, race.to_dict())


def standing(
    study: TuningStudy,
    network: Raced,
    *,
    fresh: int = 0,
    observer: Observer | None = None,
    checkpoint: Callable[[], None] | None = None,
) -> Raced:
    """Return how good a network is, by the best recipe that its study has found so far.

    Test images are not looked at.

    Args:
        study: The network's study.
        network: The network.
        fresh: How often the best recipe is trained on fresh seeds; a confirmation takes these
            trainings over.
        observer: Told of the progress.
        checkpoint: Called after each epoch; raises to stop.
    """
    space, own = study.setup.space, study.study
    finished = own.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranked = rank_finished(own, space)
    found = dataclasses.replace(network, trials=len(finished))
    if ranked:
        genome = space.genome(own.trials[ranked[0]].params)
        means, _ = Belief(own, space).values([genome])
        found = dataclasses.replace(found, value=float(means[0]))
    if ranked and fresh:
        entrants = [Entrant.of_trial(*one) for one in leading(study, 1, finished)]
        contest = Contest(
            study.setup,
            entrants,
            n_runs=fresh,
            ledger=Ledger(own),
            n_final=0,
            observer=observer,
            checkpoint=checkpoint,
        )
        (one,) = contest.run()
        found = dataclasses.replace(found, fresh=one.mean)
    return dataclasses.replace(found, **_cost(own).to_dict())


def _cost(study: optuna.Study) -> Cost:
    """Return what a study has cost until now."""
    records = [TrialRecord(trial) for trial in study.get_trials(deepcopy=False)]
    attrs = study.user_attrs
    rates = RateCheck.from_dict(as_mapping(as_mapping(attrs.get(SPEC_KEY)).get("rates")))
    trials = Cost(
        forward=sum(one.forward for one in records),
        backward=sum(one.backward for one in records),
        seconds=round(sum(one.seconds or 0.0 for one in records), 3),
    )
    return Cost.sum([trials, rates, *trainings(attrs).values()])
