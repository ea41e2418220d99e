"""How much evidence a confirmation gathers, and which rates its rivals get."""

import math
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biotune_optuna.confirmation.confirm import confirm
from biotune_optuna.confirmation.plan import ConfirmPlan, further_rate
from biotune_optuna.errors import StudyError
from biotune_optuna.finetune.results import RunResult
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.recipe import Recipe
from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.study.objective import Objective
from biotune_optuna.study.setup import Setup
from biotune_optuna.study.study import TuningStudy


def test_bad_plans_are_named() -> None:
    with pytest.raises(StudyError, match="top_k 0"):
        ConfirmPlan(top_k=0)
    with pytest.raises(StudyError, match="base rate"):
        ConfirmPlan(rates=())
    with pytest.raises(StudyError, match="more_rates -1"):
        ConfirmPlan(more_rates=-1)
    with pytest.raises(StudyError, match="prefer 'good' is unknown"):
        ConfirmPlan(prefer="good")  # type: ignore[arg-type]
    for members in (0, 1.5, 1000, True, "5"):
        with pytest.raises(
            StudyError, match=f"members {members!r} is no whole number from 1 to 50"
        ):
            ConfirmPlan(members=members)  # type: ignore[arg-type]


def test_a_plan_of_old_is_the_same_basis() -> None:
    """What an earlier version has confirmed stands for who asks for the same."""
    old = {"trials": 4, "top_k": 3, "n_runs": 3, "rates": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]}
    old["more_rates"] = 3
    assert ConfirmPlan(members=1, prefer="cheap", reuse=False).basis(4) == old
    assert ConfirmPlan(reuse=False).basis(4) == old | {"members": 5, "prefer": "best"}
    assert ConfirmPlan(members=1, prefer="cheap").holds(old, 4), "it has more evidence"
    assert not ConfirmPlan(members=1, prefer="cheap").holds(old, 5)
    assert not ConfirmPlan(reuse=False).holds(ConfirmPlan().basis(4), 4)


@pytest.mark.parametrize(
    ("scores", "further"),
    [
        ({3e-4: 0.7, 1e-3: 0.8, 3e-3: 0.6}, None),
        ({3e-4: 0.9, 1e-3: 0.8, 3e-3: 0.6}, 1e-4),
        ({3e-4: 0.1, 1e-3: 0.1, 3e-3: 0.0}, 1e-4),  # all of them guess or diverge
        ({3e-4: 0.9, 1e-3: 0.9, 3e-3: 0.8}, None),
        ({3e-4: 1.0, 1e-3: 1.0, 3e-3: 1.0}, None),
        ({3e-4: 0.7, 1e-3: 0.8, 3e-3: 0.9}, 1e-2),
        ({3e-4: 0.7, 1e-3: 0.9, 3e-3: 0.9}, None),
        ({1e-3: 0.9}, None),  # one rate is no range
        ({5e-4: 0.9, 2e-3: 0.8}, 1e-4),
    ],
)
def test_a_rival_gets_a_further_rate_only_beyond_its_best(
    scores: dict[float, float], further: float | None
) -> None:
    assert further_rate(scores) == further


@given(st.integers(-14, 2), st.booleans())
def test_further_rates_go_on_in_half_decades(half_decades: int, up: bool) -> None:
    rate = float(f"{10 ** (half_decades / 2):.0e}")
    other = rate / 7 if up else rate * 7
    found = further_rate({rate: 1.0, other: 0.0})
    assert found is not None
    step = found / rate if up else rate / found
    assert step == pytest.approx(math.sqrt(10), rel=0.06)
    assert f"{found:e}"[0] in "13"


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1e-2, [1e-3, 1e-2, 1e-1]),
        (1e-3, [1e-3, 1e-2, 1e-1, 3e-4]),
        (1e-5, [1e-3, 1e-2, 1e-1, 3e-4, 1e-4]),  # two more and no further
        (1.0, [1e-3, 1e-2, 1e-1, 0.3, 1.0]),
    ],
)
def test_a_rival_is_tuned_beyond_its_rates_where_it_does_best_at_an_end(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, best: float, tried: list[float]
) -> None:
    study = TuningStudy(optuna.create_study(direction="maximize"), setup)
    study.study.sampler = BioTuneSampler(space=setup.space, seed=0)
    study.study.optimize(Objective(setup), n_trials=1)
    fit, order = Trainer.fit, []

    def scored(self: Trainer, recipe: Recipe, *args: Any, **options: Any) -> RunResult:
        result = fit(self, recipe, *args, **options)
        result.score = 0.9 - 0.1 * abs(math.log10(recipe.lr / best))
        order.append(recipe.lr)
        return result

    class Stages:
        def trial_started(self, trial: object) -> None: ...
        def epoch(self, run: object, record: object) -> None: ...
        def stage(self, name: str, detail: str, done: int, total: int) -> None:
            stages.append((done, total))

    stages: list[tuple[int, int]] = []
    monkeypatch.setattr(Trainer, "fit", scored)
    plan = ConfirmPlan(
        top_k=1,
        n_runs=1,
        rates=(1e-3, 1e-2, 1e-1),
        more_rates=2,
        rivals=("linear-probe-sgd",),
        members=1,
    )
    (rival,) = confirm(study, plan, observer=Stages()).rivals
    assert order[: len(tried)] == pytest.approx(tried)
    assert rival.grid is not None
    assert [point["lr"] for point in rival.grid] == sorted(tried)
    assert rival.recipe.lr == min(tried, key=lambda rate: abs(math.log10(rate / best)))
    assert stages == [(done, max(done + 1, total)) for done, (_, total) in enumerate(stages)]
    assert stages[-1] == (len(tried) + 3, len(tried) + 4)
