"""The confirmed winner as a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from biotune_optuna.confirmation.asked import ASKED, as_asked
from biotune_optuna.confirmation.calibrate import calibrations
from biotune_optuna.confirmation.confirm import train_winner
from biotune_optuna.confirmation.record import ONE_MEMBER, Confirmation
from biotune_optuna.data.left_out import sentence
from biotune_optuna.data.views import views_words
from biotune_optuna.export.folder import WEIGHTS, check_target, export_model
from biotune_optuna.export.members import MEMBERS, digest
from biotune_optuna.export.predict import Predictor
from biotune_optuna.finetune.calibration import Trust
from biotune_optuna.methods.registry import contender_words
from biotune_optuna.schema import (
    LEFT_OUT_KEY,
    LOOKS_KEY,
    MODEL_KEY,
    PREDICTION_COST_KEY,
    TrialRecord,
)
from biotune_optuna.study.setup import preprocessing_of

if TYPE_CHECKING:
    from biotune_optuna.confirmation.record import TestResult
    from biotune_optuna.recipe import Recipe
    from biotune_optuna.study.objective import Observer
    from biotune_optuna.study.setup import Setup
    from biotune_optuna.study.study import TuningStudy


_log = logging.getLogger("biotune_optuna.export")


def export_winner(
    study: TuningStudy,
    directory: str | Path,
    *,
    observer: Observer | None = None,
    single: bool = False,
    what: str = "best",
    checkpoint: Callable[[], None] | None = None,
) -> Path:
    """Write the confirmed winner as a folder; see `biotune_optuna.export.export_model`.

    The model is the one that was tested, with all its members: they are trained anew, the same way
    and so (on a CPU, same thread count) to the same bits, where this process has not just trained
    them. Where trials were completed after the confirmation, a warning says so.

    Any other contender can be had the same way: it is trained on fresh seeds, if it was not
    confirmed, and then finally, with as many members. The test images are not looked at for it.

    Args:
        study: A confirmed study; for another contender than the winner any study will do.
        directory: The folder. An export of the same winner that stands there already is kept.
        observer: Told of the training.
        single: Whether the first member is written alone.
        what: ``"best"`` (default), the winner; ``"full"``, ``"probe"`` or ``"trial:N"``.
        checkpoint: Called after each epoch; raises to stop.

    Returns:
        The folder.

    Raises:
        StudyError: If the study has not been confirmed, or has no such contender.
        BioTuneError: If the folder holds something else, such as a model of other images, or cannot
            be written.
    """
    target = Path(directory)
    stored = Confirmation.of(study.study.user_attrs)
    if what == "best":
        own = study.study
        if missing := stored.unconfirmed(own.get_trials(deepcopy=False), own.user_attrs):
            _log.warning(missing)
        if _stands(study, stored, target, single=single):
            return target
    check_target(target, origin_of(study.setup))
    options: dict[str, Any] = {"observer": observer, "checkpoint": checkpoint}
    confirmed = as_asked(study, what, **options)
    is_winner = not confirmed.why.startswith(ASKED)
    if single and not is_winner:
        confirmed = dataclasses.replace(confirmed, members=1)
    winner = train_winner(study, confirmed=confirmed, **options)
    setup, recipe = study.setup, winner.recipe
    model, *members = setup.trainer.networks(winner.members[:1] if single else winner.members)
    weights = winner.weights if members else ()
    cost = None
    seen = preprocessing_of(setup, confirmed.views)
    if members or confirmed.views:
        cost = Predictor(
            model,
            members=members,
            weights=weights,
            name=setup.loaded.name,
            classes=setup.classes,
            preprocessing=seen,
            recipe=recipe,
            device=setup.trainer.device,
        ).cost()
        if is_winner:
            study.study.set_user_attr(PREDICTION_COST_KEY, cost._asdict())
    card = _card(study, confirmed, recipe)
    if cost is not None:
        card["Prediction"] = cost.words
    if recipe.fitted and len(winner.members) == 1 < confirmed.members:
        card["Members"] = ONE_MEMBER
    export_model(
        target,
        model=model,
        members=members,
        weights=weights,
        calibration={
            kind: one
            for kind, one in calibrations(study, confirmed).items()
            if members or kind == "single"
        },
        model_name=setup.loaded.name,
        classes=setup.classes,
        preprocessing=seen,
        recipe=recipe,
        card=card,
        model_args=setup.loaded.model_args,
        origin=origin_of(study.setup),
        trained_on=study.spec.fingerprints["data"],
    )
    if is_winner:
        study.study.set_user_attr(MODEL_KEY, _mark(confirmed, target, single=single))
    return target


def check_export(study: TuningStudy, directory: str | Path) -> None:
    """Refuse a folder in which `export_winner` could not write, before anything is trained.

    Raises:
        BioTuneError: If the folder holds something else.
    """
    if not _stands(study, Confirmation.of(study.study.user_attrs), Path(directory)):
        check_target(Path(directory), origin_of(study.setup))


def origin_of(setup: Setup) -> str:
    """Name images and network in a word, so that no study replaces another one's model."""
    made_of = f"{setup.loaded.name}\n{setup.spec.fingerprints['data']}"
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]


