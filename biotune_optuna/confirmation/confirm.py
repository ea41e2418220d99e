"""Which recipe really is best: fresh seeds, rivals, and one look at the test set.

With a few hundred images the best of many noisy values is mostly luck. So the best few recipes are
trained again on seeds that the search never used, beside full fine-tuning, whose base rate was
chosen on the same validation data, and a linear probe. What the search has trained is not trained
again (`biotune_optuna.confirmation.known`). The winner is chosen by that. Only then is
it trained on training and validation data together, several times, and tested, once: the model is
the mean of what these members predict.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from weakref import WeakKeyDictionary

from biotune_optuna.confirmation.asked import begun
from biotune_optuna.confirmation.calibrate import calibrations
from biotune_optuna.confirmation.candidates import choose, leading
from biotune_optuna.confirmation.from_search import choose_models, contender_of, weights_of
from biotune_optuna.confirmation.known import counted_runs, rates_known
from biotune_optuna.confirmation.mistakes import list_mistakes
from biotune_optuna.confirmation.plan import ConfirmPlan, check_views
from biotune_optuna.confirmation.protocol import Contest, Entrant, Final, Wanted
from biotune_optuna.confirmation.record import (
    CalibrationResult,
    Confirmation,
    Contender,
    Ledger,
    Training,
)
from biotune_optuna.confirmation.settled import settle
from biotune_optuna.confirmation.shared import Shared
from biotune_optuna.errors import StudyError
from biotune_optuna.finetune.calibration import Trust, reliability, tempered
from biotune_optuna.finetune.prefix.shared import mean_probabilities
from biotune_optuna.finetune.statistics import paired_test
from biotune_optuna.schema import LOOKS_KEY, Cost

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from optuna.trial import FrozenTrial
    from torch import Tensor

    from biotune_optuna.confirmation.shared import Sharing
    from biotune_optuna.recipe import Recipe
    from biotune_optuna.study.objective import Observer
    from biotune_optuna.study.study import TuningStudy

_MOST_CONFUSION = 60  # classes, with which the winner's confusion matrix still leaves room


def confirm(
    study: TuningStudy,
    plan: ConfirmPlan | None = None,
    *,
    from_search: bool = False,
    observer: Observer | None = None,
    checkpoint: Callable[[], None] | None = None,
    sharing: Sharing | None = None,
    trials: Sequence[FrozenTrial] | None = None,
) -> Confirmation:
    """Confirm the best recipes, choose the winner and test it once.

    Every training on validation data is written to the study as it ends, so an interrupted
    confirmation goes on; final trainings that were cut short are made, and tested, again. A
    confirmation that stands for the same finished trials is returned as it is: the test set is not
    looked at again. Which trials these are is settled when the first process begins, so that a
    result that comes late changes nothing. A recipe that was confirmed before stays a contender
    when the study has gone on. Processes that confirm one study at the same time take over what
    trainings the others have finished, and the result of the first. After the call the trainer
    holds the weights of the winner's first member if it was trained now.

    Args:
        study: The study, with at least one COMPLETE trial.
        plan: How much evidence to gather.
        from_search: Make the model of what the search has kept (`TuningStudy.search`), and train
            nothing; the same as a plan that says so. It is tested once, as any.
        observer: Told of the progress.
        checkpoint: Called after each epoch; raises to stop.
        sharing: How other workers help, with `help_confirm`; None trains everything here.
        trials: The COMPLETE trials to confirm; None takes those that
            `biotune_optuna.confirmation.settled.settle` returns.

    Returns:
        What is stored in the study: candidates, rivals, the winner and why, test results with
        intervals, paired tests and the images most confidently wrong.

    Raises:
        StudyError: If no trial has finished, or the model is to be of the search, which has kept
            none; or if a view is to be mirrored in a study that does not allow it.
    """
    plan = plan or ConfirmPlan()
    check_views(plan.views, mirror=study.spec.mirror)
    if from_search:
        plan = dataclasses.replace(plan, from_search=True)
    finished = _finished(study, trials)
    basis = plan.basis(len(finished))
    if stored := _stored(study, plan, len(finished)):
        return stored
    if plan.from_search:
        return _of_search(study, plan, finished, observer)
    started = time.perf_counter()
    contest = _contest(study, plan, finished, observer, checkpoint)
    shared = Shared(contest, sharing) if sharing else None

    def check() -> None:
        """Look whether another process was sooner: one test is enough."""
        if stored := _stored(study, plan, len(finished)):
            raise _DoneElsewhere(stored)

    try:
        ahead = functools.partial(_guessed, study, plan, contest)
        everyone = shared.contenders(ahead) if shared else contest.run()
        check()
        result = _chosen(study, plan, everyone, basis)
        if shared:
            shared.train(_models(plan, result))
        if result.n_test:
            result = _tested(study, plan, contest, result, check=check, shared=shared)
        else:
            if shared:
                (model,) = _models(plan, result)
                _trained[study] = (_Trained.of(result), shared.final(model))
            result = dataclasses.replace(result, calibration=_trusted(study, result))
    except _DoneElsewhere as done:
        return done.result
    seconds = time.perf_counter() - started + contest.seconds_before
    result = dataclasses.replace(result, seconds=seconds)
    result.store(study.study)
    return result


def help_confirm(
    study: TuningStudy,
    plan: ConfirmPlan,
    sharing: Sharing,
    *,
    observer: Observer | None = None,
    trials: Sequence[FrozenTrial] | None = None,
) -> None:
    """Train what `confirm` in another process wants, until nothing is left.

    Which trainings those are follows from what is stored, so that each worker finds it by itself.

    Args:
        study: The study; its search is over.
        plan: The plan of the other process.
        sharing: How the work is shared.
        observer: Told of the progress.
        trials: The trials that are confirmed, as `confirm` was given them.

    Raises:
        StudyError: If no trial has finished.
    """
    finished = _finished(study, trials)
    if plan.from_search or _stored(study, plan, len(finished)):
        return
    contest = _contest(study, plan, finished, observer, sharing.stop.check)
    shared = Shared(contest, sharing)
    everyone = shared.contenders(functools.partial(_guessed, study, plan, contest))
    result = _chosen(study, plan, everyone, plan.basis(len(finished)))
    shared.train(_models(plan, result))


def _contest(
    study: TuningStudy,
    plan: ConfirmPlan,
    finished: Sequence[FrozenTrial],
    observer: Observer | None,
    checkpoint: Callable[[], None] | None,
) -> Contest:
    return Contest(
        study.setup,
        [*_recipes(study, plan, finished), *_rivals(study, plan, finished)],
        n_runs=plan.n_runs,
        n_final=plan.members + len(plan.rivals),
        views=plan.views,
        ledger=Ledger(study.study),
        observer=observer,
        checkpoint=checkpoint,
    )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TrainedWinner:
    """The winner of a confirmation, trained finally.

    Attributes:
        recipe: Its recipe.
        members: What each final training has made of the model, see `Trainer.changed`.
        weights: How much each of them counts; empty where all count alike.
    """

    recipe: Recipe
    members: tuple[Mapping[str, Tensor], ...]
    weights: tuple[int, ...] = ()


def train_winner(
    study: TuningStudy,
    observer: Observer | None = None,
    *,
    confirmed: Confirmation | None = None,
    checkpoint: Callable[[], None] | None = None,
) -> TrainedWinner:
    """Train the confirmed winner on training and validation data; the test set is not touched.

    The trainings are those that `confirm` tested: same data, seeds and number of epochs. They are
    left out where they were made in this process. A model of the search is read where it is kept,
    and what is gone of it trained again.

    Args:
        study: The study.
        observer: Told of the progress.
        confirmed: Its confirmation with another contender chosen, see
            `biotune_optuna.confirmation.asked.as_asked`; None reads the study's own.
        checkpoint: Called after each epoch; raises to stop.

    Returns:
        The winner; the trainer holds the weights of the first member.

    Raises:
        StudyError: If the study has not been confirmed.
    """
    confirmed = confirmed or Confirmation.of(study.study.user_attrs)
    if not confirmed:
        raise StudyError(f"study {study.name!r} has no confirmed winner yet; finish it first")
    winner = confirmed.winner
    recipe = winner.rebuild(study.setup.blocks)
    wanted = _Trained.of(confirmed)
    which, final = _trained.get(study, (None, None))
    if confirmed.from_search and (final is None or which != wanted):
        members = weights_of(study, confirmed, observer=observer, checkpoint=checkpoint)
        final = Final(Training(), members, ())
        _trained[study] = (wanted, final)
    elif final is None or which != wanted:
        entrant = Entrant(name=winner.name, method=winner.method, recipe=recipe)
        contest = Contest(
            study.setup,
            [entrant],
            n_final=confirmed.members,
            observer=observer,
            checkpoint=checkpoint,
        )
        final = contest.finish(winner.name, winner.final_epochs, members=confirmed.members)
        _trained[study] = (wanted, final)
    study.setup.trainer.put(final.members[0])
    return TrainedWinner(recipe, final.members, confirmed.weights)


class _Trained(NamedTuple):
    """Which confirmation a final training belongs to."""

    time: str
    winner: str
    members: int
    from_search: tuple[int, ...]

    @classmethod
    def of(cls, confirmed: Confirmation) -> Self:
        return cls(confirmed.time, confirmed.chosen, confirmed.members, confirmed.from_search)


_trained: WeakKeyDictionary[TuningStudy, tuple[_Trained, Final]] = WeakKeyDictionary()
"""The final trainings of winners."""


class _DoneElsewhere(Exception):  # noqa: N818 - no failure
    """Another process has confirmed the same trials."""

    def __init__(self, result: Confirmation) -> None:
        super().__init__()
        self.result = result


# -- who takes part ----------------------------------------------------------------------------


def _finished(study: TuningStudy, trials: Sequence[FrozenTrial] | None) -> Sequence[FrozenTrial]:
    """Return the trials to confirm, the same in every process and until the search goes on.

    Raises:
        StudyError: If there is none.
    """
    finished = settle(study.study) if trials is None else trials
    if not finished:
        raise StudyError(
            f"study {study.name!r} has no finished trial to confirm; run more trials first"
        )
    return finished


def _recipes(
    study: TuningStudy, plan: ConfirmPlan, finished: Sequence[FrozenTrial]
) -> list[Entrant]:
    """Return the search's best recipes and those confirmed before.

    Of trials that end from now on there is none.
    """
    stored = Confirmation.of(study.study.user_attrs)
    confirmed = () if stored.from_search else stored.candidates
    numbered = {trial.number: trial for trial in finished}
    before = [numbered[one.trial] for one in confirmed if one.trial in numbered]
    counted, others = counted_runs(study, plan, finished)
    probed = "linear-probe" in plan.rivals
    return [
        dataclasses.replace(Entrant.of_trial(trial, recipe), counted=counted.get(recipe.key()))
        for trial, recipe in leading(study, plan.top_k, others, before=before, probed=probed)
    ]


def _rivals(
    study: TuningStudy, plan: ConfirmPlan, finished: Sequence[FrozenTrial]
) -> list[Entrant]:
    return [
        Entrant.of_rival(name, plan, rates_known(study, plan, name, finished))
        for name in plan.rivals
    ]


# -- what comes of it --------------------------------------------------------------------------


def _chosen(
    study: TuningStudy, plan: ConfirmPlan, everyone: Sequence[Contender], basis: Mapping[str, Any]
) -> Confirmation:
    """Return the confirmation as it stands before the test."""
    winner, plateau, why = choose(everyone, prefer=plan.prefer, tolerance=plan.tolerance)
    return dataclasses.replace(
        begun(study, plan.members),
        views=plan.views,
        basis=basis,
        candidates=tuple(one for one in everyone if not one.is_rival),
        rivals=tuple(one for one in everyone if one.is_rival),
        chosen=winner.name,
        plateau=tuple(one.name for one in plateau),
        why=why,
    )


def _of_search(
    study: TuningStudy,
    plan: ConfirmPlan,
    finished: Sequence[FrozenTrial],
    observer: Observer | None,
) -> Confirmation:
    """Make the model of the search's own models, test it once, and store what came of it."""
    started = time.perf_counter()
    if observer:
        observer.stage("choice", "among the models of the search", 0, 0)
    found = choose_models(study, finished, plan.members, plan.views)
    contest = Contest(study.setup, found.entrants)
    trials = {trial.number: trial for trial in finished}
    numbers = tuple(one.trial for one in found.entrants if one.trial is not None)
    pairs = zip(found.entrants, numbers, strict=True)
    result = dataclasses.replace(
        begun(study, len(numbers)),
        views=plan.views,
        basis=plan.basis(len(finished)),
        candidates=tuple(contender_of(one, trials[number]) for one, number in pairs),
        chosen=found.entrants[0].name,
        why=found.why,
        from_search=numbers,
        weights=found.weights if len(set(found.weights)) > 1 else (),
    )
    if stored := _stored(study, plan, len(finished)):  # another process was sooner
        return stored
    changed = tuple(model.changed for model in found.models)
    final = Final(Training(), changed, ())
    members: list[NDArray[np.float32]] = []
    if result.n_test:
        _log_look(study, "models of the search")
        probs = {result.chosen: contest.predict(final)}
        members = contest.predict(final, plan.views) if plan.views else probs[result.chosen]
        result = _judged(contest, result, probs, members, most=plan.mistakes)
    _trained[study] = (_Trained.of(result), final)
    calibration = _trusted(study, result, members)
    seconds = time.perf_counter() - started
    result = dataclasses.replace(result, calibration=calibration, seconds=seconds)
    result.store(study.study)
    return result


