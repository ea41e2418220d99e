"""Summaries, worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from biotune_optuna.compare.statistics import corrected_t, signed_rank
from biotune_optuna.compare.tables import summarise
from biotune_optuna.errors import DataError
from tests.kit.rows import make_row, make_rows

SCORES = {
    "full": [0.5, 0.6, 0.7],
    "biotune": [0.6, 0.6, 0.9],
    "linear-probe": [0.2, 0.3, 0.4],
    "full@budget": [0.55, 0.65, 0.7],
}


def test_entries_and_contrasts_of_resampled_splits() -> None:
    summary = summarise(make_rows(SCORES))
    (task,) = summary.tasks
    assert [e.method for e in task.own] == ["biotune", "full", "linear-probe"]
    assert [e.method for e in task.budget] == ["biotune", "full@budget"]
    assert task.own[0].score.value == pytest.approx(0.7)
    # mean 0.6, s = 0.1, error² = (1/3 + 40/80) · 0.01, t₂ at 97.5 % = 4.302653
    full = task.own[1].score
    assert full.high - full.value == pytest.approx(4.302653 * 0.1 * math.sqrt(1 / 3 + 0.5))
    vs_full, vs_probe = summary.confirmatory
    assert (vs_full.against, vs_probe.against) == ("full", "linear-probe")
    assert vs_full.test == "corrected t"
    assert vs_full.effect == corrected_t([0.6 - 0.5, 0.0, 0.9 - 0.7], ratio=0.5)
    assert vs_probe.adjusted == pytest.approx(min(1.0, 2 * vs_probe.effect.p))
    assert vs_full.adjusted == pytest.approx(max(vs_full.effect.p, vs_probe.adjusted))
    assert [c.against for c in summary.others] == ["full@budget"]
    assert math.isnan(summary.others[0].adjusted)


def test_official_test_parts_take_the_signed_rank() -> None:
    summary = summarise(make_rows(SCORES, official=1, split="the same"))
    contrast = summary.confirmatory[0]
    assert contrast.test == "signed rank"
    assert contrast.effect == signed_rank([0.6 - 0.5, 0.0, 0.9 - 0.7])


def test_only_repeats_that_both_have_are_paired() -> None:
    rows = [
        make_row("biotune", 0, 0.9),
        make_row("biotune", 1, 0.8),
        make_row("full", 0, 0.5),
        make_row("full", 2, 0.1),
    ]
    (contrast,) = summarise(rows).confirmatory
    assert contrast.effect.n == 1
    assert contrast.effect.value == pytest.approx(0.4)


def test_results_on_different_test_images_do_not_share_a_table() -> None:
    rows = [make_row("biotune", 0, 0.9), make_row("full", 0, 0.1, split="others", test=73)]
    with pytest.raises(DataError, match=r"repeat 0: full was tested on other images \(73, "):
        summarise(rows)


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", "other"), ("metric", "kappa"), ("official", 1), ("train", 2000), ("pool", 90)],
)
def test_results_of_different_protocols_do_not_share_a_table(name: str, value: Any) -> None:
    rows = [make_row("biotune", 0, 0.9), make_row("full", 0, 0.1, **{name: value})]
    with pytest.raises(DataError, match=f"full in repeat 0 has {name} {value!r} and biotune"):
        summarise(rows)


def test_repeats_may_hold_different_numbers_of_images() -> None:
    rows = [make_row("biotune", 0, 0.9), make_row("biotune", 1, 0.8, train=61, pool=79, test=41)]
    assert summarise(rows).tasks[0].entries[0].score.n == 2


def test_holm_runs_over_tasks_times_opponents() -> None:
    one = make_rows(SCORES, task="a")
    two = make_rows(SCORES, task="b")
    summary = summarise([*two, *one])
    assert [(c.task, c.against) for c in summary.confirmatory] == [
        ("a", "full"),
        ("a", "linear-probe"),
        ("b", "full"),
        ("b", "linear-probe"),
    ]
    probe = summary.confirmatory[1]
    assert probe.adjusted == pytest.approx(min(1.0, 4 * probe.effect.p))
    assert summary.ranks == {"biotune": 1.0, "full": 2.0, "linear-probe": 3.0}


def test_only_who_has_all_results_of_all_tasks_is_ranked() -> None:
    scores = {
        "biotune": [0.6, 0.6, 0.9],
        "full": [0.5, 0.6, 0.7],
        "unlucky in one": [0.1, 0.1, 0.1],
        "absent from one": [0.9, 0.9, 0.9],
        "lacks a repeat of one": [0.8, 0.8, 0.8],
        "full@budget": [0.7, 0.7, 0.7],
    }
    fewer = scores | {"lacks a repeat of one": [0.8, 0.8], "unlucky in one": [1.0, 1.0, 1.0]}
    del fewer["absent from one"]
    rows = [*make_rows(scores, task="a"), *make_rows(fewer, task="b")]
    assert summarise(rows).ranks == {"biotune": 1.5, "full": 2.5, "unlucky in one": 2.0}


def test_ablations_are_tested_against_their_base() -> None:
    scores = {"biotune": [0.5, 0.6, 0.7], "one seed": [0.4, 0.5, 0.5], "paper": [0.6, 0.6, 0.6]}
    references = {"one seed": "biotune", "paper": "biotune"}
    summary = summarise(make_rows(scores), references=references)
    assert [(c.method, c.against) for c in summary.confirmatory] == [
        ("paper", "biotune"),
        ("one seed", "biotune"),
    ]
    assert summary.confirmatory[1].effect.value == pytest.approx(-0.4 / 3)
    assert not summary.others


def test_who_has_no_reference_is_still_tested_against_biotune() -> None:
    scores = {name: [0.5, 0.6, 0.7] for name in ("biotune", "full", "two seeds", "of none")}
    references = {"two seeds": "biotune", "of none": "absent"}
    summary = summarise(make_rows(scores), references=references)
    assert [(c.method, c.against) for c in summary.confirmatory] == [
        ("biotune", "full"),
        ("two seeds", "biotune"),
    ]
