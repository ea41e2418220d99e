"""What a study has to say, in sentences: the verdict, the search, the cost."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.confirmation.record import ONE_MEMBER
from biotune_optuna.data.views import views_words
from biotune_optuna.export.cost import PredictionCost
from biotune_optuna.genome import USUAL_RATES
from biotune_optuna.methods.registry import contender_words, methods
from biotune_optuna.page.parts import Verdict
from biotune_optuna.page.text import count, duration, plural
from biotune_optuna.report.cost import time_spent
from biotune_optuna.schema import PREDICTION_COST_KEY, TrialRecord, as_mapping
from biotune_optuna.study.keeping import best_kept, most_kept

if TYPE_CHECKING:
    from biotune_optuna.confirmation.record import Contender
    from biotune_optuna.report.view import StudyView


_Side = list[tuple[str, str]]  # a rival in words, and a sentence on how it did


def verdict(view: StudyView) -> Verdict:
    """Return what a study has found so far, never more than its numbers carry.

    Args:
        view: The study read.
    """
    winner = view.winner
    if winner is None:
        return _without_confirmation(view)
    if view.confirmation.from_search:
        return _of_search(view)
    sentences = [_test_sentence(view)]
    if view.confirmation.why:
        sentences.append(f"Why this one: {view.confirmation.why}.")
    sides = _against(view, winner)
    sentences += [sentence for side in sides for _, sentence in side]
    ahead, level, behind = ([rival for rival, _ in side] for side in sides)
    if winner.is_rival:
        tone, headline = _rival_chosen(view, winner, behind)
        if tone == "lost":
            sentences.append(
                "The search did not find a recipe that beats it; for this data the simpler method"
                " is the one to use."
            )
    else:
        tone, headline = _recipe_chosen(view, winner, ahead, level, behind)
    if view.unconfirmed:
        headline = f"{view.unconfirmed} {headline}"
    return Verdict(tone, headline, tuple(sentences))


def _of_search(view: StudyView) -> Verdict:
    """Tell what a model is that is made of the search's own models."""
    confirmed = view.confirmation
    together = plural(confirmed.members, "model")
    verb = "predicts" if confirmed.members == 1 else "predict together"
    headline = f"{together} of the search {verb}; nothing was confirmed on fresh seeds."
    if view.unconfirmed:
        headline = f"{view.unconfirmed} {headline}"
    test, single = confirmed.model_test, confirmed.winner_test
    if test is None:
        said = "No images were held out for a test."
    else:
        said = (
            f"On {test.n:,} test images, which were looked at once, after the choice, the model"
            f" reached {view.say(test.score)} {view.metric_words}"
            f" (95\u00a0% interval {view.say_interval(test.low, test.high)})"
        )
        if confirmed.views:
            said += f", each image {views_words(confirmed.views)}"
        alone = single is not None and single is not test
        said += f"; the first member alone {view.say(single.score)}." if alone and single else "."
    return Verdict(
        "open",
        headline,
        (
            said,
            f"Why these: {confirmed.why}.",
            "The validation score was used for the choice, so it is too high for this model.",
        ),
    )


def members_words(view: StudyView) -> str:
    """Return which trials' models a model of the search is made of, and how much each counts.

    Args:
        view: The study read.
    """
    confirmed = view.confirmation
    weights = confirmed.weights or (1,) * len(confirmed.from_search)
    return ", ".join(
        f"trial {number}{f' ({weight} times)' * (weight > 1)}"
        for number, weight in zip(confirmed.from_search, weights, strict=False)
    )


def method_words(method: str) -> str:
    """Return a method as a reader calls it; by its name where no such method is known here.

    Args:
        method: Its name.
    """
    if method == "biotune":
        return "BioTune's recipe"
    known = methods().get(method)
    return known.words if known else method


def label(name: str, method: str) -> str:
    """Return what tables and figures call a contender: ``BioTune, trial 12``, ``linear probe``.

    Args:
        name: Its name.
        method: Its method.
    """
    return f"BioTune, {name}" if method == "biotune" else contender_words(name)


