"""The report's chapters in their order: what each says in words and tables.

Figures choose the chapter that they stand in themselves, see `biotune_optuna.report.figures`.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from biotune_optuna.data.views import views_words
from biotune_optuna.finetune.calibration import Trust
from biotune_optuna.page.parts import Bars, Code, Facts, Part, Pictures, Table, Text, Tiles, texts
from biotune_optuna.page.text import count, duration, plural
from biotune_optuna.report.bill import ALONE, bill
from biotune_optuna.report.cost import time_spent
from biotune_optuna.report.ranking import ranking_parts
from biotune_optuna.report.view import finite, seconds
from biotune_optuna.report.words import (
    cost_sentences,
    describe_trial,
    label,
    members_words,
    method_words,
)
from biotune_optuna.schema import TrialRecord

if TYPE_CHECKING:
    from biotune_optuna.confirmation.record import Contender
    from biotune_optuna.report.view import StudyView


MAX_CLASS_ROWS = 20
MAX_MISTAKES = 24


def tiles(view: StudyView) -> list[Part]:
    """Return the few numbers to take away.

    Args:
        view: The study read.
    """
    found: list[tuple[str, str]] = []
    winner, test = view.winner, view.confirmation.model_test
    if test:
        words = f"{view.metric_words} on the test, {view.say_interval(test.low, test.high)}"
        single = view.confirmation.winner_test
        if single and single is not test:
            members = view.confirmation.members
            alone = f"by one of its {members} members" if members > 1 else "by each image as it is"
            words += f"; {view.say(single.score)} {alone}"
        if view.confirmation.from_search:
            words += "; nothing was confirmed on fresh seeds"
        found.append((view.say(test.score), words))
    elif view.best:
        where = "on validation " if view.spec else ""
        found.append((view.say(view.best.value), f"best {view.metric_words} {where}so far"))
    for name, pair in view.paired.items():
        other = view.confirmation.contender(name)
        if other and other.method in ("full", "biotune"):
            span = view.say_interval(pair.low, pair.high, difference=True)
            words = f"on the test against {method_words(other.method)}, {span}"
            words += "; one training each" if view.confirmation.ensemble else ""
            found.append((view.say_difference(pair.difference), words))
    share = winner.trainable_pct if winner else None
    if share is None and view.best is not None:
        share = TrialRecord(view.best).trainable_pct
    if share is not None:
        found.append((f"{share:.3g} %", "of the parameters are trained"))
    spent = sum(time_spent(view).values())
    if spent > 0:
        found.append((duration(spent), "of computing in all"))
    return [Tiles(found)] if found else []


def compare(view: StudyView) -> Iterator[Part]:
    """Say how all confirmed contenders did."""
    confirmation, rows = view.confirmation, []
    ranked = confirmation.ranked
    for one in ranked:
        test = confirmation.test(one.name)
        span = f" ({view.say_interval(test.low, test.high)})" if test else ""
        rows.append(
            (
                label(one.name, one.method),
                _with_error(view, one.search_value, one.search_stderr or None),
                f"{_with_error(view, one.mean, one.stderr)} ({len(one.scores)})"
                if one.scores
                else "–",
                view.say(test.score) + span if test else "–",
                f"{one.trainable_pct:.3g} %",
                count(one.forward),
                duration(one.seconds),
            )
        )
    if not rows:
        return
    if together := confirmation.ensemble:
        cost = confirmation.final_training.get(together.name)
        members = plural(confirmation.members, "member")
        rows.append(
            (
                f"{label(together.name, together.method)}, {members}",
                "–",
                "–",
                f"{view.say(together.score)} ({view.say_interval(together.low, together.high)})",
                f"{view.winner.trainable_pct:.3g} %" if view.winner else "–",
                count(cost.forward) if cost else "–",
                duration(cost.seconds) if cost else "–",
            )
        )
    head = ("Method", "Search", "Confirmed", "Test (interval)", "Trained", "Images", "Time")
    strong = ranked.index(view.winner) if view.winner else None
    strong = len(rows) - 1 if confirmation.ensemble else strong
    yield Table(head, rows, strong=strong)
    yield Text(
        "Confirmed: mean and standard error over so many trainings on fresh seeds. Test: with its"
        " 95 % interval. Images (forward passes) and time: what confirming took.",
        "soft",
    )
    if confirmation.from_search:
        yield Text(
            "Nothing was trained after the search: the members are models that it kept, chosen by"
            f" their predictions for the validation images: {members_words(view)}. No rival was"
            " trained. Last row: the model that is kept, the mean of their probabilities."
            if confirmation.ensemble
            else "Nothing was trained after the search: the model is the one of its own that"
            " predicts the validation images best. No rival was trained.",
            "soft",
        )
    elif confirmation.ensemble:
        yield Text(
            "Last row: the model that is kept. Its members are trainings of the winner on different"
            " seeds, and predict the mean of their probabilities; all other tests are of one"
            " training each. Images and time: what its final trainings took.",
            "soft",
        )
    if confirmation.views:
        yield Text(
            f"In the last row each image is shown {views_words(confirmation.views)}; all other"
            " tests are of images as they are.",
            "soft",
        )
    if reused := [label(one.name, one.method) for one in ranked if one.reused]:
        yield Text(
            f"The search had trained {', '.join(reused)} again on a fresh seed: that run counts as"
            " one of the confirmed ones, and its images and time as theirs.",
            "soft",
        )
    for one in ranked:
        if one.grid:
            tried = ", ".join(f"{setting['lr']:g}" for setting in one.grid)
            name = method_words(one.method)
            yield Text(
                f"{name[0].upper()}{name[1:]} had its base rate chosen on the same validation"
                f" images{_rates_known(one)} by trainings at {tried}; it took {one.recipe.lr:g}.",
                "soft",
            )


def _rates_known(one: Contender) -> str:
    """Say where a model of the search chose what base rates to train a rival at."""
    if not one.expected:
        return ""
    rates = [point["lr"] for point in one.expected]
    return f", from {min(rates):g} to {max(rates):g}, by what the search's trials say of rates and"


def _said(value: Any, say: Callable[[float], str]) -> str:
    """Return a number in words, or a dash for one that is not known."""
    return say(value) if finite(value) else "–"


def _with_error(view: StudyView, value: Any, error: Any) -> str:
    """Return a value of the metric with its standard error where both are known."""
    if not finite(value) or not finite(error):
        return _said(value, view.say)
    spread = f"{100 * error:.1f}" if view.is_accuracy else f"{error:.2g}"
    return f"{view.say(value)} ± {spread}"


def recipe(view: StudyView) -> Iterator[Part]:
    """Say the recipe in words, and draw it block by block."""
    winner, trial = view.winner, view.chosen_trial
    multipliers = winner.recipe.multipliers if winner else None
    if winner and winner.is_rival:
        words = method_words(winner.method)
        named = winner.describe.startswith(words)  # "full fine-tuning; base rate 0.003"
        yield Text(f"The winner is {winner.describe if named else f'{words}: {winner.describe}'}.")
        if trial is not None and trial.number in view.recipes:
            multipliers = view.recipes[trial.number]
            yield Text(f"Below is BioTune's best, trial {trial.number}.")
    elif winner and multipliers and view.confirmation.from_search:
        yield Text(f"The members' recipes, each as it was searched: {members_words(view)}.")
        for one in view.confirmation.candidates:
            yield Text(f"{one.name.capitalize()}: {one.describe}.")
        yield Text(f"Below is {winner.name}'s, the first that was chosen.")
    elif winner and multipliers:
        yield Text(f"{winner.name.capitalize()}: {winner.describe}.")
    elif trial is not None:
        multipliers = view.recipes.get(trial.number)
        yield Text(f"The best so far is trial {trial.number}. {describe_trial(view, trial)}")
    if multipliers:
        yield Bars([_bar(str(block), float(rate)) for block, rate in multipliers.items()])
        yield Text(
            "From the input (top) to the classifier. Hatched: kept as pre-trained. Bars: how fast"
            " the block learns, from 0.1× to 10× of the base learning rate.",
            "soft",
        )


def _bar(block: str, rate: float) -> tuple[str, float | None, str]:
    if rate <= 0:
        return block, None, "frozen"
    return block, min(1.0, max(0.03, (math.log10(rate) + 1) / 2)), f"{rate:.2g}×"


def model(view: StudyView) -> Iterator[Part]:
    """Say how the network was chosen, where the user left that open."""
    if view.race:
        yield from _race(view)
    choice = view.model_choice
    if not choice.chosen:
        return
    yield Text(f"{choice.chosen} was chosen on training and validation images: {choice.why}.")
    if choice.tried:
        say = view.say
        yield Table(
            ("Network", "Half frozen", "All trained", "The better again", "Mean of the better"),
            [
                (one.name, say(one.half), say(one.full), say(one.again), say(one.value))
                for one in choice.tried
            ],
            strong=[one.name for one in choice.tried].index(choice.chosen),
        )
    yield from ranking_parts(choice.ranked, view.metric_words)


def _race(view: StudyView) -> Iterator[Part]:
    """Say which networks were searched side by side."""
    networks = sorted(view.race.networks, key=lambda one: (one.left == 0, one.left, one.worth))
    mine = str((view.spec or {}).get("model"))
    yield Text(
        f"{plural(len(networks), 'network')} were searched side by side, each in a study of its own"
        " with the same images. After each round the better half went on, by what the model of the"
        " landscape expects of the best recipe; the last two were compared on fresh seeds. All"
        " scores are of validation images: only the network that was left has been tested. What"
        " the others took is counted in the cost."
    )
    yield Table(
        ("Network", "Trials", "Best recipe expected", "On fresh seeds", "Left behind"),
        [
            (
                one.name,
                f"{one.trials:,}",
                view.say(one.value),
                view.say(one.fresh),
                f"after round {one.left}" if one.left else "no",
            )
            for one in networks[::-1]
        ],
        strong=next((n for n, one in enumerate(networks[::-1]) if one.name == mine), None),
    )


def cost(view: StudyView) -> Iterator[Part]:
    """Say what all of it took, and each part."""
    yield from texts(cost_sentences(view))
    lines = bill(view)
    if len(lines) > 1:
        rows = [(one.part, count(one.passes), duration(one.seconds)) for one in lines]
        yield Table(("Part", "Image passes", "Time"), rows)
    if lines and lines[-1].part == ALONE:
        yield Text(
            "Image passes are those forward and backward. The last row is an estimate: five rates,"
            " the confirmation's seeds and as many members, each as long as those that were made.",
            "soft",
        )


def errors(view: StudyView) -> Iterator[Part]:
    """Say per class how many of its test images are found, and how often its name is right."""
    test, classes = view.confirmation.model_test, view.confirmation.classes
    counts = test.confusion if test else None
    if not counts or len(counts) != len(classes):
        return
    rows = []
    for i, name in enumerate(classes):
        true, said, right = sum(counts[i]), sum(row[i] for row in counts), counts[i][i]
        found = right / true if true else math.nan
        rows.append((found, str(name), true, right / said if said else math.nan))
    rows.sort(key=lambda r: (math.isnan(r[0]), r[0]))
    shown = rows[:MAX_CLASS_ROWS]
    yield Text(
        f"The {len(shown)} hardest of {len(rows)} classes."
        if len(shown) < len(rows)
        else "The hardest class first."
    )
    share = lambda value: f"{100 * value:.1f} %"  # noqa: E731 - a format
    yield Table(
        ("Class", "Test images", "Recall", "Precision"),
        [
            (name, str(n), _said(found, share), _said(right, share))
            for found, name, n, right in shown
        ],
    )
    yield Text(
        "Recall: share of the class's images that got its name. Precision: share of the images"
        " given this name that are of the class.",
        "soft",
    )


def wrong(view: StudyView) -> Iterator[Part]:
    """Say what the model gets wrong, by class and by image."""
    yield from errors(view)
    yield from mistakes(view)


def mistakes(view: StudyView) -> Iterator[Part]:
    """Show the test images most often wrong, each with its name and what was said."""
    found = view.confirmation.mistakes
    kinds = ("data:image/png;", "data:image/jpeg;")
    shown = [(one, one.thumbnail if one.thumbnail.startswith(kinds) else "") for one in found]
    if not shown:
        return
    yield Text("The test images most often wrong. Wrong labels often turn up here.")
    yield Pictures(
        [
            (
                picture,
                (
                    f"{one.label}, said {one.predicted}"
                    + (f" ({one.probability:.0%})" if math.isfinite(one.probability) else ""),
                    one.id,
                ),
            )
            for one, picture in shown[:MAX_MISTAKES]
        ]
    )


def use(view: StudyView) -> Iterator[Part]:
    """Say how to use the model and the recipe."""
    folder = view.model_dir
    if not view.spec:
        if view.best is None:
            return
        yield Text("The best parameters, for your own objective:")
        yield Code(
            f"study = optuna.load_study(study_name={view.name!r}, storage=...)\n"
            f"study.best_params    # trial {view.best.number},"
            f" {duration(seconds(view.best) or 0.0)}"
        )
    elif not folder:
        start = "Write" if view.winner else "Once a winner has been confirmed, write"
        yield Text(f"{start} the tuned model into a folder, then classify images with it:")
        place = f" --storage {shlex.quote(view.storage_url)}" if view.storage_url else ""
        yield Code(
            f"biotune export --study {shlex.quote(view.name)}{place} --to my-model\n"
            "biotune predict my-model photo.jpg"
        )
    else:
        yield Text(f"The tuned model is in {folder}. From the command line:")
        yield Code(f"biotune predict {shlex.quote(folder)} photo.jpg another.png")
        several = view.confirmation.members > 1
        yield Text(f"From Python, with timm alone{' (its first member)' * several}:")
        yield Code(
            "import timm\n\n"
            f"model = timm.create_model({_literal(f'local-dir:{folder}')}, pretrained=True).eval()"
        )
        if view.winner and not view.winner.is_rival:
            yield Text("The recipe in a training loop of your own, for new data:")
            yield Code(
                "from biotune_optuna import Recipe\n\n"
                f"recipe = Recipe.load({_literal(f'{folder}/recipe.json')})\n"
                "optimizer = torch.optim.AdamW(recipe.apply(model))"
            )


def _literal(text: str) -> str:
    """Return a string as Python code, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def trust(view: StudyView) -> Iterator[Part]:
    """Say what the numbers mean and what they do not."""
    if view.left_out:
        yield Text(f"Not all of the data is used: {view.left_out}.")
    looks = view.test_looks
    if looks:
        when = "; ".join(
            f"{look.get('what', '?')} at {str(look.get('time', '?'))[:16].replace('T', ' ')}"
            for look in looks
        )
        yield Text(f"The test data was looked at in {plural(len(looks), 'test')}: {when}.")
        yield Text(
            "Some of these belong to earlier confirmations. Each further look makes the test"
            " score a little more optimistic."
            if len(looks) > len(view.confirmation.tests)
            else "Each model was tested once, after the choice had been made."
            + " The members of the chosen one were tested together and alone in that one look."
            * (view.confirmation.ensemble is not None)
        )
    elif view.confirmation and not view.confirmation.n_test:
        yield Text("No images were held out for a test.")
    elif view.spec:
        yield Text("The test data has not been looked at yet.")
    if len(view.complete) > 1:
        best = f"is the best of {len(view.complete):,}, so it tends to be too high"
        without = "The confirmed and the test values do not have this error."
        if view.confirmation.from_search:
            without = (
                "The validation images chose the members as well. Only the test does not have this"
                " error."
            )
        yield Text(
            f"The best search value {best}. {without}"
            if view.confirmation
            else f"The best value {best}."
        )
    if view.confirmation:
        yield Text(
            "A 95 % interval says how far the score could have moved with other test images of the"
            " same kind. It says nothing about images of another kind."
        )
    yield from _probabilities(view)
    if len(view.confirmation.plateau) > 1:
        equals = ", ".join(view.confirmation.plateau)
        yield Text(f"On fresh seeds these cannot be told apart: {equals}.")
    if view.metric == "macro_accuracy":
        yield Text("Macro accuracy is the mean over classes: rare classes count like common ones.")


