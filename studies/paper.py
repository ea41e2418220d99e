"""The paper's protocol: nine data sets, four architectures, all methods. Wants a GPU and a network.

    python paper.py                           # all but isic2020; data and weights are downloaded
    python paper.py flowers102 resnet50       # one data set, one architecture
    python paper.py isic2020:FOLDER           # of ISIC 2020 the images cannot be downloaded

Population 10, three elites, ten generations: 140 evaluations of three trainings each, up to 30
epochs, on alternating halves of the training images. The paper's table (`_published.py`, which must
lie beside this script) is printed beside ours, with the differences in protocol. The project's
tests run this script as far as its wiring goes, on tiny stand-in data; the numbers it is meant for
have not been produced by them. The same command goes on where it stopped, on several machines too,
if they share a storage.
"""

import os
import sys

from _published import PUBLISHED, beside

from biotune_optuna import StudySpec
from biotune_optuna.compare import Comparison, run_comparison, write_comparison

TRIALS = 140
REPEATS = 3
MODELS = ("resnet50", "densenet121", "vgg19", "inception_v3")

data = sys.argv[1:2] or [name for name in PUBLISHED["biotune"] if name != "isic2020"]
models = sys.argv[2:3] or MODELS
specs = tuple(StudySpec.paper(data=name, model=model) for name in data for model in models)
plan = Comparison(
    tasks=specs, trials=TRIALS, repeats=REPEATS, runs=1, equal_budget=False, name="paper"
)
rows = run_comparison(
    plan,
    storage=os.environ.get("BIOTUNE_STORAGE", "sqlite:///paper.db"),
    tell=print,
)
print(beside(rows))
print(write_comparison(rows, "paper-out", title="The paper's protocol", plan=plan))