def _recipe_chosen(
    view: StudyView, winner: Contender, ahead: list[str], level: list[str], behind: list[str]
) -> tuple[str, str]:
    """Tell how BioTune's recipe did against rivals that it is ahead of, level with, or behind."""
    if behind:
        who = " and ".join(behind)
        return (
            "lost",
            f"BioTune's recipe was chosen on validation, but {who} did better on the test.",
        )
    if level:
        who = " or ".join(level)
        return "level", f"BioTune's recipe was chosen, but the test cannot tell it from {who}."
    if ahead:
        return "won", f"BioTune's recipe won, clearly ahead of {' and '.join(ahead)}."
    # no test compares it: the confirmed means decide
    who = " or ".join(
        method_words(one.method)
        for one in view.confirmation.rivals
        if one.name in view.confirmation.plateau or winner.mean <= one.mean
    )
    if who:
        return "level", f"BioTune's recipe was chosen, but validation cannot tell it from {who}."
    ending = "" if view.confirmation.winner_test else " on validation; no test has been made"
    return "won", f"BioTune's recipe won{ending}."


def _rival_chosen(view: StudyView, winner: Contender, behind: list[str]) -> tuple[str, str]:
    """Tell that a rival was chosen: as the best, or as the cheapest of equals."""
    words = method_words(winner.method)
    name = words[0].upper() + words[1:]
    if behind:
        who = " and ".join(behind)
        return "level", f"{name} was chosen on validation, but {who} did better on the test."
    known = [one for one in view.confirmation.contenders if math.isfinite(one.mean)]
    best = max(known, key=lambda one: one.mean, default=winner)
    if winner.mean < best.mean:
        who = method_words(best.method)
        headline = f"{name} was chosen: validation cannot tell it from {who}, and it is cheaper."
        return "level", headline
    return "lost", f"{name} won; BioTune did not beat it."


def _without_confirmation(view: StudyView) -> Verdict:
    best = view.best
    running = len(view.in_state(TrialState.RUNNING))
    if best is None:
        headline = f"{view.none_complete}."
        verb = "is" if running == 1 else "are"
        more = f"{plural(running, 'trial')} {verb} running." if running else ""
        failed = len(view.in_state(TrialState.FAIL))
        more += f" {failed} failed." if failed else ""
        return Verdict("open", headline, (more.strip(),) if more else ())
    sentences = [describe_trial(view, best)]
    if view.spec:
        n = len(view.complete)
        best_of = f"It is the best of {n:,} on the same validation images, so probably too high: "
        sentences.append(
            (best_of if n > 1 else "It was measured on validation images: ")
            + "expect somewhat less on new images. The confirmation on test data is still to come."
        )
    else:
        sentences.append("The study holds no confirmation on data that the search has not seen.")
    headline = f"Best {view.metric_words} so far: {view.say(best.value)}, by trial {best.number}."
    return Verdict("open", headline, tuple(s for s in sentences if s))


def _test_sentence(view: StudyView) -> str:
    test = view.confirmation.winner_test
    if test is None:
        why = "no test has been made"
        if not view.confirmation.n_test:
            why = "no images were held out for a test"
        return f"It was confirmed on fresh seeds; {why}."
    said = (
        f"On {test.n:,} test images that no choice had seen it reached"
        f" {view.say(test.score)} {view.metric_words}"
        f" (95\u00a0% interval {view.say_interval(test.low, test.high)})."
    )
    return f"{said} {members_sentence(view)}".strip()


def members_sentence(view: StudyView) -> str:
    """Return what the members of the final model reach together; empty where there is one alone.

    Args:
        view: The study read.
    """
    if view.confirmation.from_search:
        return ""
    together, gain = view.confirmation.ensemble, view.confirmation.gain
    if together is None:
        winner = view.confirmation.winner
        return ONE_MEMBER if winner.recipe.fitted and view.confirmation.members > 1 else ""
    views = view.confirmation.views
    seen = f", each image {views_words(views)}" if views else ""
    said = f"That is one training of it. The model is {view.confirmation.members} of them, which"
    said += f" predict together{seen}:"
    if view.confirmation.members == 1:
        said = f"The model sees each image {views_words(views)}:"
    span = view.say_interval(together.low, together.high)
    said += f" {view.say(together.score)} ({span})"
    if gain is not None:
        span = view.say_interval(gain.low, gain.high, difference=True)
        said += f", {view.say_difference(gain.difference)} (95\u00a0% interval {span})"
    return f"{said}."


