"""Progress while a study runs: a live display, one line per trial, or JSON lines."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from biotune_optuna.cli.terminal import terminal_of, visible
from biotune_optuna.page.text import duration
from biotune_optuna.report.view import StudyView, as_view, seconds
from biotune_optuna.schema import STAGE_KEY, TrialRecord
from biotune_optuna.storage.holder import current_holder

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from biotune_optuna.confirmation.record import Confirmation
    from biotune_optuna.confirmation.timing import Timing
    from biotune_optuna.finetune.results import EpochRecord
    from biotune_optuna.report.dashboard.attach import Attachments
    from biotune_optuna.study.spec import SearchRun, StudySpec
    from biotune_optuna.study.stop import StopRequest
    from biotune_optuna.study.study import TuningStudy


Mode = Literal["auto", "rich", "plain", "json", "off"]


class Progress:
    """Shows a running study to a person or a machine.

        with Progress(total=60, deadline=None) as progress:
            ...
            progress.trial_started(trial)
            progress.epoch(run, record)            # after each epoch
            progress.trial_finished(study, study.trials[trial.number])
            progress.stage("confirmation", "linear probe", done=4, total=9)
            progress.trained("linear probe", score, seconds)

    A stream that cannot be written any more is left alone: showing progress never ends a study.

    Args:
        total: Finished trials the study shall have in all; None when only time limits it.
        deadline: Moment on `time.monotonic`'s clock at which the search stops; None for no limit.
        mode: ``"rich"`` live display, ``"plain"`` one line per trial, ``"json"`` one JSON object
            per line and event, ``"auto"`` (default) rich on a terminal and plain elsewhere,
            ``"off"`` nothing.
        stream: Where to write; default standard error, for JSON standard output.
        epochs: Most epochs of a run, when known: shown beside the current one.
        runs: Runs of one evaluation, when known.
        timing: The study's clock; without one only the search's time is known.
        study: The study, where it has begun; its metric says how scores are shown.
    """

    def __init__(
        self,
        *,
        total: int | None,
        deadline: float | None,
        mode: Mode = "auto",
        stream: TextIO | None = None,
        epochs: int | None = None,
        runs: int | None = None,
        timing: Timing | None = None,
        study: Study | None = None,
    ) -> None:
        self._total, self._deadline = total, deadline
        self._epochs, self._runs = epochs, runs
        self._timing = timing
        self._stream = stream or (sys.stdout if mode == "json" else sys.stderr)
        if mode == "auto":
            terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
            mode = "rich" if terminal else "plain"
        self._mode: Mode = mode
        self._began = time.monotonic()
        self._done, self._done_before = 0, None if total else 0
        self._view: StudyView | None = None
        self._trial: dict[str, Any] = {}
        self._run: dict[str, Any] = {}
        self._stage: dict[str, Any] = {}
        # In plain mode text stays text; only the live display moves the cursor.
        shown = terminal_of(self._stream) if mode == "rich" else self._stream
        self._console = Console(file=shown, highlight=False)
        self._spinner = Spinner("dots")
        self._live: Live | None = None
        if study is not None:
            self._read(study)

    @classmethod
    def of(
        cls,
        spec: StudySpec,
        total: int | None,
        timeout: float | None,
        display: str | None,
        *,
        timing: Timing | None = None,
        study: Study | None = None,
    ) -> Self:
        """Return the display of a study whose search begins now, as a command's options ask."""
        return cls(
            total=total,
            deadline=None if timeout is None else time.monotonic() + timeout,
            mode=display or "auto",  # type: ignore[arg-type]
            epochs=spec.train.epochs,
            runs=len(spec.search_runs()),
            timing=timing,
            study=study,
        )

    @property
    def is_late(self) -> bool:
        """Whether the search's time is over."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    # ---- context ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._mode == "rich":
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # ---- events ----------------------------------------------------------------------------

    def trial_started(self, trial: Trial) -> None:
        """Show that a trial begins.

        Args:
            trial: The trial as asked; what the sampler stored on it is read from the storage.
        """
        if self._done_before is None or self._view is None:
            self._read(trial.study)
            self._done_before = self._done
        stored = trial.storage.get_trial(trial._trial_id)
        self._trial, self._run, self._stage = _facts(stored), {}, {}
        self._emit("trial_started", self._trial)

    def epoch(self, run: SearchRun, record: EpochRecord) -> None:
        """Show that an epoch of the current trial is over.

        Args:
            run: The run.
            record: The epoch.
        """
        self._run = {
            "run": run.index,
            "fold": run.fold,
            "epoch": record.epoch,
            "train_loss": record.train_loss,
            "score": record.score,
        }
        self._emit("epoch", {"trial": self._trial.get("trial"), **self._run})

    def trial_finished(self, study: Study, trial: FrozenTrial) -> None:
        """Show that a trial has ended, in whatever state.

        Args:
            study: The study, read for the best value and the number of finished trials.
            trial: The trial as it is stored now.
        """
        view = self._read(study)
        best = view.best
        facts = {
            **_facts(trial),
            "state": trial.state.name.lower(),
            "value": trial.value,
            "seconds": seconds(trial),
            "best_value": best.value if best else None,
            "best_trial": best.number if best else None,
            "finished": self._done,
            "total": self._total,
            "seconds_left": self._left(),
        }
        self._emit("trial_finished", facts)
        self._line(_trial_line(view, trial, facts, brief=self._mode == "rich"))
        self._trial, self._run = {}, {}

    def stage(
        self, name: str, detail: str = "", done: int | None = None, total: int | None = None
    ) -> None:
        """Show a step outside the search, such as the confirmation.

        Args:
            name: The step: ``"rates"``, ``"confirmation"``, ``"final training"``.
            detail: What is done right now.
            done: Parts that are over.
            total: Parts in all.
        """
        self._trial, self._run = {}, {}
        if self._timing is not None and done is not None and total:
            self._timing.training_begins(done, total)
        elif self._timing is not None:
            self._timing.trainings_over()
        begins = name != self._stage.get("stage")
        self._stage = {"stage": name, "detail": detail, "done": done, "total": total}
        self._emit("stage", self._stage | {"seconds_left": self._left()})
        if self._mode == "plain" and (begins or not total):  # else `trained` tells, once it is over
            said = f"{name}: {detail}" if detail and not total else name
            self._line(said + (f", {total - done} trainings" if total and done is not None else ""))

    def trained(self, what: str, score: float, seconds: float) -> None:
        """Show that a training outside the search is over.

        Args:
            what: What was trained.
            score: Its validation score; NaN where there was nothing to validate on.
            seconds: How long it took.
        """
        left = self._left() if self._timing is not None else None
        facts = {"what": what, "score": score, "seconds": seconds, "seconds_left": left}
        self._emit("trained", facts)
        said = [self._part(), what] if self._stage else [what]
        if math.isfinite(score):
            said.append(self._view.say(score) if self._view is not None else f"{score:.3f}")
        said.append(duration(seconds))
        if left is not None and self._mode != "rich":  # there the bar tells
            said.append(f"[{duration(left)} left]")
        self._line("  ".join(said))

    def result(self, outcome: Confirmation, report: Path, model: Path) -> None:
        """Tell a machine how a study ended; people are told in words elsewhere.

        Args:
            outcome: The confirmation.
            report: The report's file.
            model: The exported winner's folder.
        """
        told = outcome.to_dict()
        keys = ("winner", "why", "tests", "paired", "members", "ensemble", "gain", "from_search")
        facts = {key: told[key] for key in keys if key in told}
        for test in [*facts["tests"], *([facts["ensemble"]] if "ensemble" in facts else [])]:
            del test["confusion"]
        self._emit("result", facts | {"report": str(report), "model": str(model)})

    # ---- inside ----------------------------------------------------------------------------

    def _part(self) -> str:
        """Name the training outside the search that is under way: ``confirmation 5/27``."""
        name, done, total = (self._stage[key] for key in ("stage", "done", "total"))
        return f"{name} {done + 1}/{total}" if total and done is not None else name

    def _read(self, study: Study) -> StudyView:
        self._view = as_view(study)
        self._done = self._view.evaluated
        return self._view

    def _left(self) -> float | None:
        """Seconds until everything is done; without a clock until the search is."""
        if self._timing is not None:
            return self._timing.left()
        now = time.monotonic()
        guesses = [] if self._deadline is None else [max(0.0, self._deadline - now)]
        new = self._done - (self._done_before or 0)
        if self._total is not None and new > 0:
            guesses.append(max(0, self._total - self._done) * (now - self._began) / new)
        return min(guesses) if guesses else None

    def _emit(self, event: str, facts: dict[str, Any]) -> None:
        if self._mode == "json":
            stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._write(json.dumps({"event": event, "time": stamp, **_finite(facts)}) + "\n")

    def _line(self, text: str) -> None:
        if self._mode == "plain":
            self._write(text + "\n")
        elif self._mode == "rich":
            self._console.print(Text(visible(text)), no_wrap=True, overflow="ellipsis")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the reader has gone; the study goes on
            self._mode = "off"

    def _render(self) -> RenderableType:
        lines: list[RenderableType] = [self._bar()]
        if self._view is not None and (best := self._view.best) is not None:
            frozen = TrialRecord(best).frozen
            what = f"trial {best.number}" + (f", frozen {frozen}" if frozen else "")
            lines.append(
                Text.from_markup(
                    f"  best  [bold]{self._view.say(best.value)}[/]  {escape(visible(what))}"
                )
            )
        if self._trial:
            lines.append(_dim(self._now()))
        return Group(*lines)

    def _bar(self) -> RenderableType:
        row = Table.grid(padding=(0, 1))
        if self._stage:
            done, total = self._stage["done"], self._stage["total"]
            bar = ProgressBar(total=total or 1, completed=done or 0, width=24)
            words = self._part()
            if self._timing is not None:
                words += f"  {duration(self._timing.left())} left"
            row.add_row(self._spinner, bar, Text(visible(words)))
            detail = self._stage["detail"]
            return Group(row, _dim(detail)) if detail else row
        completed: float = self._done
        if self._run and self._epochs and self._runs:
            passed = self._run["run"] * self._epochs + self._run["epoch"]
            completed += min(1.0, passed / (self._epochs * self._runs))
        bar = ProgressBar(total=self._total or 1, completed=completed, width=24)
        if self._total is None:
            bar = ProgressBar(total=None, pulse=True, width=24)
        words = f"{self._done}/{self._total} trials" if self._total else f"{self._done} trials"
        if self._trial.get("generation") is not None:
            words += f"  generation {self._trial['generation']}"
        if (left := self._left()) is not None:
            words += f"  {duration(left)} left"
        row.add_row(self._spinner, bar, Text(visible(words)))
        return row

    def _now(self) -> str:
        words = [f"trial {self._trial['trial']}"]
        if self._trial.get("role"):
            words.append(str(self._trial["role"]))
        if self._trial.get("frozen"):
            words.append(f"frozen {self._trial['frozen']}")
        if self._run:
            for what, number, most in (
                ("run", self._run["run"] + 1, self._runs),
                ("epoch", self._run["epoch"], self._epochs),
            ):
                words.append(f"{what} {number}/{most}" if most else f"{what} {number}")
            if math.isfinite(self._run["score"]) and self._view is not None:
                words.append(self._view.say(self._run["score"]))
        return "  ".join(words)


class Marked(Progress):
    """Progress that also writes into the study what is done outside the search, for `status`."""

    study: Study | None = None

    def stage(
        self, name: str, detail: str = "", done: int | None = None, total: int | None = None
    ) -> None:
        """Show a step, and note who has begun it."""
        super().stage(name, detail, done, total)
        self._mark(
            {"stage": name, "detail": detail, "done": done, "total": total}
            | {"time": datetime.now(UTC).isoformat(timespec="seconds")}
            | {"holder": current_holder().to_str()}
        )

    def over(self) -> None:
        """Note that nothing is left to do."""
        self._mark({})

    def _mark(self, facts: dict[str, Any]) -> None:
        if self.study is not None:
            self.study.set_user_attr(STAGE_KEY, facts)


def search(
    study: TuningStudy,
    total: int | None,
    timeout: float | None,
    stop: StopRequest,
    *,
    progress: Progress,
    attachments: Attachments,
    timing: Timing | None = None,
    loggers: Sequence[Callable[[Study, FrozenTrial], None]] = (),
    keep_models: int | None = None,
) -> None:
    """Search, with every trial shown and illustrated; raise `Stopped` if asked to stop."""
    if timing is not None and timing.done and timing.is_time_up:
        return
    clock = [] if timing is None else [timing.trial_finished]
    study.search(
        total,
        timeout=timeout,
        keep_models=keep_models,
        observer=progress,
        callbacks=[*clock, progress.trial_finished, attachments.trial_finished, *loggers],
        on_evaluated=attachments.evaluated,
        stop=stop,
    )
    stop.check()


def _dim(text: str) -> Text:
    return Text(visible(f"  now   {text}"), style="dim", no_wrap=True, overflow="ellipsis")


def _facts(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "generation": TrialRecord(trial).generation,
        "role": TrialRecord(trial).role,
        "frozen": TrialRecord(trial).frozen,
    }


def _finite(tree: Any) -> Any:
    """Return the same with None for every number that JSON cannot hold."""
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _trial_line(view: StudyView, trial: FrozenTrial, facts: dict[str, Any], *, brief: bool) -> str:
    """One finished trial in one line, its columns at fixed places.

    Args:
        view: The study read.
        trial: The trial.
        facts: What is told of it.
        brief: Leave out what the live display tells below: generation, best value, time left.
    """
    parts = [f"trial {trial.number:>{3 if brief else 4}}"]
    if facts["generation"] is not None and not brief:
        parts.append(f"gen {facts['generation']:>2}")
    if facts["role"]:
        parts.append(f"{facts['role']:<13}")
    outcome = view.say(trial.value) if trial.value is not None else facts["state"]
    parts.append(f"{outcome:>7}")
    if facts["state"] == "pruned":
        parts.append("stopped early")
    elif facts["best_trial"] == trial.number:
        parts.append("best" if brief else "best so far")
    elif brief:
        parts.append("    ")
    elif facts["best_trial"] is not None:
        parts.append(f"best {view.say(facts['best_value'])} (trial {facts['best_trial']})")
    took = duration(facts["seconds"]) if facts["seconds"] is not None else ""
    if brief:
        parts.append(f"{took:>6}")
    if facts["frozen"]:
        parts.append(f"frozen {facts['frozen']}")
    if brief:
        return "  ".join(parts)
    if took:
        parts.append(took)
    total = f"/{facts['total']}" if facts["total"] else ""
    left = facts["seconds_left"]
    rest = f", {duration(left)} left" if left is not None else ""
    parts.append(f"[{facts['finished']}{total}{rest}]")
    return "  ".join(parts)