def _models(plan: ConfirmPlan, result: Confirmation) -> list[Wanted]:
    """Return what is trained finally: all that are tested, the winner last; its weights remain."""
    winner = result.winner
    ours = Wanted(winner.name, winner.final_epochs, plan.members, plan.must_hold)
    if not result.n_test:
        return [ours]
    found = max(result.candidates, key=lambda c: c.mean) if winner.is_rival else winner
    others = [one for one in (*result.rivals, found) if one.name != winner.name]
    return [*(Wanted(one.name, one.final_epochs, must_hold=False) for one in others), ours]


def _guessed(study: TuningStudy, plan: ConfirmPlan, contest: Contest) -> list[Wanted]:
    """Return what will be trained finally, by those that have been repeated so far.

    Of the search's recipes nothing is known before all of them have been.
    """
    done = contest.contenders(complete=True)
    recipes = [one for one in contest.entrants.values() if one.method == "biotune"]
    if sum(not one.is_rival for one in done) < len(recipes):
        rivals = [one for one in done if one.is_rival and len(study.setup.splits.test)]
        return [Wanted(one.name, one.final_epochs, must_hold=False) for one in rivals]
    return _models(plan, _chosen(study, plan, done, {}))


def _tested(
    study: TuningStudy,
    plan: ConfirmPlan,
    contest: Contest,
    result: Confirmation,
    *,
    check: Callable[[], None],
    shared: Shared | None,
) -> Confirmation:
    """Train all that are tested finally, unless others have, and test them."""
    winner = result.winner
    probs: dict[str, list[NDArray[np.float32]]] = {}
    costs: dict[str, Cost] = {}
    for model in _models(plan, result):
        final = shared.final(model) if shared else contest.train_model(model)
        check()
        _log_look(study, model.name)
        probs[model.name] = contest.predict(final)
        costs[model.name] = Cost.sum([final.training])  # no more of it than that
    _trained[study] = (_Trained.of(result), final)
    members = contest.predict(final, plan.views) if plan.views else probs[winner.name]
    judged = _judged(contest, result, probs, members, most=plan.mistakes)
    trusted = _trusted(study, judged, members)
    return dataclasses.replace(judged, final_training=costs, calibration=trusted)