def _stands(
    study: TuningStudy, confirmed: Confirmation, target: Path, *, single: bool = False
) -> bool:
    """Whether the winner is there already."""
    mark = study.study.user_attrs.get(MODEL_KEY)
    return bool(confirmed) and mark == _mark(confirmed, target, single=single)


def _mark(confirmed: Confirmation, target: Path, *, single: bool) -> dict[str, Any]:
    """Which export is where; the weights tell whether another study has put its model there."""
    mark: dict[str, Any] = {
        "path": str(target.resolve()),
        "confirmed": confirmed.time,
        "weights": digest(target / WEIGHTS),
    }
    if members := digest(target / MEMBERS):
        mark["members"] = members
    return mark | ({"single": True} if single else {})


def _card(study: TuningStudy, result: Confirmation, recipe: Recipe) -> dict[str, Any]:
    """Return facts for the model card."""
    setup, spec = study.setup, study.spec
    tests = [(contender_words(test.name), test) for test in result.tests]
    if result.ensemble:
        chosen = contender_words(result.chosen)
        several = f", {result.members} members" * (result.members > 1)
        views = f", each image {views_words(result.views)}" if result.views else ""
        tests.append((f"{chosen}{several}{views}: this model", result.ensemble))
    ordered = sorted(tests, key=lambda pair: -pair[1].score)
    metrics = [test_row(name, test, result.metric) for name, test in ordered]
    missing = sentence(study.study.user_attrs.get(LEFT_OUT_KEY, {}))
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = study.study.get_trials(deepcopy=False, states=states)
    seconds = sum(TrialRecord(trial).seconds or 0.0 for trial in trials)
    chosen = f"{recipe.describe()}. {_choice(result)}"
    if result.from_search:
        chosen = f"{result.members} models of the search predict together. {_choice(result)}"
    return {
        "Recipe": chosen,
        **({"Members": _members(result)} if result.from_search else {}),
        "Metrics": metrics,
        **_trust(result),
        "Data": {
            "source": setup.source.name,
            "classes": len(setup.classes),
            "training and validation images": result.n_train + result.n_val,
            "test images": result.n_test,
            **({"left out": missing} if missing else {}),
            "looks at the test set": len(study.study.user_attrs.get(LOOKS_KEY, [])),
            "data fingerprint": spec.fingerprints["data"],
            "split fingerprint": spec.fingerprints["splits"],
        },
        "Training": {
            "pre-trained weights": setup.loaded.weights,
            "weights fingerprint": spec.fingerprints["weights"],
            "evaluations searched": len(trials),
            "seconds of training in the search": round(seconds, 1),
            "image passes forward in the search": sum(TrialRecord(t).forward for t in trials),
            "study seed": spec.seed,
        },
    }


def _members(result: Confirmation) -> list[dict[str, str]]:
    """Return the members of a model of the search as a table of the card."""
    weights = result.weights or (1,) * result.members
    return [
        {"model": one.name, "counts": f"{weight / sum(weights):.0%}", "recipe": one.describe}
        for one, weight in zip(result.candidates, weights, strict=True)
    ]


def test_row(name: str, test: TestResult, metric: str) -> dict[str, str]:
    """Return a test as a row of the model card's table."""
    return {
        "model": name,
        "test " + metric.replace("_", " "): f"{test.score:.4f}",
        "95 % interval": f"{test.low:.4f} to {test.high:.4f}",
    }


def _trust(result: Confirmation) -> dict[str, Any]:
    """Return how far the model's probabilities can be trusted, as a section of the card."""
    found = result.calibration
    if found is None:
        return {}
    said = (
        f"Probabilities are tempered by {found.temperature:.3f}, fitted on {found.n} validation"
        " images. timm alone gives them as the first member says them."
    )
    if result.from_search:
        said += " The same images chose the members, so the model may be less sure than it says."
    if not found.before:
        return {"Probabilities": said}
    names = [name.replace("_", " ") for name in Trust._fields]
    rows = [
        {"test images": words} | {n: f"{v:.4f}" for n, v in zip(names, values, strict=True)}
        for words, values in (("before", found.before), ("tempered", found.after))
    ]
    diagram = [
        {"confidence": f"{sure:.3f}", "accuracy": f"{right:.3f}", "test images": int(n)}
        for n, sure, right in found.bins_after
    ]
    return {"Probabilities": said, "Before and after": rows, "Reliability": diagram}


def _choice(result: Confirmation) -> str:
    """Why the winner was chosen, and whether a test followed."""
    if result.why.startswith(ASKED):
        return f"Exported because {result.why}."
    if result.from_search:
        tested = "The test images were looked at once, afterwards."
        return (
            f"Chosen by the validation score: {result.why}. So scores on validation images are too"
            f" high. {tested if result.n_test else 'No images were held out for a test.'}"
        )
    if result.n_test:
        return f"Chosen before the test: {result.why}."
    return f"Chosen on validation images: {result.why}. No images were held out for a test."