def _probabilities(view: StudyView) -> Iterator[Part]:
    """Say how far the model's probabilities can be trusted."""
    found = view.confirmation.calibration
    if found is None:
        return
    surer = "less sure" if found.temperature > 1 else "surer"
    yield Text(
        f"The model's probabilities are tempered by {found.temperature:.2f}, which makes them"
        f" {surer}; that was fitted on {plural(found.n, 'prediction')} for validation images, never"
        " on the test."
        + " The same images chose the members, so the model may be less sure than it says."
        * bool(view.confirmation.from_search)
    )
    if found.before:
        rows = zip(Trust._fields, found.before, found.after, strict=True)
        yield Table(
            ("On the test images", "As the networks say", "Tempered"),
            [
                (name.replace("_", " ").capitalize(), f"{before:.3f}", f"{after:.3f}")
                for name, before, after in rows
            ],
        )
        yield Text(
            "Of all three less is better. Calibration error: how far confidence and accuracy are"
            " apart.",
            "soft",
        )


def settings(view: StudyView) -> list[Part]:
    """Return every stored setting."""
    return [Facts(list(_flat(view.spec, "")))] if view.spec else []


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            text = " to ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield prefix + str(key), text


class Chapter(NamedTuple):
    """A chapter of the report.

    Attributes:
        title: Its heading.
        words: What it says above its figures.
        ours: Whether it is left out for a study that plain Optuna made.
    """

    title: str
    words: Callable[[StudyView], Iterable[Part]] = lambda _: ()
    ours: bool = False


CHAPTERS: Mapping[str, Chapter] = {
    "model": Chapter("Why this network", model, ours=True),
    "compare": Chapter("How the methods compare", compare, ours=True),
    "recipe": Chapter("The recipe", recipe),
    "search": Chapter("How the search went"),
    "cost": Chapter("What it cost", cost),
    "errors": Chapter("Where the model is wrong", wrong, ours=True),
    "use": Chapter("How to use the result", use),
    "trust": Chapter("How far to trust this", trust),
    "settings": Chapter("Settings", settings),
}
"""The chapters by the name that a figure gives, in the order of the report."""
