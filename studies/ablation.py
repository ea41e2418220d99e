"""What does each part contribute? One factor at a time, on development data.

    python ablation.py [FACTOR ...]

Meanings of a gene, the threshold, population and trials, folds and seeds, freezing or rates alone,
each addition of the default strategy, and each operator of the paper's left out: every variant is
tested against the strategy that it was taken from, paired by repeat. The same command goes on where
it stopped; run it in several terminals to share the work.
"""

import sys

from biotune_optuna import StudySpec, TrainSettings
from biotune_optuna.compare import Comparison, run_comparison, write_comparison
from biotune_optuna.compare.ablation import ablations, references

TRIALS = 40
REPEATS = 10
DATA = ("digits",)  # data to develop on: never those that results are reported of

factors = sys.argv[1:] or None
tasks = tuple(
    StudySpec(
        model="tf_efficientnet_lite0",
        data=data,
        image_size=64,
        train_size=400,
        train=TrainSettings(epochs=6),
    )
    for data in DATA
)
plan = Comparison(
    tasks=tasks,
    contenders=ablations(TRIALS, factors),
    trials=TRIALS,
    repeats=REPEATS,
    equal_budget=False,
    name="ablation",
)
rows = run_comparison(
    plan,
    storage="sqlite:///ablation.db",
    tell=print,
)
page = write_comparison(rows, "ablation-out", title="Ablations", references=references(factors))
print(page)
