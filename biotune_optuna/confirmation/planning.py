"""The plan of a study that begins: its clock, set by a few batches, and what fits into a time."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import optuna
import timm

from biotune_optuna.clock import (
    Plan,
    Work,
    choose_plan,
    epochs_up_to,
    evidence_up_to,
    full_training,
    least_time,
    members_up_to,
    sides_up_to,
    trials_up_to,
)
from biotune_optuna.confirmation.record import trainings
from biotune_optuna.confirmation.timing import ENDED, Timing, plan_of, trial_epochs, trial_share
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.data.sources.scan import worker_count
from biotune_optuna.effort import NORMAL, Effort
from biotune_optuna.errors import StudyError
from biotune_optuna.finetune.device import resolve_device
from biotune_optuna.finetune.speed import measure_speed
from biotune_optuna.models.weights import create_model
from biotune_optuna.page.text import duration
from biotune_optuna.schema import CLOCK_KEY, Cost, TrialRecord, as_mapping
from biotune_optuna.study.choice import is_auto
from biotune_optuna.study.setup import own_side, split
from biotune_optuna.study.study import read_spec
from biotune_optuna.study.totals import count_trials

if TYPE_CHECKING:
    from biotune_optuna.confirmation.plan import ConfirmPlan
    from biotune_optuna.data.sources.image_source import ImageSource
    from biotune_optuna.study.spec import StudySpec
    from biotune_optuna.study.study import TuningStudy

_READ = 8  # images that tell how long decoding takes


def timing_of(
    study: TuningStudy,
    total: int | None,
    evidence: ConfirmPlan,
    *,
    limit: float | None = None,
    plan: Plan | None = None,
    most: int = NORMAL.trials,
) -> Timing:
    """Return a study's clock; where nothing is known yet, a few batches are trained to set it.

    Args:
        study: The study.
        total: Finished trials that it shall hold; None where only time ends the search.
        evidence: The confirmation that is wanted.
        limit: Seconds for everything; None for no limit.
        plan: What was planned; None where nothing was.
        most: Trials at most where only time ends the search.
    """
    setup, spec = study.setup, study.spec
    trials = study.study.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state in ENDED and trial.duration is not None]
    took = [trial.duration.total_seconds() for trial in ended if trial.duration is not None]
    stored = as_mapping(study.study.user_attrs.get(CLOCK_KEY))
    done = count_trials(trials).finished
    if plan is None:
        plan = Plan(
            image_size=setup.image_size,
            epochs=spec.train.epochs,
            trials=total if total is not None else max(1, done),
            top_k=evidence.top_k,
            n_runs=evidence.n_runs,
            rates=len(evidence.rates),
            members=evidence.members,
        )
    work = Work(
        n_train=len(setup.splits.train),
        n_val=len(setup.splits.val),
        n_test=len(setup.splits.test),
        runs=len(spec.search_runs()),
        rivals=evidence.rivals,
        reuse=evidence.reuse and spec.n_folds == 1,
        from_search=evidence.from_search,
    )
    if stored:
        full = float(stored["full"])
    else:
        speed = measure_speed(
            copy.deepcopy(setup.trainer.model),
            spec.train,
            device=setup.trainer.device,
            sides=[setup.image_size],
        )
        full = full_training(plan, work, speed)
    records = [TrialRecord(trial) for trial in ended]
    confirming = Cost.sum(trainings(study.study.user_attrs).values()).seconds
    spent = sum(took) or sum(one.seconds or 0.0 for one in records)
    shares = [trial_share(trial, plan, work) for trial in ended]
    known = {"spent": spent + confirming, "trials": took, "shares": shares}
    known["epochs"] = [trial_epochs(trial, plan) for trial in ended]
    known |= {"done": done, "most": most}
    return Timing(plan, work, full, evidence, limit=limit, **known)  # type: ignore[arg-type]


def plan_study(
    seconds: float | None,
    spec: StudySpec,
    *,
    storage: optuna.storages.BaseStorage,
    name: str,
    given: Mapping[str, Any],
    source: ImageSource | None = None,
    device: str = "auto",
    at_least: bool = False,
    effort: Effort = NORMAL,
    spent: float = 0.0,
) -> tuple[StudySpec, Plan | None]:
    """Return spec and plan for an effort, and a time: those of a study that was begun, else new.

    Args:
        seconds: The time for everything; None is no limit.
        spec: The study; what is to be chosen in it is replaced.
        storage: Where the study is or will be.
        name: The study's name.
        given: What is not to be chosen, as in `plan_within`.
        source: Images in memory, instead of ``spec.data``.
        device: Where to train.
        at_least: Take the least plan where even that takes longer, instead of refusing.
        effort: The most of everything that is not given.
        spent: Seconds of the limit that are over.

    Returns:
        Spec and plan; no plan without a limit.

    Raises:
        StudyError: If even the least plan takes longer, or the network is still to be chosen.
    """
    if seconds is None and effort == NORMAL:
        return spec, None
    if seconds is not None and is_auto(spec.model):
        raise StudyError(
            f"a time limit for everything needs a network that is known, and model {spec.model!r} "
            "leaves it open; name one, which `biotune models` ranks"
        )
    if name not in {one.study_name for one in storage.get_all_studies()}:
        if seconds is None:
            return with_effort(spec, effort, given=given, source=source), None
        return plan_within(
            seconds,
            spec,
            given=given,
            source=source,
            device=device,
            at_least=at_least,
            effort=effort,
            spent=spent,
        )
    study = optuna.load_study(study_name=name, storage=storage)
    stored, clock = read_spec(study), as_mapping(study.user_attrs.get(CLOCK_KEY))
    if stored is None:
        return spec, None
    if given.get("image_size") is None:
        spec = dataclasses.replace(spec, image_size=stored.image_size)
    if given.get("epochs") is None:
        train = dataclasses.replace(spec.train, epochs=stored.train.epochs)
        spec = dataclasses.replace(spec, train=train)
    return spec, plan_of(clock) if clock and seconds is not None else None


def with_effort(
    spec: StudySpec,
    effort: Effort,
    *,
    given: Mapping[str, Any],
    source: ImageSource | None = None,
) -> StudySpec:
    """Return a spec with the epochs and the image size of an effort.

    The images of a network that is still to be chosen stay as they are.

    Args:
        spec: The study.
        effort: What it takes; the normal one changes nothing.
        given: What is not to be changed: ``image_size`` and ``epochs``, where they are no None.
        source: Images in memory, instead of ``spec.data``.
    """
    spec = _with_epochs(spec, effort, given)
    if effort.side is None or given.get("image_size") is not None or is_auto(spec.model):
        return spec
    source = _images(spec) if source is None else source
    model = create_model(spec.model, num_classes=len(source.classes), weights="none")
    own = int(model.data_config["input_size"][-1])
    return dataclasses.replace(spec, image_size=_sides(spec, source, effort, own)[-1])


def _with_epochs(spec: StudySpec, effort: Effort, given: Mapping[str, Any]) -> StudySpec:
    if effort == NORMAL or given.get("epochs") is not None:
        return spec
    return dataclasses.replace(spec, train=dataclasses.replace(spec.train, epochs=effort.epochs))


def _images(spec: StudySpec) -> ImageSource:
    return open_images(
        spec.data, group_regex=spec.group_regex, skip_bad_images=spec.skip_bad_images
    )


def _reading(source: ImageSource) -> float:
    """Return the seconds that decoding all images takes, by some of them.

    Every image is decoded once for the pixel cache.
    """
    some = range(0, len(source), max(1, len(source) // _READ))
    began = time.monotonic()
    for index in some:
        source.load(index)
    each = (time.monotonic() - began) / len(some)
    return each * len(source) / worker_count()


def _sides(spec: StudySpec, source: ImageSource, effort: Effort, own: int) -> list[int]:
    """Return the image sizes that suit a model, images and an effort, ascending."""
    config = timm.get_pretrained_cfg(spec.model, allow_unregistered=True)
    if config is not None and config.fixed_input_size:
        return [own]
    most = own_side(own, source)
    return sides_up_to(most if effort.side is None else min(most, effort.side))


def plan_within(
    seconds: float,
    spec: StudySpec,
    *,
    given: Mapping[str, Any],
    source: ImageSource | None = None,
    device: str = "auto",
    at_least: bool = False,
    effort: Effort = NORMAL,
    spent: float = 0.0,
) -> tuple[StudySpec, Plan]:
    """Choose image size, epochs, trials and evidence for a time limit on this machine.

    A few batches are trained to learn how fast it is. Reading the images counts too.

    Args:
        seconds: The time for everything.
        spec: The study; what is to be chosen in it is replaced.
        given: What is not to be chosen: any of ``image_size``, ``epochs`` and ``trials``; and
            ``most_trials`` and ``members``, which are not to be exceeded; ``from_search``, whether
            the model is made of the search's own.
        source: Images in memory, instead of ``spec.data``.
        device: Where to train.
        at_least: Take the least plan where even that takes longer, instead of refusing.
        effort: The most of everything that is not given.
        spent: Seconds of the limit that are over.

    Returns:
        The spec with image size and epochs, and the whole plan.

    Raises:
        StudyError: If even the least plan takes longer.
    """
    spec = _with_epochs(spec, effort, given)
    began = time.monotonic()
    opening = 0.0
    if source is None:
        source = _images(spec)
        opening = time.monotonic() - began  # once more where the study is made
    before = opening + _reading(source)
    splits = split(spec, source)
    work = Work(
        n_train=len(splits.train),
        n_val=len(splits.val),
        n_test=len(splits.test),
        runs=len(spec.search_runs()),
        reuse=spec.n_folds == 1,
        from_search=bool(given.get("from_search")),
    )
    model = create_model(spec.model, num_classes=len(source.classes), weights="none")
    if given.get("image_size") is not None:
        sides = [int(given["image_size"])]
    else:
        sides = _sides(spec, source, effort, int(model.data_config["input_size"][-1]))
    epochs = epochs_up_to(spec.train.epochs)
    if given.get("epochs") is not None:
        epochs = [int(given["epochs"])]
    choice: dict[str, Any] = {
        "sides": sides,
        "epochs": epochs,
        "trials": trials_up_to(effort.trials),
        "evidence": evidence_up_to(effort.top_k, effort.n_runs),
    }
    members = members_up_to(int(given.get("members") or effort.members))
    if given.get("trials") is not None:
        choice["trials"] = [int(given["trials"])]
    elif given.get("most_trials") is not None:
        choice["trials"] = trials_up_to(int(given["most_trials"]))
    measured = sorted({sides[0], sides[-1]})
    speed = measure_speed(model.model, spec.train, device=resolve_device(device), sides=measured)
    before += spent + time.monotonic() - began
    plan = choose_plan(max(0.0, seconds - before), work, speed, members=members, **choice)
    if plan is None and at_least:
        plan = choose_plan(least_time(work, speed, **choice), work, speed, **choice)
    if plan is None:
        least = duration(before + least_time(work, speed, **choice))
        raise StudyError(
            f"{duration(seconds)} is too short on this machine: the least that can be done takes "
            f"about {least}; give more time, fewer images (train_size) or a smaller model"
        )
    train = dataclasses.replace(spec.train, epochs=plan.epochs)
    return dataclasses.replace(spec, image_size=plan.image_size, train=train), plan
