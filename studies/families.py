r"""Tiny networks of other kinds than BatchNorm's: a transformer, a ConvNeXt and an NFNet.

    python pretrain.py FOLDER/usps --epochs 8 --train-size 2000 --size 64 --models test_vit
    python pretrain.py FOLDER/usps --epochs 8 --train-size 2000 --size 32 \
        --models test_convnext test_nfnet
    python families.py usps [MODEL ...]

To run where the weights lie that pretrain.py has written; the target is scikit-learn's digits.
These are timm's test networks, of a third of a million parameters, with small-scale pre-training:
they show whether the method depends on the kind of network, not what a large one gains. The last
contender searches the usual range of rates whatever the network. Needs the extra lora. The same
command goes on where it stopped, and several share the work.
"""

import sys

from biotune_optuna import StudySpec, TrainSettings
from biotune_optuna.compare import Comparison, Contender, run_comparison, write_comparison
from biotune_optuna.genome import USUAL_RATES

SIZES = {"test_vit": 64, "test_convnext": 32, "test_nfnet": 32}
"""Images' sides in pixels."""

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
            train=TrainSettings(epochs=6, batch_size=20),
        )
        for model in models
    ),
    contenders=(
        *("biotune", "full", "linear-probe", "auto-rgn", "layer-decay", "lora"),
        Contender(
            name="biotune-usual-rates", kind="search", method="biotune", spec={"lr": USUAL_RATES}
        ),
    ),
    trials=28,
    repeats=10,
    equal_budget=False,
    name="families",
)
rows = run_comparison(plan, storage="sqlite:///families.db", tell=print)
print(write_comparison(rows, "families-out", plan=plan, title="Other kinds of networks"))
