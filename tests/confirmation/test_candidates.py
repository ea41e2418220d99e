"""Candidates: which trials are confirmed, and which of them wins and why."""

import dataclasses

import numpy as np
import optuna
import pytest

from biotune_optuna.confirmation.candidates import choose, leading
from biotune_optuna.confirmation.record import Contender
from biotune_optuna.sampler.sampler import rank_finished
from biotune_optuna.schema import RecipeSummary
from biotune_optuna.study.setup import Setup
from biotune_optuna.study.study import TuningStudy

BLOCKS = ("stem", "body", "head")


def candidate(name: str, scores: list[float], frozen: int, backward: int = 900) -> Contender:
    rates = [0.0] * frozen + [1.0] * (3 - frozen)
    return Contender(
        name=name,
        method="biotune",
        recipe=RecipeSummary(1e-3, 0.0, dict(zip(BLOCKS, rates, strict=True))),
        scores=tuple(scores),
        best_epochs=(3, 5, 4),
        backward=backward,
        trainable_pct=100.0 / (frozen + 1),
    )


def test_a_clear_best_wins() -> None:
    best = candidate("best", [0.90, 0.91, 0.92], 0)
    winner, plateau, why = choose([candidate("probe", [0.6, 0.6, 0.6], 2), best])
    assert winner is best
    assert plateau == [best]
    assert "best mean" in why


def test_the_best_mean_wins_however_dear_it_is() -> None:
    best = candidate("best", [0.88, 0.90, 0.92], 0)  # mean .90, standard error .0115
    near = candidate("near", [0.89, 0.89, 0.89], 1)
    winner, plateau, why = choose([near, best])
    assert winner is best
    assert plateau == [near, best]
    assert why == "best has the best mean on fresh seeds"


def test_whoever_prefers_it_gets_the_cheapest_within_one_standard_error() -> None:
    best = candidate("best", [0.88, 0.90, 0.92], 0)
    near = candidate("near", [0.89, 0.89, 0.89], 1)
    cheap = candidate("cheap", [0.88, 0.88, 0.88], 2)  # cheaper still, but .02 behind
    winner, plateau, why = choose([best, near, cheap], prefer="cheap")
    assert winner is near
    assert plateau == [best, near]
    assert "near is within one standard error of the best (best)" in why
    dear = candidate("dear", [0.895, 0.895, 0.895], 0, backward=2000)
    assert choose([best, dear], prefer="cheap")[2].endswith(
        "the cheapest within one standard error of it"
    )


def test_reasons_name_what_was_compared() -> None:
    best = candidate("best", [0.88, 0.90, 0.92], 0)
    far = candidate("far", [0.879, 0.879, 0.879], 1)  # within two standard errors of .0115
    why = choose([best, far], prefer="cheap", tolerance=2)[2]
    assert "within 2 standard errors of the best" in why
    alone = [candidate("a", [0.901], 0), candidate("b", [0.9005], 0)]
    assert choose(alone)[2] == "a has the best score on one fresh seed, whose luck is unknown"


def test_cost_is_passes_through_blocks_that_train() -> None:
    assert candidate("a", [1.0], 1, backward=900).backward_cost == pytest.approx(600)
    long = candidate("long", [0.9, 0.9, 0.9], 1, backward=1500)  # 1000 against 900
    short = candidate("short", [0.9, 0.9, 0.9], 0, backward=900)
    assert choose([long, short])[0] is short, "equal means"


def test_final_length_is_the_median_best_epoch() -> None:
    assert candidate("a", [1.0], 0).final_epochs == 4
    one = candidate("a", [1.0], 0)
    assert dataclasses.replace(one, best_epochs=(0,)).final_epochs == 1, "every run diverged"
    assert dataclasses.replace(one, best_epochs=(2, 5)).final_epochs == 4, "halves go up"


def test_the_best_by_model_and_by_value_are_taken_in_turn(setup: Setup) -> None:
    study = TuningStudy(optuna.create_study(direction="maximize"), setup)
    rates = np.geomspace(1e-3, 3e-2, 12)
    values = np.linspace(0.3, 0.8, 12)
    values[2] = 0.9  # what its neighbours make unlikely
    for rate, value in zip(rates, values, strict=True):
        params = dict.fromkeys(setup.space.names, 0.5) | {"lr": rate}
        study.study.add_trial(
            optuna.trial.create_trial(
                value=value, params=params, distributions=setup.space.distributions()
            )
        )
    assert rank_finished(study.study, setup.space)[:3] == [11, 10, 9]
    assert rank_finished(study.study, setup.space, smooth=False)[:3] == [2, 11, 10]

    def found(most: int, *before: int) -> list[int]:
        trials = study.study.trials
        led = leading(study, most, trials[:12], before=[trials[number] for number in before])
        return [trial.number for trial, _ in led]

    assert found(4) == [11, 2, 10, 9]
    assert found(2, 5, 11, 0) == [11, 2, 5, 0], "once confirmed, always a contender"
    one_block = params | {"gene.stem": 0.9}  # the others train the head alone
    study.study.add_trial(
        optuna.trial.create_trial(
            value=0.2, params=one_block, distributions=setup.space.distributions()
        )
    )
    everyone = study.study.trials
    assert 12 not in [trial.number for trial, _ in leading(study, 3, everyone)]
    probed = [trial.number for trial, _ in leading(study, 2, everyone, probed=True)]
    assert probed == [12, 11], "the fitted probe is what the others are after"
    study.study.add_trial(study.study.trials[2])  # evaluated again, and set aside now
    assert found(2, 13, 0) == [11, 13, 0], "under the name that it was confirmed by"