def _against(view: StudyView, winner: Contender) -> tuple[_Side, _Side, _Side]:
    """Return the rivals that the winner beats clearly, is level with, or loses to."""
    ahead, level, behind = _Side(), _Side(), _Side()
    for against, (difference, low, high, p) in view.paired.items():
        other = view.confirmation.contender(against)
        method = other.method if other else against
        if method == winner.method:
            continue
        name = method_words(method)
        between = f"95\u00a0% interval {view.say_interval(low, high, difference=True)}"
        between += f", p = {p:.2g}" if math.isfinite(p) else ""
        size = view.say_difference(abs(difference), sign=False)
        if low > 0:
            ahead.append((name, f"It is {size} better than {name} ({between})."))
        elif high < 0:
            behind.append((name, f"It is {size} worse than {name} ({between})."))
        else:
            where = "ahead of" if difference >= 0 else "behind"
            apart = f"{size} {where}" if any(c in "123456789" for c in size) else "level with"
            level.append(
                (name, f"It is {apart} {name}; the test cannot tell them apart ({between}).")
            )
    return ahead, level, behind


def describe_trial(view: StudyView, trial: FrozenTrial) -> str:
    """Return a trial's recipe, or its parameters where it has none.

    Args:
        view: The study read.
        trial: One of its trials.
    """
    if words := view.recipe_words(trial):
        return f"Its recipe: {words}."
    if not trial.params:
        return ""
    said = [
        f"{k} = {v:.4g}" if isinstance(v, float) else f"{k} = {v}" for k, v in trial.params.items()
    ]
    more = f" and {len(said) - 8} more" if len(said) > 8 else ""
    return f"Its parameters: {', '.join(said[:8])}{more}."


def search_sentences(view: StudyView) -> list[str]:
    """Return what was searched, for a reader who has never seen a study.

    Args:
        view: The study read.
    """
    states = {
        "complete": len(view.in_state(TrialState.COMPLETE)),
        "stopped early": len(view.in_state(TrialState.PRUNED)),
        "failed or stopped": len(view.in_state(TrialState.FAIL)),
        "running": len(view.in_state(TrialState.RUNNING)),
    }
    said = ", ".join(f"{n:,} {words}" for words, n in states.items() if n)
    if not view.spec:
        return [f"The study holds {plural(len(view.trials), 'trial')} ({said or 'none yet'})."]
    spec = view.spec
    blocks = f"its {len(view.blocks)} blocks" if view.blocks else "its blocks"
    sentences = [
        f"The search looked for a way to fine-tune {spec.get('model')} on {spec.get('data')}. A"
        f" recipe says for each of {blocks} whether it stays as it was pre-trained (frozen) or is"
        " trained, and how fast.",
        f"{plural(view.evaluated, 'recipe')} {'was' if view.evaluated == 1 else 'were'} evaluated"
        f" ({said or 'none yet'}).",
    ]
    sentences += rate_sentences(view)
    generations = {TrialRecord(t).generation for t in view.trials} - {None}
    if len(generations) > 1:
        sentences.append(
            f"They came in {len(generations)} generations: good recipes were crossed and varied to"
            " make the next ones."
        )
    trainings = int(spec.get("n_seeds") or 1)
    if spec.get("preset") != "paper" or spec.get("scheme") == "kfold":
        trainings *= int(spec.get("n_folds") or 1)
    times = {1: "once", 2: "twice"}.get(trainings, f"{trainings} times")
    sentences.append(
        f"Each was trained {'up to ' if spec.get('racing') and trainings > 1 else ''}{times} and"
        f" judged by its {'mean ' * (trainings > 1)}{view.metric_words} on validation images."
    )
    return sentences