def _trusted(
    study: TuningStudy, result: Confirmation, members: Sequence[NDArray[np.float32]] = ()
) -> CalibrationResult | None:
    """Return how far the model's probabilities can be trusted.

    Args:
        study: The study.
        result: What is known of the winner.
        members: What each member predicts for the test images; none without test images.
    """
    several = len(members) > 1
    if not members:
        alone = result.winner.recipe.fitted and not result.from_search
        several = result.members > 1 and not alone
    found = calibrations(study, result).get("members" if several else "single")
    if found is None:
        return None
    trusted = CalibrationResult(temperature=found.temperature, n=len(found.right))
    if not members:
        return trusted
    setup = study.setup
    labels = setup.source.labels[setup.splits.test]
    before = mean_probabilities(members, result.weights)
    after = tempered(before, found.temperature)
    return dataclasses.replace(
        trusted,
        before=tuple(Trust.of(labels, before)),
        after=tuple(Trust.of(labels, after)),
        bins_before=tuple(reliability(labels, before)),
        bins_after=tuple(reliability(labels, after)),
    )


def _judged(
    contest: Contest,
    result: Confirmation,
    probs: Mapping[str, Sequence[NDArray[np.float32]]],
    members: Sequence[NDArray[np.float32]],
    *,
    most: int,
) -> Confirmation:
    """Add what predictions of the test images say.

    Args:
        contest: Where they were made.
        result: What stands before the test.
        probs: Predictions of each member of those that were tested, by name, the winner last.
        members: Those of the winner's members in all views.
        most: Mistakes that are listed.
    """
    source, index = contest.setup.source, contest.setup.splits.test
    labels = source.labels[index]
    firsts = {name: members[0] for name, members in probs.items()}
    *others, last = [contest.test(name, one) for name, one in firsts.items()]
    single = firsts.pop(result.chosen)
    ours, ensemble, gain = single, None, None
    if len(members) > 1 or result.views:
        ours = mean_probabilities(members, result.weights)
        ensemble = contest.test(result.chosen, ours)
        gain = paired_test(result.metric, labels, ours, single)
    if len(result.classes) > _MOST_CONFUSION:
        last = dataclasses.replace(last, confusion=None)
    if ensemble is not None:
        ensemble = dataclasses.replace(ensemble, confusion=last.confusion and ensemble.confusion)
        last = dataclasses.replace(last, confusion=None)
    return dataclasses.replace(
        result,
        tests=(*(dataclasses.replace(one, confusion=None) for one in others), last),
        paired={
            name: paired_test(result.metric, labels, single, theirs)
            for name, theirs in firsts.items()
        },
        mistakes=tuple(list_mistakes(source, index, ours, list(firsts.values()), most=most)),
        ensemble=ensemble,
        gain=gain,
    )


def _log_look(study: TuningStudy, what: str) -> None:
    looks = [*study.study.user_attrs.get(LOOKS_KEY, []), {"time": _now(), "what": what}]
    study.study.set_user_attr(LOOKS_KEY, looks)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _stored(study: TuningStudy, plan: ConfirmPlan, trials: int) -> Confirmation | None:
    """Return the study's confirmation, if it has the evidence of a plan on so many trials."""
    stored = Confirmation.of(study.study.user_attrs)
    return stored if stored and plan.holds(stored.basis, trials) else None
