"""The default preset as a whole: a stored golden trajectory."""

from __future__ import annotations

import json
import math
from pathlib import Path

import optuna
import pytest

from biotune_optuna.evolution.settings import SearchSettings
from biotune_optuna.evolution.strategy import plan
from biotune_optuna.genome import GenomeSpace
from biotune_optuna.recipe import BlockRecipe
from biotune_optuna.sampler.sampler import BioTuneSampler

GOLDEN = Path(__file__).parent / "golden_default.json"
WORKERS = {"alone": 1, "two workers": 2}
SEED, N_TRIALS = 5, 60
# The best log10 rates, from the stem to the head; a frozen block counts as one of -5.
WANTED = (-5, -5, -3.5, -3, -2.5, -2)

optuna.logging.set_verbosity(optuna.logging.ERROR)


def accuracy(recipe, number):
    """A bowl over the log rates, and noise that a trial's number gives."""
    rates = [math.log10(recipe.lr * m) if m else -5.0 for m in recipe.multipliers.values()]
    far = sum((rate - wanted) ** 2 for rate, wanted in zip(rates, WANTED, strict=True))
    decay = 0.02 * (math.log10(recipe.weight_decay) + 2) ** 2
    return 1 - far / (far + 20) - decay + 0.03 * math.cos(7 * number)


def run(n_workers):
    """All trials; each is told when the next ``n_workers - 1`` have been asked for."""
    blocks = [BlockRecipe(f"b{i}", 1.0) for i in range(6)]
    space = GenomeSpace(blocks, weight_decay=(1e-4, 1e-1))
    study = optuna.create_study(
        direction="maximize", sampler=BioTuneSampler(space=space, preset="default", seed=SEED)
    )
    held = []
    for _ in range(N_TRIALS):
        trial = study.ask()
        held.append((trial, accuracy(space.suggest(trial).decode(), trial.number)))
        if len(held) == n_workers:
            study.tell(*held.pop(0))
    return [
        [
            t.user_attrs["generation"],
            t.user_attrs["role"],
            t.user_attrs["parents"],
            *t.params.values(),
        ]
        for t in study.trials
    ]


@pytest.mark.parametrize("workers", WORKERS)
def test_golden_trajectory(workers):
    """Guards against any change of the default preset.

    After one that is wanted, ``python -m tests.evolution.test_default_strategy`` writes the file
    anew. No choice on the way is near a tie: kernels of another processor may round differently.
    """
    told = run(WORKERS[workers])
    golden = json.loads(GOLDEN.read_text())[workers]
    for number, (ours, stored) in enumerate(zip(told, golden, strict=True)):
        assert ours[:3] == stored[:3], number
        assert ours[3:] == pytest.approx(stored[3:], rel=1e-9), number


def test_budget_and_roles():
    settings = SearchSettings.of("default")
    assert (settings.population_size, settings.n_elites) == (10, 0)
    assert (settings.candidates, settings.kappa, settings.reevaluations) == (128, 1.0, 1)
    assert settings.informed
    assert settings.structured
    assert settings.smoothing
    assert settings.unique
    assert plan(settings, 0, n_initial=9) == ("initial",) * 9 + ("immigrant",)
    assert plan(settings, 4) == ("offspring",) * 9 + ("re-evaluation",)


def write_golden():
    told = {workers: run(n_workers) for workers, n_workers in WORKERS.items()}
    rows = {
        workers: "[\n" + ",\n".join(map(json.dumps, trials)) + "\n]"
        for workers, trials in told.items()
    }
    text = ",\n".join(f"{json.dumps(workers)}: {lines}" for workers, lines in rows.items())
    GOLDEN.write_text("{\n" + text + "\n}\n")


if __name__ == "__main__":
    write_golden()
