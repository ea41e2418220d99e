"""The report's parts that are words and tables, each a function of a study's reading."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from biotune_optuna.page.text import count, duration, label, method_words, plural
from biotune_optuna.report.figures.cost import time_spent
from biotune_optuna.report.view import StudyView, seconds
from biotune_optuna.report.words import cost_sentences, describe, describe_trial
from biotune_optuna.schema import TrialRecord

__all__ = ["BODIES", "tiles"]

MAX_CLASS_ROWS = 20


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, winner: int | None = None) -> str:
    """Return a table of escaped cells that scrolls sideways on a narrow screen.

    Args:
        head: Column titles; one that starts with ``~`` holds words and may wrap.
        rows: Cells.
        winner: Row to set off.
    """
    wraps = [h.startswith("~") for h in head]

    def cells(kind: str, row: Sequence[str]) -> str:
        marks = [' class="words"' if w else "" for w in wraps]
        return "".join(
            f"<{kind}{mark}>{escape(cell.removeprefix('~'))}</{kind}>"
            for mark, cell in zip(marks, row, strict=True)
        )

    win = ' class="winner"'
    body = "".join(
        f"<tr{win if i == winner else ''}>{cells('td', row)}</tr>" for i, row in enumerate(rows)
    )
    top = cells("th", head)
    inside = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{inside}</table></div>'


def paragraphs(sentences: Iterable[str]) -> str:
    """Sentences as escaped paragraphs."""
    return "".join(f"<p>{escape(s)}</p>" for s in sentences if s)


def tiles(view: StudyView) -> str:
    """Return the few numbers to take away."""
    found: list[tuple[str, str]] = []
    winner = view.winner
    test = view.tested(str(winner["name"])) if winner else None
    if test:
        words = f"{view.metric_words} on the test, {view.say_interval(test['low'], test['high'])}"
        found.append((view.say(test["score"]), words))
    elif view.best:
        where = "on validation " if view.spec else ""
        found.append((view.say(view.best.value), f"best {view.metric_words} {where}so far"))
    for pair in view.paired:
        other = view.contender(str(pair["against"])) or {}
        if other.get("method") in ("full", "biotune"):
            span = view.say_interval(pair["low"], pair["high"], difference=True)
            words = f"on the test against {method_words(other)}, {span}"
            found.append((view.say_difference(pair["difference"]), words))
    share = winner.get("trainable_pct") if winner else None
    if share is None and view.best is not None:
        share = TrialRecord(view.best).trainable_pct
    if isinstance(share, (int, float)):
        found.append((f"{share:.3g} %", "of the parameters are trained"))
    spent = sum(time_spent(view).values())
    if spent > 0:
        found.append((duration(spent), "of computing in all"))
    cells = "".join(
        f'<div class="tile"><b>{escape(n)}</b><span>{escape(w)}</span></div>' for n, w in found
    )
    return f'<div class="tiles">{cells}</div>' if cells else ""


def compare(view: StudyView) -> str:
    """Table of all confirmed contenders."""
    if not view.confirm:
        return ""
    rows, at = [], None
    for i, c in enumerate(view.contenders):
        if c.get("name") == view.confirm.get("winner"):
            at = i
        test = view.tested(str(c.get("name")))
        runs = len(c.get("scores") or ())
        rows.append(
            [
                label(c),
                _searched(view, c),
                f"{view.say(c.get('mean'))} ± {_error(view, c.get('stderr'))} ({runs})",
                f"{view.say(test['score'])} ({view.say_interval(test['low'], test['high'])})"
                if test
                else "–",
                f"{c['trainable_pct']:.3g} %" if _known(c.get("trainable_pct")) else "–",
                count(c["forward"]) if _known(c.get("forward")) else "–",
                duration(c["seconds"]) if _known(c.get("seconds")) else "–",
            ]
        )
    head = ["~Method", "Search", "Confirmed", "Test (interval)", "Trained", "Images", "Time"]
    notes = [
        "Confirmed: mean and standard error over so many trainings on fresh seeds. Test: with its"
        " 95 % interval. Images (forward passes) and time: what confirming took.",
        *_grids(view),
    ]
    return table(head, rows, winner=at) + "".join(f'<p class="soft">{escape(n)}</p>' for n in notes)


def _searched(view: StudyView, record: Mapping[str, Any]) -> str:
    if not _known(record.get("search_value")):
        return "–"
    error = record.get("search_stderr")
    return view.say(record["search_value"]) + (f" ± {_error(view, error)}" if error else "")


def _error(view: StudyView, value: object) -> str:
    if not _known(value):
        return "–"
    return f"{100 * float(value):.1f}" if view.is_accuracy else f"{float(value):.2g}"  # type: ignore[arg-type]


def _grids(view: StudyView) -> list[str]:
    notes = []
    for c in view.contenders:
        grid = c.get("grid")
        if grid:
            tried = ", ".join(f"{g['lr']:g}" for g in grid)
            name = method_words(c)
            notes.append(
                f"{name[0].upper()}{name[1:]} had its base rate chosen on the same validation"
                f" images from {tried}; it took {c.get('lr'):g}."
            )
    return notes


def recipe(view: StudyView) -> str:
    """Return the recipe in words and as a picture of the blocks."""
    record = view.winner or {}
    multipliers = (record.get("recipe") or {}).get("multipliers")
    trial = view.chosen_trial
    if record and record.get("method") != "biotune":
        intro = [f"The winner is {method_words(record)}: {record.get('describe', '')}."]
        if trial is not None and trial.number in view.recipes:
            multipliers = view.recipes[trial.number]
            intro.append(f"Below is BioTune's best, trial {trial.number}.")
    elif multipliers:
        lr = record.get("lr")
        intro = [f"{str(record.get('name')).capitalize()}: {describe(multipliers, lr)}."]
    elif trial is not None:
        multipliers = view.recipes.get(trial.number)
        intro = [f"The best so far is trial {trial.number}. {describe_trial(view, trial)}"]
    else:
        return ""
    if not multipliers:
        return paragraphs(intro)
    note = (
        "From the input (top) to the classifier. Hatched: kept as pre-trained. Bars: how fast the"
        " block learns, from 0.1× to 10× of the base learning rate."
    )
    bars = "".join(_bar(str(b), float(m)) for b, m in multipliers.items())
    return f'{paragraphs(intro)}<div class="recipe">{bars}</div><p class="soft">{note}</p>'


def _bar(block: str, multiplier: float) -> str:
    if multiplier <= 0:
        inside = '<div class="hatch"></div><span class="value">frozen</span>'
    else:
        share = min(1.0, max(0.03, (math.log10(multiplier) + 1) / 2))
        inside = (
            f'<div class="fill" style="width:{100 * share:.0f}%"></div>'
            f'<span class="value">{multiplier:.2g}×</span>'
        )
    return f'<div class="name">{escape(block)}</div><div class="track">{inside}</div>'


def cost(view: StudyView) -> str:
    """Return what the study cost, in sentences."""
    return paragraphs(cost_sentences(view))


def errors(view: StudyView) -> str:
    """Per class: how many of its test images are found, and how often its name is right."""
    test = view.tested(str(view.confirm.get("winner", ""))) or {}
    counts, classes = test.get("confusion"), view.confirm.get("classes") or ()
    if not counts or len(counts) != len(classes):
        return ""
    rows = []
    for i, name in enumerate(classes):
        true, said, right = sum(counts[i]), sum(row[i] for row in counts), counts[i][i]
        found = right / true if true else math.nan
        rows.append((found, str(name), true, right / said if said else math.nan))
    rows.sort(key=lambda r: (math.isnan(r[0]), r[0]))
    shown = rows[:MAX_CLASS_ROWS]
    note = (
        f"The {len(shown)} hardest of {len(rows)} classes."
        if len(shown) < len(rows)
        else ("The hardest class first.")
    )
    cells = [[name, str(n), _share(found), _share(precise)] for found, name, n, precise in shown]
    head = ["~Class", "Test images", "Found", "Right when said"]
    return f"<p>{note}</p>" + table(head, cells)


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}".replace("%", " %")


def use(view: StudyView) -> str:
    """How to use the model and the recipe."""
    if not view.spec:
        best = view.best
        if best is None:
            return ""
        return paragraphs(["The best parameters, for your own objective:"]) + _code(
            f"study = optuna.load_study(study_name={view.name!r}, storage=...)\n"
            f"study.best_params    # trial {best.number}, {duration(seconds(best) or 0.0)}"
        )
    folder = view.model_dir
    if not folder:
        start = "Write" if view.winner else "Once a winner has been confirmed, write"
        words = [f"{start} the tuned model into a folder, then classify images with it:"]
        place = f" --storage {shlex.quote(view.storage_url)}" if view.storage_url else ""
        shell = (
            f"biotune export --study {shlex.quote(view.name)}{place} --to my-model\n"
            "biotune predict my-model photo.jpg"
        )
        return paragraphs(words) + _code(shell)
    shell = f"biotune predict {shlex.quote(folder)} photo.jpg another.png"
    python = (
        "import timm\n\n"
        f"model = timm.create_model({_literal(f'local-dir:{folder}')}, pretrained=True).eval()"
    )
    again = (
        "from biotune_optuna import Recipe\n\n"
        f"recipe = Recipe.load({_literal(f'{folder}/recipe.json')})\n"
        "optimizer = torch.optim.AdamW(recipe.apply(model))"
    )
    parts = [
        paragraphs([f"The tuned model is in {folder}. From the command line:"]) + _code(shell),
        paragraphs(["From Python, with timm alone:"]) + _code(python),
    ]
    if (view.winner or {}).get("method") == "biotune":
        parts.append(
            paragraphs(["The recipe in a training loop of your own, for new data:"]) + _code(again)
        )
    return "".join(parts)


def _literal(text: str) -> str:
    """Return a string as Python code, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def trust(view: StudyView) -> str:
    """Return what the numbers mean and what they do not."""
    sentences = []
    looks = view.test_looks
    if looks:
        when = "; ".join(
            f"{look.get('what', '?')} at {str(look.get('time', '?'))[:16].replace('T', ' ')}"
            for look in looks
        )
        sentences.append(f"The test data was looked at in {plural(len(looks), 'test')}: {when}.")
        if len(looks) > len(view.confirm.get("tests", ())):
            sentences.append(
                "Some of these belong to earlier confirmations. Each further look makes the test"
                " score a little more optimistic."
            )
        else:
            sentences.append("Each model was tested once, after the choice had been made.")
    elif view.without_test:
        sentences.append("No images were held out for a test.")
    elif view.spec:
        sentences.append("The test data has not been looked at yet.")
    if len(view.complete) > 1:
        sentences.append(
            f"The best search value is the best of {len(view.complete):,} and therefore flatters;"
            " the confirmed and the test values do not have that flaw."
            if view.confirm
            else f"The best value is the best of {len(view.complete):,} and therefore flatters."
        )
    if view.confirm:
        sentences.append(
            "A 95 % interval says how far the score could have moved with other test images of the"
            " same kind. It says nothing about images of another kind."
        )
    plateau = view.confirm.get("plateau") or ()
    if len(plateau) > 1:
        sentences.append(
            f"Not to be told from the best on fresh seeds: {', '.join(map(str, plateau))}."
        )
    if view.metric == "macro_accuracy":
        sentences.append(
            "Macro accuracy is the mean over classes: rare classes count like common ones."
        )
    return paragraphs(sentences)


def settings(view: StudyView) -> str:
    """Every stored setting."""
    if not view.spec:
        return ""
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in _flat(view.spec, ""))
    return f"<dl>{rows}</dl>"


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            text = " to ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield prefix + str(key), text


def _known(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


BODIES: Mapping[str, Callable[[StudyView], str]] = {
    "compare": compare,
    "recipe": recipe,
    "cost": cost,
    "errors": errors,
    "use": use,
    "trust": trust,
    "settings": settings,
}
