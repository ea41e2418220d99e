"""BioTune beside every rival, and beside Optuna's own samplers on the same genome space.

    python compare.py [DATA MODEL]

Every repeat is a fresh split on which all methods are tuned, trained and tested once; BioTune is
charged for its whole search, and four rivals get the same total budget in a second table. The same
command goes on where it stopped; run it in several terminals to share the work. Needs the package
cmaes; LoRA takes part with the extra lora.
"""

import sys

from biotune_optuna import StudySpec, TrainSettings
from biotune_optuna.compare import Comparison, run_comparison, write_comparison
from biotune_optuna.compare.plan import SEARCHERS, default_methods

TRIALS = 40
REPEATS = 10

data, model = sys.argv[1:3] if len(sys.argv) > 2 else ("digits", "tf_efficientnet_lite0")
spec = StudySpec(
    data=data, model=model, image_size=64, train_size=400, train=TrainSettings(epochs=6)
)
plan = Comparison(
    tasks=(spec,),
    contenders=(*default_methods(), *SEARCHERS),
    trials=TRIALS,
    repeats=REPEATS,
)
rows = run_comparison(
    plan,
    storage="sqlite:///compare.db",
    tell=print,
)
print(write_comparison(rows, "compare-out", title=f"{model} on {data}", plan=plan))
