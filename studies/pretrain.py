"""Small-scale pre-training: networks from random weights, on a local set.

    python pretrain.py DATA --size 32 --models resnet50 densenet121
    biotune compare --model resnet50 --weights resnet50-DATA-32px.safetensors --data OTHER ...

Without --models the paper's four architectures. Where neither a network nor weights are at hand,
this shows transfer between two sets of one's own. It is no substitute for ImageNet weights and
must not be reported as such: a few thousand small images teach a network far less.
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

from biotune_optuna import Recipe, StudySpec, TrainSettings, prepare

RATES = {"vgg19": 1e-4}
"""Learning rates of architectures that need another one than 1e-3."""
MODELS = ("resnet50", "densenet121", "vgg19", "inception_v3")

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--models", nargs="+", default=MODELS)
parser.add_argument("--size", type=int, default=96, help="side of the images in pixels")
parser.add_argument("--train-size", type=int, help="images to train on; default all")
parser.add_argument("--epochs", type=int, default=30)
args = parser.parse_args()

for name in args.models:
    settings = TrainSettings(
        epochs=args.epochs, patience=None, warmup_epochs=min(2, args.epochs - 1), batch_size=64
    )
    spec = StudySpec(
        model=name,
        weights="none",
        data=args.data,
        image_size=args.size,
        train_size=args.train_size,
        test_fraction=0.0,
        train=settings,
    )
    setup = prepare(spec)
    recipe = Recipe.full(setup.blocks, lr=RATES.get(name, 1e-3), weight_decay=0.05)
    train, val = setup.splits.run(None)
    result = setup.trainer.fit(recipe, train, val, seed=0, keep_weights=True)
    state = setup.trainer.model.state_dict()
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    file = f"{name}-{Path(args.data).stem}-{args.size}px.safetensors"
    save_file(state, file)
    print(f"{file}: {spec.train.metric} {result.score:.3f} in {len(result.epochs)} epochs")
