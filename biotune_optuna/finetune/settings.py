"""How a run trains, apart from the recipe: one frozen, JSON-able object, stored with the study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal

from biotune_optuna.errors import BioTuneError
from biotune_optuna.finetune.metrics import METRICS
from biotune_optuna.jsonable import make_plain

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "schedule": ("constant", "cosine", "linear", "tanh", "step"),
    "schedule_interval": ("step", "epoch"),
    "frozen_norm": ("eval", "train"),
    "metric": tuple(METRICS),
    "class_weights": ("none", "balanced"),
    "sampling": ("shuffle", "balanced"),
    "amp": ("auto", "off", "bf16", "fp16"),
    "cuda_graph": ("auto", "off"),
}

# The alphas of timm's own recipes.
_MIX_ALPHA: Final = {"mixup": 0.2, "cutmix": 1.0}

# field -> (least value, whether that value itself is allowed)
_LOWER: Final[dict[str, tuple[float, bool]]] = {
    "epochs": (1, True),
    "patience": (1, True),
    "batch_size": (2, True),  # BatchNorm has no variance of a single image
    "schedule_epochs": (1, True),
    "warmup_epochs": (0, True),
    "label_smoothing": (0, True),
    "mixup": (0, True),
    "cutmix": (0, True),
    "prefix_cache_mb": (0, True),
    "cached_views": (0, True),
    "drop_path": (0, True),
    "ema": (0, True),
    "grad_clip": (0, False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """Everything that decides how a recipe is trained.

    Two runs with equal settings, recipe, images and seed give equal results, so all fields belong
    to a study's identity, but for ``prefix_cache_mb``, which changes rounding alone.

    Attributes:
        epochs: Most epochs of a run.
        patience: Stop after this many epochs without a better validation score; None never stops
            early. Ignored without validation images.
        batch_size: Images per optimiser step, at least 2. A last batch of a single image joins the
            one before it, because BatchNorm cannot train on one image.
        optimizer: Name known to timm's optimiser factory (torch's own included), as ``"adam"``,
            ``"adamw"``, ``"sgd"`` (momentum 0.9, Nesterov) or ``"lion"``.
        schedule: ``"constant"``, ``"cosine"``, ``"linear"`` and ``"tanh"`` (to 0), or ``"step"``
            (a tenth after each third of the epochs, rounded up), by timm's schedulers. One factor
            multiplies every block's own rate.
        schedule_epochs: Length of the schedule in epochs, at least ``epochs``; None takes those.
        schedule_interval: ``"step"`` moves the rate at each optimiser step, ``"epoch"`` at the
            start of each epoch.
        warmup_epochs: Epochs of linear warm-up from 1 % of the rate, inside the schedule; fewer
            than ``epochs``.
        label_smoothing: Share of probability spread over all classes, in [0, 1).
        mixup: MixUp's alpha; 0 switches it off.
        cutmix: CutMix's alpha; 0 switches it off. With both, a coin decides for each batch.
        augment: Name in `biotune_optuna.data.loaders.AUGMENTATIONS`; ``"none"`` is off.
        frozen_norm: ``"eval"`` leaves BatchNorm statistics of frozen blocks untouched; ``"train"``
            lets them drift, as the paper's released code does (and rules out the prefix cache).
        metric: Name in `biotune_optuna.finetune.metrics.METRICS`.
        class_weights: ``"balanced"`` weighs the loss by n / (classes * count of the class).
        sampling: ``"shuffle"`` shows every image once an epoch; ``"balanced"`` draws as many
            images, with replacement and each class equally often on average.
        amp: Autocast: ``"auto"`` is bf16 on CUDA devices that have it, fp16 on older ones, off
            elsewhere.
        prefix_cache_mb: Memory for the outputs of frozen prefixes, in MiB; 0 switches the cache
            off. ``"auto"`` is 512 on a CPU, and on CUDA a fifth of the card's memory, divided among
            the workers that ``biotune launch --per-device`` has put there.
        cached_views: With augmentation and a frozen prefix: 0 augments afresh each epoch and does
            not cache; k > 0 trains such recipes on k fixed augmented views of each image, which
            can be cached.
        compile: Run the network through `torch.compile` where no prefix is cached.
        deterministic: Ask torch for deterministic kernels: bit-identical runs on CUDA too, slower.
            Runs on the CPU are bit-identical either way (same thread count).
        grad_clip: Largest gradient norm; None does not clip.
        cuda_graph: ``"auto"`` records a step on a full batch as a CUDA graph and replays it, where
            that can be: on CUDA, with a fused optimiser (``adamw``, ``adam``, ``sgd``, …), in any
            type but fp16, with running ``norm_statistics``, for methods without a penalty.
            ``"off"`` never does.
        norm_statistics: What BatchNorm layers that train know at the end of an epoch.
            ``"running"`` is their own moving average, which the pre-trained statistics still rule
            after few steps; ``"epoch"`` is the plain mean over the batches of that epoch.
        drop_path: Chance of leaving a residual branch out of blocks that train, where the network
            has such branches; the rates rise evenly from 0 at the first. 0 leaves its own.
        ema: Decay of an exponential average of the weights, which is validated and kept in place of
            the last step's; 0 switches it off. In the first steps it is (1 + t) / (10 + t), where
            that is less.

    Raises:
        BioTuneError: If a value is out of range.
    """

    epochs: int = 10
    patience: int | None = 3
    batch_size: int = 32
    optimizer: str = "adamw"
    schedule: str = "cosine"
    schedule_epochs: int | None = None
    schedule_interval: Literal["step", "epoch"] = "step"
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    augment: str = "none"
    frozen_norm: Literal["eval", "train"] = "eval"
    metric: str = "macro_accuracy"
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    prefix_cache_mb: float | Literal["auto"] = "auto"
    cached_views: int = 0
    compile: bool = False
    deterministic: bool = False
    grad_clip: float | None = None
    cuda_graph: Literal["auto", "off"] = "auto"
    norm_statistics: Literal["running", "epoch"] = "running"
    drop_path: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        make_plain(self)
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise BioTuneError(f"{name} {value!r} is not one of {', '.join(choices)}")
        kinds = {field.name: str(field.type) for field in fields(self)}
        for name, kind in kinds.items():
            if kind == "bool" and not isinstance(getattr(self, name), bool):
                raise BioTuneError(f"{name} {getattr(self, name)!r} is neither true nor false")
        for name in _LOWER:
            _check_number(name, getattr(self, name), kinds[name])
        for name in ("label_smoothing", "drop_path", "ema"):
            if getattr(self, name) >= 1:
                raise BioTuneError(f"{name} {getattr(self, name)} is not in [0, 1)")
        length, warmup, epochs = self.schedule_epochs, self.warmup_epochs, self.epochs
        if length is not None and length < epochs:
            raise BioTuneError(
                f"schedule_epochs {length} is below epochs {epochs}, so the rate would be spent "
                "before the end; give at least as many, or None"
            )
        if warmup >= epochs:
            raise BioTuneError(
                f"warmup_epochs {warmup} is not below epochs {epochs}, so the rate would never be "
                "reached; give fewer"
            )
        if self.augment != "none":
            # brings torch, which settings do without
            from biotune_optuna.data.augment import AUGMENTATIONS

            if self.augment not in AUGMENTATIONS:
                known = ", ".join(AUGMENTATIONS)
                raise BioTuneError(f"augment {self.augment!r} is not one of {known}")

    @classmethod
    def paper(cls, **changes: Any) -> TrainSettings:
        """Return the paper's protocol (BioTune paper, Sec. IV).

        Adam, at most 30 epochs, early stop after 3, cosine over 100 epochs (``epochs`` where they
        are more) stepped once an epoch, batches of 96, no augmentation.

        Args:
            **changes: Fields to set otherwise.
        """
        epochs = changes.get("epochs", 30)
        paper: dict[str, Any] = {
            "epochs": epochs,
            "patience": 3,
            "batch_size": 96,
            "optimizer": "adam",
            "schedule": "cosine",
            "schedule_epochs": max(100, epochs) if isinstance(epochs, int) else 100,
            "schedule_interval": "epoch",
        }
        return cls.from_dict({**paper, **changes})

    def by(self, training: Mapping[str, Any]) -> TrainSettings:
        """Return the settings that a recipe's training genes make of these.

        Args:
            training: Names and values as in `biotune_optuna.recipe.UNUSED`; what it does not name
                stays as it is.

        Raises:
            BioTuneError: If a value is out of range.
        """
        changes = {k: v for k, v in training.items() if k not in ("length", "balance", "mix")}
        if "length" in training:
            changes["epochs"] = max(1, round(self.epochs * training["length"]))
            if self.schedule_epochs is not None:
                changes["schedule_epochs"] = max(self.schedule_epochs, changes["epochs"])
            changes["warmup_epochs"] = min(self.warmup_epochs, changes["epochs"] - 1)
        if "balance" in training:
            by = training["balance"]
            changes["class_weights"] = "balanced" if by == "weights" else "none"
            changes["sampling"] = "balanced" if by == "sampling" else "shuffle"
        if "mix" in training:
            changes |= {
                name: _MIX_ALPHA[name] if name == training["mix"] else 0.0 for name in _MIX_ALPHA
            }
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainSettings:
        """Rebuild settings from `to_dict`'s data; fields left out take their defaults.

        Raises:
            BioTuneError: If a field is unknown or a value out of range.
        """
        known = [f.name for f in fields(cls)]
        for name in data:
            if name not in known:
                raise BioTuneError(f"training setting {name!r} is not one of {', '.join(known)}")
        return cls(**dict(data))


def _check_number(name: str, value: object, kind: str) -> None:
    """Refuse what is below a field's bound, or not of its annotated kind, as ``int | None``."""
    least, inclusive = _LOWER[name]
    optional, whole, auto = "None" in kind, "int" in kind, "auto" in kind
    if (value is None and optional) or (auto and value == "auto"):
        return
    number = "a whole number" if whole else "a number"
    bound = f"{number} {'of at least' if inclusive else 'above'} {least}"
    fits = (
        isinstance(value, int if whole else (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (value >= least if inclusive else value > least)
    )
    if not fits:
        suffix = " or None" if optional else " or 'auto'" if auto else ""
        raise BioTuneError(f"{name} {value!r} is not {bound}{suffix}")
