"""Who gets no further run."""

import numpy as np
import optuna
import pytest

from biotune_optuna.study.racing import Race, make_race
from biotune_optuna.study.spec import SearchRun

RUNS = (SearchRun(0, None, 11), SearchRun(1, None, 22), SearchRun(2, None, 33))


def finished(number: int, scores: list[float], runs: tuple[SearchRun, ...] = RUNS):
    trial = optuna.trial.create_trial(
        value=float(np.mean(scores)),
        user_attrs={
            "runs": [
                {"fold": r.fold, "seed": r.seed, "score": s}
                for r, s in zip(runs, scores, strict=False)
            ]
        },
    )
    trial.number = number
    return trial


def test_spread_is_the_residual_of_genome_plus_run() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(0.5, 0.1, (6, 1)) + rng.normal(0, 0.2, (1, 3)) + rng.normal(0, 0.01, (6, 3))
    race = make_race([finished(i, list(row)) for i, row in enumerate(table)], RUNS, n_val=10**6)
    grand = table.mean()
    expected = sum(
        (table[i, j] - table[i].mean() - table[:, j].mean() + grand) ** 2
        for i in range(6)
        for j in range(3)
    ) / (5 * 2)
    assert race is not None
    assert race.spread == pytest.approx(expected**0.5)
    assert race.number == int(table.mean(1).argmax())
    assert race.scores == pytest.approx(tuple(table[race.number]))


def test_other_folds_are_not_compared() -> None:
    others = (SearchRun(0, 0, 1), SearchRun(1, 1, 2), SearchRun(2, 2, 3))
    trials = [finished(i, [0.9, 0.9, 0.9], others) for i in range(9)]
    trials += [finished(9 + i, [0.5, 0.6, 0.7]) for i in range(4)]
    assert make_race(trials, RUNS, n_val=100) is None  # four on the same folds are too few
    race = make_race([*trials, finished(13, [0.4, 0.5, 0.6])], RUNS, n_val=100)
    assert race is not None
    assert race.number == 9


def test_the_spread_is_at_least_one_validation_image() -> None:
    trials = [finished(i, [0.5, 0.6, 0.7]) for i in range(5)]
    race = make_race(trials, RUNS, n_val=20)
    assert race is not None
    assert race.spread == 1 / 20


def test_a_diverged_run_does_not_widen_the_spread() -> None:
    rng = np.random.default_rng(0)
    trials = [finished(i, list(rng.normal(0.85, 0.01, 3))) for i in range(12)]
    race = make_race(trials, RUNS, n_val=100)
    assert race is not None
    diverged = finished(12, [0.85, 0.85, 0.0])
    diverged.set_user_attr("diverged", True)
    assert make_race([*trials, diverged], RUNS, n_val=100) == race
    assert race.is_lost([0.6])


def test_one_run_is_no_race() -> None:
    trials = [finished(i, [0.5], RUNS[:1]) for i in range(9)]
    assert make_race(trials, RUNS[:1], n_val=20) is None


def test_the_difference_is_paired_and_shrinks_with_runs() -> None:
    race = Race(3, (0.9, 0.5, 0.7), 0.05)
    assert not race.is_lost([0.77])  # 2 * 0.05 * sqrt(2) = 0.141
    assert race.is_lost([0.75])
    assert race.is_lost([0.77, 0.37])  # the same distance twice
    assert not race.is_lost([0.5 + 0.4, 0.5])  # a bad run for both is no loss