def rate_sentences(view: StudyView) -> list[str]:
    """Between which bounds base rates are searched, where the usual ones do not suit.

    Args:
        view: The study read.
    """
    check = view.rate_check
    tried = [f"{run['lr']:.2g}" for run in check.tried]
    if len(tried) < 2:
        return []
    low, high = check.bounds
    lowered = (low, high) != USUAL_RATES
    at = ", at ".join(tried[:-1] if lowered else tried)
    learned = f"in a short training at {at} the whole network learned nothing."
    if lowered:
        return [f"Base rates are searched between {low:g} and {high:g}: {learned}"]
    return [f"Neither the usual base rates nor lower ones may suit: {learned}"]


def probe_sentence(view: StudyView) -> str:
    """Return what a linear probe reached before the search, empty where there was none.

    Args:
        view: The study read.
    """
    answer = view.first_answer
    if not math.isfinite(answer.value):
        return ""
    return (
        f"A linear probe of the frozen network reaches {view.say(answer.value)} {view.metric_words}"
        f" on {answer.n:,} validation images ({view.say_interval(answer.low, answer.high)});"
        " the search must beat that."
    )


def kept_sentence(view: StudyView) -> str:
    """Return how many models of trials are kept, and their size; empty where none are.

    Args:
        view: The study read.
    """
    kept = best_kept(view.trials, most_kept(view.user_attrs))
    if not kept:
        return ""
    size = sum(TrialRecord(trial).kept.bytes for trial in kept) / 1e6
    one = len(kept) == 1
    best = "model of the best trial is" if one else f"models of the {len(kept)} best trials are"
    return f"The {best} kept: {size:,.1f} MB."


def cost_sentences(view: StudyView) -> list[str]:
    """Return what the study cost, and what that compares to.

    Args:
        view: The study read.
    """
    spent = sum(time_spent(view).values())
    if spent <= 0:
        return []
    sentences = [f"All together took {duration(spent)} of computing."]
    forward, backward = view.passes
    if forward:
        sentences.append(
            f"{count(forward)} images went forward through the network and {count(backward)}"
            " backward."
        )
    search = search_totals(view)
    if search.trainings:
        sentences.append(search.sentence)
    predicting = PredictionCost.of(as_mapping(view.user_attrs.get(PREDICTION_COST_KEY)))
    confirmed = view.confirmation
    if predicting and (confirmed.members > 1 or confirmed.views):
        sentences.append(predicting.words)
    full = view.confirmation.contender("full")
    if full and full.forward and full.scores:
        times = forward / (full.forward / len(full.scores))
        if times >= 1.5:
            sentences.append(
                f"That is as many forward passes as {times:,.0f} runs of full fine-tuning."
            )
    return sentences


class SearchTotals(NamedTuple):
    """What the trainings of the search came to.

    Attributes:
        trainings: How many there were.
        epochs: Their epochs.
        cached: Image passes forward whose frozen blocks' outputs came from memory.
        peak_mb: The most memory that one of them took, in MiB.
        devices: How many ran on what, as ``{"NVIDIA H200, bf16": 60}``, most first.
    """

    trainings: int
    epochs: int
    cached: int
    peak_mb: float
    devices: dict[str, int]

    @property
    def sentence(self) -> str:
        """The totals in words."""
        said = f"The search took {plural(self.trainings, 'training')}, {count(self.epochs)} epochs"
        if self.cached:
            said += f"; in {count(self.cached)} image passes frozen blocks were not run again"
        return f"{said}; the most memory taken was {count(self.peak_mb)} MiB.{self._where}"

    @property
    def _where(self) -> str:
        if not self.devices:
            return ""
        if len(self.devices) == 1:
            return f" They ran on {next(iter(self.devices))}."
        each = "; ".join(f"{plural(n, 'training')} on {kind}" for kind, n in self.devices.items())
        return f" They ran on devices that round differently: {each}."


def search_totals(view: StudyView) -> SearchTotals:
    """Add up the records of all runs of the search.

    Args:
        view: The study read.
    """
    runs = [run for trial in view.trials for run in TrialRecord(trial).runs]
    kinds = Counter(run.device for run in runs if run.device)
    return SearchTotals(
        trainings=len(runs),
        epochs=sum(run.epochs for run in runs),
        cached=sum(run.cache_hits for run in runs),
        peak_mb=max((run.peak_mb for run in runs), default=0.0),
        devices=dict(kinds.most_common()),
    )
