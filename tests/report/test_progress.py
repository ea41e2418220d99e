"""Progress for people, logs and machines."""

from __future__ import annotations

import io
import json
import re
from collections import namedtuple
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from biotune_optuna.cli import progress as live
from biotune_optuna.cli.progress import Progress
from biotune_optuna.confirmation.record import Confirmation, TestResult
from biotune_optuna.finetune.statistics import PairedTest
from biotune_optuna.page.text import count, duration

Run = namedtuple("Run", "index fold seed")
Record = namedtuple("Record", "epoch train_loss score seconds")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live.time, "monotonic", clock.monotonic)
    return clock


def run(
    progress: Progress, study: optuna.Study, clock: Clock, value: float | None, state: Any = None
) -> None:
    trial = study.ask()
    trial.set_user_attr("generation", trial.number // 2)
    trial.set_user_attr("role", "offspring")
    trial.set_user_attr("frozen", "1-4 of 9")
    trial.set_user_attr("seconds", 9.0)
    progress.trial_started(trial)
    progress.epoch(Run(0, None, 1), Record(1, 0.5, 0.25, 0.1))
    clock.now += 10
    progress.trial_finished(study, study.tell(trial, value, state=state))


def make_study() -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("biotune", {"spec": {"train": {"metric": "accuracy"}}})
    return study


def test_plain_is_one_line_per_trial(clock: Clock) -> None:
    stream, study = io.StringIO(), make_study()
    with Progress(total=4, deadline=None, stream=stream) as progress:
        run(progress, study, clock, 0.5)
        run(progress, study, clock, 0.4)
        run(progress, study, clock, None, TrialState.FAIL)
        progress.stage("confirmation", "full fine-tuning", 1, 6)
        progress.trained("full fine-tuning", 0.75, 2.0)
        progress.stage("confirmation", "linear probe", 2, 6)
        progress.trained("linear probe", float("nan"), 3.0)
    lines = stream.getvalue().replace("\u00a0", " ").splitlines()
    assert lines == [
        "trial    0  gen  0  offspring       50.0 %  best so far  frozen 1-4 of 9  9.0 s"
        "  [1/4, 30 s left]",
        "trial    1  gen  0  offspring       40.0 %  best 50.0 % (trial 0)  frozen 1-4 of 9  9.0 s"
        "  [2/4, 20 s left]",
        "trial    2  gen  1  offspring         fail  best 50.0 % (trial 0)  frozen 1-4 of 9  9.0 s"
        "  [2/4, 30 s left]",
        "confirmation, 5 trainings",
        "confirmation 2/6  full fine-tuning  75.0 %  2.0 s",
        "confirmation 3/6  linear probe  3.0 s",
    ]


def test_time_left_is_the_nearer_limit_and_ignores_earlier_sessions(clock: Clock) -> None:
    study = make_study()
    for _ in range(5):
        study.tell(study.ask(), 0.1)
    stream = io.StringIO()
    with Progress(total=8, deadline=115.0, stream=stream) as progress:
        run(progress, study, clock, 0.5)
    assert "[6/8, 5.0 s left]" in stream.getvalue()
    stream = io.StringIO()
    with Progress(total=8, deadline=None, stream=stream) as progress:
        run(progress, study, clock, 0.5)
    assert "[7/8, 10 s left]" in stream.getvalue()


def test_json_has_one_object_per_event(clock: Clock) -> None:
    stream, study = io.StringIO(), make_study()
    with Progress(total=2, deadline=None, mode="json", stream=stream) as progress:
        run(progress, study, clock, 0.5)
        progress.epoch(Run(1, 0, 7), Record(2, float("nan"), 0.3, 0.1))
        progress.stage("test", done=0, total=3)
    progress.result(  # the display is closed by then
        Confirmation(
            chosen="full",
            why="it is",
            tests=(TestResult(name="full", n=3, confusion=((3,),)),),
            paired={"trial 3": PairedTest(0.5, 0.25, 0.75, float("nan"))},
        ),
        Path("report.html"),
        Path("model"),
    )
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [e["event"] for e in events] == [
        "trial_started",
        "epoch",
        "trial_finished",
        "epoch",
        "stage",
        "result",
    ]
    assert all("time" in e for e in events)
    assert {k: v for k, v in events[-1].items() if k not in ("event", "time")} == {
        "winner": "full",
        "why": "it is",
        "tests": [
            {"name": "full", "method": "", "n": 3, "metrics": {}}
            | dict.fromkeys(("score", "low", "high"))
        ],
        "paired": [{"against": "trial 3", "difference": 0.5, "low": 0.25, "high": 0.75, "p": None}],
        "report": "report.html",
        "model": "model",
    }
    finished = events[2]
    assert {
        k: finished[k] for k in ("trial", "state", "value", "generation", "role", "frozen")
    } == {
        "trial": 0,
        "state": "complete",
        "value": 0.5,
        "generation": 0,
        "role": "offspring",
        "frozen": "1-4 of 9",
    }
    assert (finished["best_value"], finished["finished"], finished["total"]) == (0.5, 1, 2)
    assert finished["seconds_left"] == 10
    assert (events[3]["run"], events[3]["train_loss"]) == (1, None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_shows_what_runs_now(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    stream, study = Terminal(), make_study()
    with Progress(total=4, deadline=None, stream=stream, epochs=5, runs=2) as progress:
        run(progress, study, clock, 0.5)
        trial = study.ask()
        trial.set_user_attr("generation", 3)
        trial.set_user_attr("role", "exploit")
        progress.trial_started(trial)
        progress.epoch(Run(1, None, 1), Record(4, 0.5, 0.75, 0.1))
        assert progress._live is not None
        progress._live.refresh()
        shown = stream.getvalue().replace("\u00a0", " ")
        progress.stage("confirmation", "linear probe", 1, 3)
        progress._live.refresh()
    assert "1/4 trials  generation 3  30 s left" in shown
    assert "trial 0, frozen 1-4 of 9" in shown
    assert "trial 1  exploit  run 2/2  epoch 4/5  75.0 %" in shown
    assert "confirmation 2/3" in stream.getvalue()
    assert "\x1b[?25h" in stream.getvalue()  # the cursor comes back


def test_lines_of_a_terminal_fit_its_width(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "70")
    stream, study = Terminal(), make_study()
    with Progress(total=4, deadline=None, mode="rich", stream=stream) as progress:
        trial = study.ask()
        trial.set_user_attr("role", "re-evaluation")
        trial.set_user_attr("frozen", "stem to blocks.1, blocks.5 to blocks.6-conv_head (5 of 9)")
        trial.set_user_attr("seconds", 9.0)
        progress.trial_finished(study, study.tell(trial, 0.5))
    line = next(line for line in stream.getvalue().split("\n") if "re-evaluation" in line)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", line).replace("\u00a0", " ")
    assert plain.startswith("trial   0  re-evaluation   50.0 %  best   9.0 s  frozen stem to blo")
    assert len(plain.rstrip()) == 70


def test_dumb_terminals_get_plain_lines(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(total=1, deadline=None, stream=stream) as progress:
        run(progress, make_study(), clock, 0.5)
    assert "\x1b" not in stream.getvalue()


class Broken(io.StringIO):
    def write(self, _: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("mode", ["plain", "json"])
def test_reader_that_went_away_does_not_stop_the_study(clock: Clock, mode: Any) -> None:
    study = make_study()
    with Progress(total=2, deadline=None, mode=mode, stream=Broken()) as progress:
        run(progress, study, clock, 0.5)
        run(progress, study, clock, 0.6)
    assert study.best_value == 0.6


def test_studies_without_our_attributes_are_shown_too(clock: Clock) -> None:
    stream, study = io.StringIO(), optuna.create_study(direction="minimize")
    with Progress(total=None, deadline=None, stream=stream) as progress:
        trial = study.ask()
        progress.trial_started(trial)
        progress.trial_finished(study, study.tell(trial, 3.25))
    assert stream.getvalue().startswith("trial    0     3.25  best so far")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (0.02, "20 ms"),
        (8.24, "8.2 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599, "59 min"),
        (7500, "2 h 05 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations_read_as_one_says_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(980, "980"), (45200, "45,200"), (3.14e6, "3.1 million"), (2e9, "2.0 billion")],
)
def test_counts_read_as_one_says_them(number: float, words: str) -> None:
    assert count(number) == words
