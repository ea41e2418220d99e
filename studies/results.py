"""The project's own results: three data sets on which nothing was tuned, the protocol fixed first.

    python results.py FOLDER [METHOD ...]

FOLDER holds `hymenoptera/` (its train and val are put together in `pooled/` and split anew in every
repeat), and `pneumoniamnist/` and `usps/` with their official test parts. With METHODs only these
run; the same command goes on where it stopped, and several share it. See
docs/benchmarks/first_evidence.md.
"""

import os
import sys
from pathlib import Path
from typing import Any

from _sets import pooled

from biotune_optuna import StudySpec, TrainSettings
from biotune_optuna.compare import Comparison, run_comparison, write_comparison
from biotune_optuna.compare.plan import default_methods

MODEL = "tf_efficientnet_lite0"
TRIALS = 28
REPEATS = 10
HELD_OUT: dict[str, dict[str, Any]] = {
    "pooled/hymenoptera": {"image_size": 64, "test_fraction": 0.3},
    "pneumoniamnist": {"image_size": 48},
    "usps": {"image_size": 48},
}

folder, methods = Path(sys.argv[1]), sys.argv[2:] or default_methods()
pooled(folder / "hymenoptera", folder / "pooled" / "hymenoptera")
specs = tuple(
    StudySpec(
        model=MODEL,
        data=str(folder / name),
        train_size=200,
        val_size=100,
        train=TrainSettings(epochs=6),
        **options,
    )
    for name, options in HELD_OUT.items()
)
plan = Comparison(
    tasks=specs,
    contenders=tuple(methods),
    trials=TRIALS,
    repeats=REPEATS,
    equal_budget=len(sys.argv) == 2,
    name="results",
)
storage = os.environ.get("BIOTUNE_STORAGE", "sqlite:///results.db")
rows = run_comparison(plan, storage=storage, tell=print)
print(write_comparison(rows, "results-out", plan=plan, title="Data that nothing was tuned on"))
