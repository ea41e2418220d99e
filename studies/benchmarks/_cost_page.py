"""The page about what a whole study costs; the numbers come from ``study_cost.py``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import t as student

from biotune_optuna.page.parts import Heading, Markdown, Part, Table, Text, markdown

Costs = list[dict[str, float]]  # of one study, one entry an evaluation

NAMES = {
    "paper": "the paper's schedule",
    "long": "the default's search, trained as in the paper, no cache",
    "uncached": "the same, stopping early: 10 epochs",
    "default": Markdown("the same with the prefix cache: **the default**"),
    "double": "the default with two trainings an evaluation, raced",
}
SETTINGS = {"paper": "the paper's", "default": "the default's"}
STEPS = (
    ("paper", "long", "fewer trainings: 28 evaluations of 1 on all images, not 140 of 3 on halves"),
    ("long", "uncached", "stopping early: at most 10 epochs instead of 30"),
    ("uncached", "default", "the cache of frozen prefixes"),
)
FASTER, MARGIN = 10.0, -0.01


def page(
    rows: list[dict[str, Any]], ladder: dict[str, dict[int, Costs]], task: str, remarks: str
) -> str:
    """All tables as Markdown.

    Args:
        rows: One a seed: costs and confirmed test scores of each compared arm.
        ladder: Costs of the arms in between, by arm and seed.
        task: How the task was made, a paragraph.
        remarks: What the figures come from.
    """
    return markdown(
        [
            Markdown(f"""
                # What a whole study costs

                The paper's schedule against the default, {len(rows)} study seeds. Each draws its
                own training and validation images, which both arms share; the test images are
                always the same. The paper's: 140 evaluations of three trainings on alternating
                halves of the training images, up to 30 epochs, patience 3, without prefix cache,
                racing or pruner. The default: the default preset with its own training settings,
                and cache, 28 evaluations of one training on all training images.
            """),
            Markdown(task),
            *_cost_section(rows),
            *_accuracy_section(rows),
            *_ladder_section(rows, ladder),
            Heading("Why"),
            Markdown(remarks),
            *_seed_section(rows),
            Markdown("Made by `python studies/benchmarks/study_cost.py`."),
        ]
    )


_COLUMNS = ("runs", "epochs", "forward", "cache_hits", "backward", "cpu", "wall")


def _cost_section(rows: list[dict[str, Any]]) -> list[Part]:
    middle, low, _ = _factor(rows, "default", "cpu")
    forward, backward = (_factor(rows, "default", key)[0] for key in ("forward", "backward"))
    met = "reached" if middle >= FASTER else "missed"
    head = ("trainings", "epochs", "images forward", "with cached prefix", "images backward")
    return [
        Markdown("""
            ## Cost of the search

            Means over seeds. CPU seconds are the process's own, sampler and storage included; the
            machine was busy, which seconds of the clock show. The last column is the paper's CPU
            seconds over the arm's, geometric mean over seeds with its 95 % t interval.
        """),
        Table(
            ("", *head, "CPU s", "clock s", "paper / arm"),
            [
                (
                    _short(arm),
                    *(f"{_sums(rows, arm, key).mean():,.0f}" for key in _COLUMNS),
                    _ratio(rows, arm),
                )
                for arm in NAMES
                if arm in rows[0]
            ],
        ),
        Markdown(f"""
            The aim was a factor of {FASTER:g}. It is {met}: {middle:.1f} in CPU seconds (not
            below {low:.1f}), {forward:.1f} in images forward and {backward:.1f} in images backward.
        """),
    ]


def _accuracy_section(rows: list[dict[str, Any]]) -> list[Part]:
    cells, lows = [], {}
    for settings, words in SETTINGS.items():
        paper = _tests(rows, "paper", settings)
        cells.append((f"{words} settings", _short("paper"), f"{paper.mean():.4f}", ""))
        for arm in ("default", "double"):
            scores = _tests(rows, arm, settings)
            found = _interval(scores - paper)
            lows |= {words: found[1]} if arm == "default" else {}
            cells.append((f"{words} settings", _short(arm), f"{scores.mean():.4f}", _signed(found)))
    own = _interval(_tests(rows, "default", "default") - _tests(rows, "paper", "paper"))
    held = "It is reached" if own[1] > MARGIN else "It is missed"
    alike = [f"{words} {'also' if low > MARGIN else 'not'}" for words, low in lows.items()]
    return [
        Markdown("""
            ## Accuracy of what is chosen

            Both searches are confirmed alike: their three best recipes are trained on all training
            images with three fresh seeds, the best mean wins, and the winner is trained on training
            and validation images with five more seeds and tested; the mean of the five counts.
            Because a recipe suits the settings it was found with, this is done under both settings,
            each time the same for all arms. Mean macro-accuracy, paired differences with 95 % t
            intervals over the seeds: other images to train on, and other luck, on this test part.
        """),
        Table(("confirmed with", "arm", "test", "arm minus paper's"), cells, words=2),
        Markdown(f"""
            Each confirmed with its own settings, as one would use it, the default's minus the
            paper's is {_signed(own)}. The aim was a lower bound above
            {MARGIN:+z.2f}. {held}; when both are confirmed with the same settings, with
            {", with ".join(alike)}.
        """),
    ]


def _ladder_section(rows: list[dict[str, Any]], ladder: dict[str, dict[int, Costs]]) -> list[Part]:
    seeds = sorted(set.intersection(*(set(found) for found in ladder.values())))
    if not seeds:
        return []
    total: dict[str, dict[str, float]] = {}
    for arm in ("paper", "long", "uncached", "default"):
        studies = [
            ladder[arm][seed] if arm in ladder else _row(rows, seed)[arm]["cost"] for seed in seeds
        ]
        total[arm] = {
            key: sum(one[key] for study in studies for one in study) / len(seeds)
            for key in _COLUMNS
        }
    keys = ("runs", "epochs", "forward", "backward", "cpu")
    factors = ("cpu", "forward", "backward")
    return [
        Markdown(f"""
            ## What of the factor comes from what

            One thing after another is switched on, from the paper's schedule to the default; means
            over the study seeds {", ".join(map(str, seeds))}.
        """),
        Table(
            ("", "trainings", "epochs", "images forward", "images backward", "CPU s"),
            [(NAMES[arm], *(f"{sums[key]:,.0f}" for key in keys)) for arm, sums in total.items()],
        ),
        Table(
            ("step", "factor in CPU seconds", "in images forward", "in images backward"),
            [
                (words, *(f"{total[before][key] / total[after][key]:.2f}" for key in factors))
                for before, after, words in (
                    *STEPS,
                    ("paper", "default", Markdown("**all together**")),
                )
            ],
        ),
        Text("A pass with a cached prefix counts as one: what it saves shows in seconds alone."),
    ]


def _seed_section(rows: list[dict[str, Any]]) -> list[Part]:
    arms = [arm for arm in NAMES if arm in rows[0]]
    whats = ("CPU s", *(f"with {words}" for words in SETTINGS.values()))

    def cells(found: dict[str, Any]) -> tuple[str, ...]:
        cpu = sum(one["cpu"] for one in found["cost"])
        return f"{cpu:.0f}", *(f"{found[settings]['test']:.4f}" for settings in SETTINGS)

    return [
        Markdown("""
            ## Seed by seed

            CPU seconds of the search, and the test score of its choice confirmed with the paper's
            and with the default's settings.
        """),
        Table(
            ("seed", *(f"{arm}: {what}" for arm in arms for what in whats)),
            [(str(row["seed"]), *(c for arm in arms for c in cells(row[arm]))) for row in rows],
        ),
    ]


def _short(arm: str) -> str:
    return {
        "paper": "the paper's schedule",
        "default": "the default",
        "double": NAMES["double"],
    }[arm]


def _row(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    return next(row for row in rows if row["seed"] == seed)


def _sums(rows: list[dict[str, Any]], arm: str, key: str) -> np.ndarray:
    return np.array([sum(one[key] for one in row[arm]["cost"]) for row in rows])


def _tests(rows: list[dict[str, Any]], arm: str, settings: str) -> np.ndarray:
    return np.array([row[arm][settings]["test"] for row in rows])


def _factor(rows: list[dict[str, Any]], arm: str, key: str) -> tuple[float, float, float]:
    """Geometric mean of the paper's over the arm's, with its interval."""
    logs = np.log(_sums(rows, "paper", key) / _sums(rows, arm, key))
    return tuple(math.exp(value) for value in _interval(logs))  # type: ignore[return-value]


def _ratio(rows: list[dict[str, Any]], arm: str) -> str:
    if arm == "paper":
        return "1"
    middle, low, high = _factor(rows, arm, "cpu")
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and its 95 % t interval."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    mean = float(values.mean())
    return mean, mean - float(half), mean + float(half)


def _signed(numbers: tuple[float, float, float]) -> str:
    middle, low, high = numbers
    return f"{middle:+z.4f} ({low:+z.4f} to {high:+z.4f})"
