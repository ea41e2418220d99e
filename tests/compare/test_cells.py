"""Claims of cells: by one only, kept while its worker lives, open again when it dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from biotune_optuna.compare.cells import Board
from biotune_optuna.compare.plan import Cell, Comparison, Contender, contender
from biotune_optuna.errors import StorageError, StudyError
from biotune_optuna.storage.open import open_storage
from tests.kit.processes import in_child
from tests.kit.studies import tiny_spec

PLAN = Comparison(tasks=(tiny_spec(),), contenders=("full",))
CELL = Cell("t", 3, contender("full"))


def make_board(path: Path, plan: Comparison = PLAN) -> Board:
    storage = open_storage(f"sqlite:///{path}/cells.db")
    return Board(storage, "compare/t", plan.identity(plan.tasks[0]))


def test_a_cell_is_claimed_once_and_done_once(tmp_path: Path) -> None:
    one, other = make_board(tmp_path), make_board(tmp_path)
    trial = one.claim_cell(CELL)
    assert trial is not None
    assert other.claim_cell(CELL) is None
    assert other.look().taken.keys() == {"3/full"}
    one.finish(trial, {"score": 0.75}, 0.75)
    standing = other.look()
    assert not standing.taken
    assert standing.done["3/full"].value == 0.75
    assert standing.done["3/full"].params == {"repeat": 3}
    assert other.claim_cell(CELL) is None


def test_a_cell_handed_back_or_failed_is_open(tmp_path: Path) -> None:
    board = make_board(tmp_path)
    trial = board.claim_cell(CELL)
    board.hand_back(trial, "stopped")
    again = board.claim_cell(CELL)
    text = board.fail(again, ValueError("no\nluck"))
    assert text == "ValueError: no luck"
    assert board.look().taken == {}
    assert board.claim_cell(CELL) is not None


def test_a_cell_is_kept_no_longer_though_handing_it_back_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = make_board(tmp_path)
    trial = board.claim_cell(CELL)
    storage = board.study._storage
    with monkeypatch.context() as patch:

        def lost(*_args: object) -> None:
            raise StorageError("lost")

        patch.setattr(storage, "get_trial", lost)
        with pytest.raises(StorageError):
            board.hand_back(trial, "stopped")
    assert not storage.heartbeat.trials()
    assert make_board(tmp_path).look().taken == {}


def claimed_and_killed(path: Path) -> None:
    assert make_board(path).claim_cell(CELL) is not None
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_workers_cell_is_open(tmp_path: Path) -> None:
    assert in_child(claimed_and_killed, tmp_path) == signal.SIGKILL
    board = make_board(tmp_path)
    assert board.look().taken == {}
    assert [t.system_attrs["biotune:ended"] for t in board.study.trials] == ["lost"]
    assert board.claim_cell(CELL) is not None


def test_another_comparison_is_refused(tmp_path: Path) -> None:
    make_board(tmp_path)
    other = Comparison(tasks=(tiny_spec(image_size=48),), trials=9)
    with pytest.raises(StudyError, match="image_size: 32, not 48; trials: 24, not 9"):
        make_board(tmp_path, other)


def test_another_method_of_the_same_name_is_refused(tmp_path: Path) -> None:
    board = make_board(tmp_path)
    board.finish(board.claim_cell(CELL), {"score": 0.5}, 0.5)
    board.check([CELL])
    other = Contender(name="full", kind="search", method="biotune", sampler={"momentum": 0.0})
    with pytest.raises(StudyError, match="another method by the name of 'full'"):
        board.check([Cell("t", 3, other)])


def test_other_data_are_refused(tmp_path: Path) -> None:
    board = make_board(tmp_path)
    board.pin({"data": "a", "weights": "b"})
    with pytest.raises(StudyError, match="begun with other data"):
        board.pin({"data": "c", "weights": "b"})
    with pytest.raises(StudyError, match="begun with other weights"):
        board.pin({"data": "a", "weights": "none"})


def test_a_cell_forgotten_is_open(tmp_path: Path) -> None:
    board = make_board(tmp_path)
    trial = board.claim_cell(CELL)
    assert board.look().taken.keys() == {CELL.key}
    board.forget(trial)
    assert not board.look().taken
    assert board.claim_cell(CELL) is not None
