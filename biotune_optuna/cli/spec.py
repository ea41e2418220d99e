"""From command-line options to a study's spec."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click

from biotune_optuna.cli.options import Rates, device_option, together
from biotune_optuna.models import DEFAULT_MAX_BLOCKS, MIN_MAX_BLOCKS

if TYPE_CHECKING:
    from biotune_optuna.study.spec import StudySpec


_TASK = (
    click.option("--data", help="Folder with a folder per class, CSV file, name or URL."),
    click.option(
        "--model",
        help="A timm architecture, such as resnet50.",
    ),
)
_TASK_OF_SEVERAL = (
    _TASK[0],
    click.option(
        "--model",
        multiple=True,
        help="A timm architecture, such as resnet50, or auto, or auto:30M,20ms; repeated: networks "
        "that are searched side by side, the trials moved towards the better ones.",
    ),
)
_TRAINING = (
    click.option(
        "--weights",
        default="auto",
        show_default=True,
        help="Pre-trained weights: auto, hub, none or a .safetensors or .pth file.",
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
    click.option(
        "--preset",
        type=click.Choice(["default", "paper"]),
        default="default",
        show_default=True,
        help="default: the strategy that measured best; paper: the paper's protocol (with "
        "--trials 140 its ten generations).",
    ),
    click.option(
        "--metric",
        help="Score to maximise: macro_accuracy, accuracy, macro_f1, kappa, average_precision or "
        "roc_auc.  [default: macro_accuracy]",
    ),
    click.option(
        "--image-size",
        type=int,
        help="Side in pixels.  [default: the model's own, at most about twice the images']",
    ),
    click.option(
        "--epochs", type=int, help="Most epochs of one training.  [default: 10; paper: 30]"
    ),
    click.option("--batch-size", type=int, help="Images per step.  [default: 32; paper: 96]"),
    click.option(
        "--weight-decay",
        type=Rates(zero=True),
        metavar="RATE|LOW,HIGH",
        help="Weight decay, or the bounds it is searched in (rivals: their middle).  "
        "[default: 0.01; paper: 0]",
    ),
    click.option(
        "--augment", help="none, flip, crop, crop-flip, trivial or trivial-noflip.  [default: none]"
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="Any other field of TrainSettings, such as class_weights=balanced; may be repeated.",
    ),
)
_SEARCH = (
    click.option(
        "--lr",
        type=Rates(auto=True),
        metavar="RATE|LOW,HIGH|auto",
        help="Base learning rate, or the bounds it is searched in; auto: 1e-3,3e-2, or a tenth or "
        "hundredth of that for a network that learns nothing there.  [default: auto; paper: 1e-3]",
    ),
    click.option(
        "--genes",
        metavar="NAMES",
        callback=lambda _context, _option, names: names and tuple(names.split(",")),
        help="What is searched besides blocks and rates, such as mode,augment: how a block trains "
        "(mode), augment, length, balance, label_smoothing, mix, drop_path, ema.  [default: none]",
    ),
    click.option(
        "--mirror",
        is_flag=True,
        default=None,
        help="A mirrored image is as good as the image: the gene augment may mirror.",
    ),
    click.option(
        "--seeds", type=int, help="Trainings per evaluation and fold.  [default: 1; paper: 3]"
    ),
    click.option(
        "--stop-losers",
        is_flag=True,
        default=None,
        help="End a training that is behind most others at the same epoch: saves about a third of "
        "the search, and may cost some of its result.",
    ),
    click.option("--folds", type=int, help="Folds of the training part.  [default: 1; paper: 2]"),
    click.option(
        "--scheme",
        type=click.Choice(["holdout", "kfold"]),
        help="holdout: one validation part for all; kfold: each fold validates once.  "
        "[default: holdout]",
    ),
)
_DATA = (
    click.option("--train-size", type=int, help="Images to train on at most.  [default: all]"),
    click.option("--val-size", type=int, help="Images to validate on, instead of --val-fraction."),
    click.option(
        "--val-fraction",
        type=float,
        help="Share of what is left held out to validate.  [default: 0.2]",
    ),
    click.option(
        "--test-fraction", type=float, help="Share held out for the test.  [default: 0.2]"
    ),
    click.option(
        "--max-blocks",
        type=click.IntRange(min=MIN_MAX_BLOCKS),
        help=f"Blocks the model is divided into at most.  [default: {DEFAULT_MAX_BLOCKS}]",
    ),
    click.option(
        "--group-regex", help="Files with an equal group 1 of this pattern stay together."
    ),
    click.option("--strict", is_flag=True, help="Refuse exact duplicates across splits."),
    click.option("--skip-bad-images", is_flag=True, help="Leave out images that cannot be read."),
    device_option,
)

_TRAIN = ("metric", "epochs", "batch_size", "augment")
_EXAMPLE = {
    "tune": " --data flowers --model resnet50",
    "baseline": " full --data flowers --model resnet50",
}
_RENAMED = {"seeds": "n_seeds", "folds": "n_folds"}


protocol_options = together(*_TRAINING, *_SEARCH, *_DATA)
"""All options that define a study, but for its data and model."""
spec_options = together(*_TASK_OF_SEVERAL, protocol_options)
"""All options that define a study; ``--model`` may be repeated."""
baseline_options = together(*_TASK, *_TRAINING, *_DATA)
"""Those that define a study but for how genomes are searched and evaluated."""
ranking_options = together(_TASK[0], *_TRAINING, *_DATA)
"""The same without a model, for commands that look for one."""


def make_spec(*, preset: str, settings: tuple[str, ...], **options: Any) -> StudySpec:
    """Build the spec; options left out take the preset's defaults.

    Raises:
        BioTuneError: If a value is out of range.
        UsageError: If one thing is said twice.
    """
    from biotune_optuna.finetune.settings import TrainSettings
    from biotune_optuna.study.spec import StudySpec

    for name in ("data", "model"):
        if options[name] is None:
            command = click.get_current_context().command_path
            raise click.UsageError(
                f"--{name} is missing. For example, with one folder of images per class in flowers:"
                f"\n  {command}{_EXAMPLE.get(command.split()[-1], '')}"
            )
    given = {_RENAMED.get(k, k): v for k, v in options.items() if v is not None}
    if "val_size" in given and "val_fraction" in given:
        raise click.UsageError(
            f"--val-size {given['val_size']} and --val-fraction {given['val_fraction']:g} both say "
            "how many images to validate on; give one of them"
        )
    train = {name: given.pop(name) for name in _TRAIN if name in given}
    for name, value in map(_setting, settings):
        if name in train:
            raise click.UsageError(
                f"{name} is given twice, as {train[name]!r} and with --set as {value!r}; give it "
                "once"
            )
        train[name] = value
    if preset == "paper":
        return StudySpec.paper(**given, train=TrainSettings.paper(**train))
    return StudySpec(**given, train=TrainSettings.from_dict(train))


def _setting(text: str) -> tuple[str, Any]:
    """``epochs=20`` as ("epochs", 20); switches and None may be spelled as in Python."""
    from biotune_optuna.finetune.settings import TrainSettings

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--set {text!r} is not NAME=VALUE, such as label_smoothing=0.1")
    kinds = {field.name: str(field.type) for field in dataclasses.fields(TrainSettings)}
    kind = kinds.get(name, "")
    words: dict[str, bool | None] = {"true": True, "false": False} if kind == "bool" else {}
    if kind.endswith("None"):
        words["none"] = None
    if value.lower() in words:
        return name, words[value.lower()]
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
