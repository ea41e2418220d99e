"""What does each part contribute? One factor at a time, on development data.

    python ablation.py --data digits other/folder --trials 40 --repeats 10 [FACTOR ...]

Meanings of a gene, the threshold, population and trials, folds and seeds, freezing or rates alone,
each addition of the default strategy, and each operator of the paper's left out: every variant is
tested against the strategy that it was taken from, paired by repeat. The same command goes on where
it stopped; run it in several terminals to share the work.
"""

import argparse

from biotune_optuna import StudySpec, TrainSettings
from biotune_optuna.compare import Comparison, run_comparison, write_comparison
from biotune_optuna.compare.ablation import ablations

parser = argparse.ArgumentParser()
parser.add_argument("factors", nargs="*", help="default: all of them")
parser.add_argument("--data", nargs="+", default=["digits"], help="never those of the final test")
parser.add_argument("--model", default="tf_efficientnet_lite0")
parser.add_argument("--weights", default="auto")
parser.add_argument("--image-size", type=int, default=64)
parser.add_argument("--train-size", type=int, default=400)
parser.add_argument("--val-size", type=int)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--trials", type=int, default=40)
parser.add_argument("--repeats", type=int, default=10)
parser.add_argument("--storage", default="sqlite:///ablation.db")
args = parser.parse_args()

tasks = tuple(
    StudySpec(
        data=data,
        model=args.model,
        weights=args.weights,
        image_size=args.image_size,
        train_size=args.train_size,
        val_size=args.val_size,
        train=TrainSettings(epochs=args.epochs, batch_size=args.batch_size),
    )
    for data in args.data
)
plan = Comparison(
    tasks=tasks,
    contenders=ablations(args.trials, args.factors or None),
    trials=args.trials,
    repeats=args.repeats,
    equal_budget=False,
    name="ablation",
)
rows = run_comparison(plan, storage=args.storage, tell=print)
print(write_comparison(rows, "ablation-out", title="Ablations", plan=plan))
