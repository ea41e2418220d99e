"""Small-scale pre-training: the paper's four architectures, from random weights, on a local set.

    python pretrain.py DATA [SIZE]
    biotune compare --model resnet50 --weights resnet50-DATA.safetensors --data OTHER ...

Where neither a network nor weights are at hand, this shows transfer between two sets of one's own.
It is no substitute for ImageNet weights and must not be reported as such: a few thousand small
images teach a network far less.
"""

import sys
from pathlib import Path

from safetensors.torch import save_file

from biotune_optuna import Recipe, StudySpec, TrainSettings, prepare

EPOCHS = 30
RATES = {"resnet50": 1e-3, "densenet121": 1e-3, "vgg19": 1e-4, "inception_v3": 1e-3}

data, size = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 96

for name, rate in RATES.items():
    settings = TrainSettings(
        epochs=EPOCHS, patience=10, warmup_epochs=min(2, EPOCHS - 1), augment="crop-flip"
    )
    spec = StudySpec(
        model=name,
        weights="none",
        data=data,
        image_size=size,
        weight_decay=0.05,
        test_fraction=0.0,
        train=settings,
    )
    setup = prepare(spec)
    recipe = Recipe.full(setup.blocks, lr=rate, weight_decay=0.05)
    train, val = setup.splits.run(None)
    result = setup.trainer.fit(recipe, train, val, seed=0, keep_weights=True)
    state = setup.trainer.model.state_dict()
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    file = f"{name}-{Path(data).stem}.safetensors"
    save_file(state, file)
    print(f"{file}: {spec.train.metric} {result.score:.3f} in {len(result.epochs)} epochs")
