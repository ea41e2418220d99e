"""A part of the work is claimed by one worker, and open again when that one is gone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest

from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.board import Board, board_of, parts_of, study_names


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_of_eight_that_claim_at_once_one_has_it(tmp_path: Path, kind: str) -> None:
    end = "db" if kind == "sqlite" else "log"
    boards = [Board(open_storage(f"{kind}:///{tmp_path}/b.{end}"), "b") for _ in range(8)]
    barrier = threading.Barrier(len(boards), timeout=60)

    def claim(board: Board) -> list[bool]:
        won = []
        for key in "abc":
            barrier.wait()
            won.append(board.claim(key) is not None)
        return won

    with ThreadPoolExecutor(len(boards)) as pool:
        won = list(pool.map(claim, boards))
    assert [sum(one) for one in zip(*won, strict=True)] == [1, 1, 1]
    assert boards[0].look().taken.keys() == {"a", "b", "c"}


def test_a_part_is_open_again_as_often_as_it_is_given_up(url: str) -> None:
    board = Board(open_storage(url), "b")
    for _ in range(3):
        trial = board.claim("a")
        assert trial is not None
        assert board.claim("a") is None
        board.hand_back(trial, "stopped")
    last = board.claim("a")
    assert last is not None
    board.finish(last, {"x": 1}, 0.5)
    assert board.claim("a") is None
    assert board.look().done["a"].user_attrs["result"] == {"x": 1}


def test_a_study_that_is_begun_anew_has_other_trainings(url: str) -> None:
    storage = open_storage(url)
    first = optuna.create_study(study_name="flowers", storage=storage)
    board = board_of(first)
    trial = board.claim("full | 1")
    assert trial is not None
    board.finish(trial, {"score": 0.9}, 0.9)
    assert len(parts_of(first)) == 1
    assert board_of(first).look().done.keys() == {"full | 1"}
    optuna.delete_study(study_name="flowers", storage=storage)
    again = optuna.create_study(study_name="flowers", storage=storage)
    assert parts_of(again) == []
    assert board_of(again).look().done == {}
    assert study_names(storage) == ["flowers"]
