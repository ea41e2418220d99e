"""Working through the matrix, alone or beside other processes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from biotune_optuna.compare.cells import Board
from biotune_optuna.compare.plan import Cell, Comparison, data_name
from biotune_optuna.compare.rows import Outcome, Row
from biotune_optuna.compare.search import tested
from biotune_optuna.confirmation.baseline import run_baseline
from biotune_optuna.confirmation.protocol import setting_words
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.errors import LostDeviceError, StorageError, StudyError
from biotune_optuna.models.candidates import Limits
from biotune_optuna.models.weights import check_name
from biotune_optuna.schema import CHOICE_PREFIX, RESULT_KEY, Cost
from biotune_optuna.storage.open import keep_user_attr, open_storage
from biotune_optuna.storage.resilient import ResilientStorage
from biotune_optuna.study.auto import choose_model
from biotune_optuna.study.choice import Choice, is_auto
from biotune_optuna.study.setup import prepare
from biotune_optuna.study.stop import Stopped, StopRequest

if TYPE_CHECKING:
    import os

    from biotune_optuna.data.sources.image_source import ImageSource
    from biotune_optuna.study.setup import Setup
    from biotune_optuna.study.spec import StudySpec


_logger = logging.getLogger(__name__)

_FAILURES_IN_A_ROW = 3
_WAIT_SECONDS = 2.0


@dataclass(frozen=True)
class CellProgress:
    """What a worker tells.

    Attributes:
        cell: The cell that begins, has ended or has failed.
        state: ``"begins"``, ``"done"`` or ``"failed"``.
        done: Finished cells of the matrix, by whomever.
        total: All cells.
        row: The result of a cell that is done.
        error: Why a cell failed.
    """

    cell: Cell
    state: str
    done: int
    total: int
    row: Row | None = None
    error: str = ""

    def __str__(self) -> str:
        cell, row = self.cell, self.row
        where = f"{cell.task}, repeat {cell.repeat}, {cell.contender.name}"
        words = f"[{self.done}/{self.total}] {where}"
        if row is not None:
            return f"{words}: {row.score:.4f} in {row.seconds:.0f} s, {row.passes:,} image passes"
        return f"{words} failed: {self.error}" if self.error else f"{words} ..."


def run_comparison(
    plan: Comparison,
    *,
    storage: str | os.PathLike[str] | optuna.storages.BaseStorage | None = None,
    device: str = "auto",
    cache_dir: str | Path | None = None,
    tell: Callable[[CellProgress], object] | None = None,
    stop: StopRequest | None = None,
) -> list[Row]:
    """Fill the cells of a comparison that are not filled yet, and returns all of its results.

    Any number of processes may do this on one storage at the same time: they share the cells. A
    cell whose worker died is taken over by another, and its search goes on where it was. The call
    returns when all cells are done; where the last ones run elsewhere, it waits for them.

    Args:
        plan: The comparison.
        storage: URL, or what `biotune_optuna.open_storage` or Optuna's ``InMemoryStorage`` makes;
            None is ``$BIOTUNE_STORAGE`` or ``sqlite:///biotune.db``.
        device: Where to train.
        cache_dir: Folder of decoded images.
        tell: Called as cells begin and end.
        stop: Asks to stop; the running cell is handed back.

    Returns:
        One row for each finished cell of the comparison, tasks of earlier calls included.

    Raises:
        Stopped: ``stop`` asked so.
        BioTuneError: A model or data set cannot be found, which shows before the first cell, or
            cannot be used.
        StudyError: The storage has another comparison by that name, or is one of Optuna's that
            cannot tell a dead worker's cell; three cells in a row failed, or some failed while the
            others are done; the same call tries them again.
    """
    backend = storage if isinstance(storage, optuna.storages.BaseStorage) else open_storage(storage)
    if not isinstance(backend, ResilientStorage | optuna.storages.InMemoryStorage):
        raise StudyError(
            f"on a plain {type(backend).__name__} the cells of a killed process would stay taken "
            "for ever; give the storage's URL, or open_storage(URL)"
        )
    _Worker(plan, backend, device, cache_dir, tell, stop or StopRequest()).run()
    return read_rows(backend, plan.name)


def read_rows(storage: optuna.storages.BaseStorage, name: str) -> list[Row]:
    """Return the results of a comparison so far, of all its tasks.

    Args:
        storage: Where it is kept.
        name: The comparison's name.

    Raises:
        StudyError: If there is no comparison of that name.
    """
    found = _rows_by_task(storage, name)
    if not found:
        raise StudyError(f"there is no comparison {name!r} in the storage")
    return sorted(row for rows in found.values() for row in rows.values())


def _rows_by_task(storage: optuna.storages.BaseStorage, name: str) -> dict[str, dict[str, Row]]:
    """Return the results of a comparison so far: task -> key of the cell -> row."""
    found: dict[str, dict[str, Row]] = {}
    for study in storage.get_all_studies():
        comparison, _, task = study.study_name.partition("/")
        if comparison != name or not task or "/" in task:
            continue
        rows = found.setdefault(task, {})
        for trial in storage.get_all_trials(study._study_id, deepcopy=False):
            result = trial.user_attrs.get(RESULT_KEY)
            if trial.state == optuna.trial.TrialState.COMPLETE and result:
                row = _as_row(study.study_name, result)
                rows.setdefault(f"{row.repeat}/{row.method}", row)
    return found


@dataclass
class _Worker:
    """One call of `run_comparison`."""

    plan: Comparison
    storage: optuna.storages.BaseStorage
    device: str
    cache_dir: str | Path | None
    tell: Callable[[CellProgress], object] | None
    stop: StopRequest
    failed: dict[tuple[str, str], str] = field(default_factory=dict, init=False)
    in_a_row: int = field(default=0, init=False)
    held: tuple[tuple[str, int], Setup] | None = field(default=None, init=False)
    source: tuple[tuple[object, ...], ImageSource] | None = field(default=None, init=False)

    def run(self) -> None:
        self.specs = {self.plan.task_name(spec): spec for spec in self.plan.tasks}
        self.cells = self.plan.cells()
        self._check_tasks()
        self.boards = {
            task: Board(self.storage, f"{self.plan.name}/{task}", self.plan.identity(spec))
            for task, spec in self.specs.items()
        }
        for task, board in self.boards.items():
            own = [cell for cell in self.cells if cell.task == task]
            board.check(own)
            if board.is_elsewhere:  # is it the same there? Nothing else may ever open it.
                self._setup(own[0])
        with contextlib.ExitStack() as stack:
            for board in self.boards.values():
                stack.enter_context(board.stale_trials)
            while True:
                self.stop.check()
                cell, waiting = self._next()
                if cell is not None:
                    self._work(cell)
                elif not waiting:
                    break
                elif self.stop.wait(_WAIT_SECONDS):
                    raise Stopped
        standings = {task: board.look().done for task, board in self.boards.items()}
        for task, key in [one for one in self.failed if one[1] in standings[one[0]]]:
            del self.failed[task, key]  # another process has done it since
        if self.failed:
            (task, key), why = list(self.failed.items())[-1]
            raise StudyError(
                f"{len(self.failed)} of {len(self.cells)} cells failed, the last, "
                f"{task} {key}, with {why}; mend the cause and type the same command "
                "again"
            )

    def _check_tasks(self) -> None:
        """Look for models and data of all tasks, so that no slip shows after the first cells."""
        done = _rows_by_task(self.storage, self.plan.name)
        unfinished = {cell.task for cell in self.cells if cell.key not in done.get(cell.task, {})}
        specs = [spec for task, spec in self.specs.items() if task in unfinished]
        for spec in specs:
            if is_auto(spec.model):
                Limits.parse(spec.model.partition(":")[2])
            else:
                check_name(spec.model)
        for spec in reversed(specs):  # the first task's images are kept for it
            self._source(spec)

    # -- choosing --------------------------------------------------------------------------------

    def _next(self) -> tuple[Cell | None, bool]:
        """Return the cell to work on now, and whether others are being worked on or waited for."""
        standings = {task: board.look() for task, board in self.boards.items()}
        self.n_done = sum(cell.key in standings[cell.task].done for cell in self.cells)
        free, waiting = [], False
        for order, cell in enumerate(self.cells):
            done, taken = standings[cell.task].done, standings[cell.task].taken
            if cell.key in done or (cell.task, cell.key) in self.failed:
                continue
            needs = f"{cell.repeat}/biotune" if cell.contender.kind == "budget" else None
            if cell.key in taken or (needs and needs not in done):
                waiting |= (cell.task, needs) not in self.failed
                continue
            # Prepared already is best, then a repeat that nobody else is at.
            here = self.held is not None and self.held[0] == (cell.task, cell.repeat)
            busy = any(key.startswith(f"{cell.repeat}/") for key in taken)
            free.append((not here, busy, order, cell))
        return (min(free, key=lambda one: one[:3])[-1] if free else None), waiting

    # -- one cell --------------------------------------------------------------------------------

    def _work(self, cell: Cell) -> None:
        setup = self._setup(cell)
        board = self.boards[cell.task]
        trial = board.claim_cell(cell)
        if trial is None:
            return
        self._say(cell, "begins")
        setup.trainer.clear_cache()  # or a method would find, unpaid, what another one computed
        try:
            with self.stop.calling(lambda: None, lambda: _hand_back(board, trial)):
                outcome = self._evaluate(cell, setup)
            row = _row(cell, setup, outcome, self.specs[cell.task])
            board.finish(trial, row.to_dict(), row.score)
        except StorageError:
            board.forget(trial)
            raise
        except LostDeviceError:  # no fault of the cell's
            _hand_back(board, trial)
            raise
        except Exception as error:
            _logger.warning("%s %s failed", cell.task, cell.key, exc_info=error)
            self._note_failure(cell, board.fail(trial, error))
            return
        except BaseException:
            _hand_back(board, trial)
            raise
        self.in_a_row = 0
        self.n_done += 1
        self._say(cell, "done", row=row)

    def _note_failure(self, cell: Cell, why: str) -> None:
        self.failed[cell.task, cell.key] = why
        self.in_a_row += 1
        self._say(cell, "failed", error=why)
        if self.in_a_row >= _FAILURES_IN_A_ROW:
            raise StudyError(
                f"{self.in_a_row} cells in a row failed, the last, {cell.task} {cell.key}, with "
                f"{why}; mend the cause and type the same command again"
            )

    def _say(self, cell: Cell, state: str, *, row: Row | None = None, error: str = "") -> None:
        if self.tell:
            self.tell(CellProgress(cell, state, self.n_done, len(self.cells), row, error))

    def _setup(self, cell: Cell) -> Setup:
        """Images, splits and model of a repeat; prepared once for all of its methods."""
        if self.held is None or self.held[0] != (cell.task, cell.repeat):
            self.held = None  # its memory goes before the next one's comes
            spec = self.specs[cell.task]
            # without a size given the model's own, so that tables can be gone on with
            spec = dataclasses.replace(spec, seed=spec.seed + cell.repeat, size_found=0)
            follows_seed = spec.weights == "none" or is_auto(spec.model)
            if is_auto(spec.model):
                spec = dataclasses.replace(spec, model=self._choice(cell, spec).chosen)
            setup = prepare(
                spec, source=self._source(spec), device=self.device, cache_dir=self.cache_dir
            )
            if not len(setup.splits.test):
                raise StudyError(
                    "a comparison is decided on the test; give a test_fraction above 0"
                )
            self.held = ((cell.task, cell.repeat), setup)
            found = {name: setup.spec.fingerprints[name] for name in ("data", "weights")}
            if follows_seed:
                found["weights"] = "none"
            self.boards[cell.task].pin(found, early=setup.source.early_fingerprint)
        return self.held[1]

    def _choice(self, cell: Cell, spec: StudySpec | None = None) -> Choice:
        """Return how a repeat's network was chosen; where it was not yet, choose it.

        Args:
            cell: A cell of the repeat.
            spec: The repeat's spec; None where the choice has been made.
        """
        study, key = self.boards[cell.task].study, f"{CHOICE_PREFIX}{cell.repeat}"
        stored = study.user_attrs.get(key)
        if stored is None and spec is not None:
            made = choose_model(
                spec,
                source=self._source(spec),
                device=self.device,
                cache_dir=self.cache_dir,
                checkpoint=self.stop.check,
            )
            stored = keep_user_attr(study, key, made.to_dict())  # another process may be first
        return Choice.of(stored)

    def _source(self, spec: StudySpec) -> ImageSource:
        key = (spec.data, spec.group_regex, spec.skip_bad_images)
        if self.source is None or self.source[0] != key:
            self.source = None  # its memory goes before the next one's comes
            opened = open_images(
                spec.data, group_regex=spec.group_regex, skip_bad_images=spec.skip_bad_images
            )
            self.source = (key, opened)
        return self.source[1]

    def _evaluate(self, cell: Cell, setup: Setup) -> Outcome:
        if not is_auto(self.specs[cell.task].model):
            return self._tuned(cell, setup)
        choice = self._choice(cell)
        found = self._tuned(cell, setup, before=choice.cost)
        cost = choice.cost
        return dataclasses.replace(
            found,
            setting=f"{choice.chosen}: {found.setting}",
            forward=found.forward + cost.forward,
            backward=found.backward + cost.backward,
            seconds=found.seconds + cost.seconds,
        )

    def _tuned(self, cell: Cell, setup: Setup, before: Cost = Cost()) -> Outcome:  # noqa: B008
        """Return what a method makes of a repeat, which has cost something before."""
        from biotune_optuna.compare.budget import run_budget
        from biotune_optuna.compare.search import run_search

        one = cell.contender
        name = f"{self.plan.name}/{cell.task}/{cell.key}"
        if one.kind == "rival":
            return _run_rival(setup, one.method, self.plan, self.stop)
        options: dict[str, Any] = {"storage": self.storage, "name": name, "stop": self.stop}
        if one.kind == "search":
            return run_search(setup, one, self.plan, **options)
        done = self.boards[cell.task].look().done[f"{cell.repeat}/biotune"]
        spent = _as_row(cell.task, done.user_attrs[RESULT_KEY]).passes
        spent -= before.forward + before.backward
        return run_budget(setup, one.method, self.plan, budget=spent, **options)


def _as_row(task: str, result: Mapping[str, Any]) -> Row:
    try:
        return Row(**result)
    except TypeError as error:  # a field too many or too few
        raise StudyError(
            f"{task!r} holds results of another version ({error}); give another --name"
        ) from None


def _hand_back(board: Board, trial: optuna.Trial) -> None:
    """Open a cell again; where that cannot be told, its lease will tell."""
    with contextlib.suppress(Exception):
        board.hand_back(trial, "stopped")


def _run_rival(setup: Setup, method: str, plan: Comparison, stop: StopRequest) -> Outcome:
    """Return a rival as `biotune baseline` runs it."""
    found = run_baseline(
        setup, method, n_runs=plan.runs, members=plan.members, checkpoint=stop.check
    )
    assert found.test is not None  # `_setup` sees to it
    return Outcome(
        validation=found.contender.mean,
        trainable=found.trainable_pct,
        evaluations=max(1, len(found.graded)),
        setting=setting_words(found.setting),
        **tested(plan.members, found.test, found.ensemble),
        **found.cost.to_dict(),
    )


def digest_of_test(setup: Setup) -> str:
    """Return a short digest of the images that a setup tests on, whatever their order."""
    hashes = sorted(setup.source.content_hashes[i] for i in setup.splits.test.tolist())
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:12]


def _row(cell: Cell, setup: Setup, outcome: Outcome, asked: StudySpec) -> Row:
    chosen = is_auto(asked.model)
    splits, spec, given = setup.splits, setup.spec, setup.source.splits
    parts = [] if given is None else given.tolist()
    official = "test" in parts
    # A validation part that came with the data is never drawn for the test.
    fixed = 0 if official else parts.count("val")
    return Row(
        task=cell.task,
        data=data_name(spec.data),
        model=asked.model,
        weights="of the network that is chosen" if chosen else setup.loaded.weights,
        metric=spec.train.metric,
        classes=len(setup.classes),
        train=len(splits.train),
        val=len(splits.val),
        test=len(splits.test),
        pool=len(setup.source) - len(splits.test) - fixed,
        official=int(official),
        repeat=cell.repeat,
        seed=spec.seed,
        split=digest_of_test(setup),
        method=cell.contender.name,
        **outcome.to_dict(),
    )
