r"""The paper's four architectures on a small scale: pre-trained on one set, moved to another.

    python pretrain.py FOLDER/usps --epochs 8 --train-size 2000 --size 75 --models inception_v3
    python pretrain.py FOLDER/usps --epochs 8 --train-size 2000 --size 32 \
        --models resnet50 densenet121 vgg19
    python architectures.py usps [MODEL ...]

To run where the weights lie that pretrain.py has written; the target is scikit-learn's digits.
Small-scale pre-training, not ImageNet's: see pretrain.py. Needs the extra lora. The same command
goes on where it stopped, and several share the work. The tables are in docs/benchmarks.
"""

import sys

from biotune_optuna import StudySpec, TrainSettings
from biotune_optuna.compare import Comparison, run_comparison, write_comparison

SIZES = {"resnet50": 32, "densenet121": 32, "inception_v3": 75, "vgg19": 32}
"""Images' sides in pixels; Inception-v3 takes no smaller ones."""

source, models = sys.argv[1], [name for name in SIZES if name in (sys.argv[2:] or SIZES)]
plan = Comparison(
    tasks=tuple(
        StudySpec(
            model=model,
            weights=f"{model}-{source}-{SIZES[model]}px.safetensors",
            data="digits",
            image_size=SIZES[model],
            train_size=100,
            val_size=100,
            test_fraction=0.5,
            train=TrainSettings(epochs=4, batch_size=20),
        )
        for model in models
    ),
    contenders=("biotune", "full", "linear-probe", "auto-rgn", "lora"),
    trials=14,
    repeats=3,
    equal_budget=False,
    name="architectures",
)
rows = run_comparison(plan, storage="sqlite:///architectures.db", tell=print)
print(write_comparison(rows, "architectures-out", plan=plan, title="Four architectures"))
