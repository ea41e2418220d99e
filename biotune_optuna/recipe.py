"""A recipe: which blocks train, and how fast.

A recipe is what a genome means. It names every parameter of the model it was made for, so the JSON
file alone is enough to train with it elsewhere, in anyone's loop.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

from biotune_optuna.errors import ModelError
from biotune_optuna.jsonable import read_json

if TYPE_CHECKING:
    from torch import nn


SCHEMA_VERSION = 2
"""2 has modes of blocks and training genes; a recipe without either is still written as 1."""

Mode = Literal["norms", "low-rank", "full"]
"""What of a block trains: norms and biases (all its vectors); these, and a change of rank 8 at most
to each weight; everything."""

MODES: Final[tuple[Mode, ...]] = get_args(Mode)

UNUSED: Final[Mapping[str, Any]] = {
    "augment": "none",
    "length": 1.0,
    "balance": "none",
    "label_smoothing": 0.0,
    "mix": "none",
    "drop_path": 0.0,
    "ema": 0.0,
}
"""What a recipe may say of its training, each with the value that changes nothing: an augmentation;
a factor on the epochs; ``weights`` or ``sampling`` for equal classes; the share of probability
spread over all classes; ``mixup`` or ``cutmix``; the chance of leaving a residual branch out; the
decay of an average of the weights."""


class BlockLike(Protocol):
    """What a recipe needs to know of a block; `biotune_optuna.models.blocks.Block` is one."""

    @property
    def name(self) -> str:
        """The block's name."""

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the block's parameters, as in ``model.named_parameters()``."""

    @property
    def buffer_names(self) -> tuple[str, ...]:
        """Names of the block's buffers, as in ``model.named_buffers()``."""


@dataclass(frozen=True, slots=True)
class BlockRecipe:
    """How one block is trained.

    Attributes:
        name: The block's name.
        multiplier: Factor on the base learning rate, >= 0; exactly 0 means frozen.
        parameter_names: Names of the block's parameters.
        buffer_names: Names of the block's buffers (BatchNorm statistics and the like).
        mode: What of the block trains, default ``"full"``; not read where it is frozen.
    """

    name: str
    multiplier: float
    parameter_names: tuple[str, ...] = ()
    buffer_names: tuple[str, ...] = ()
    mode: Mode = "full"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.multiplier) and self.multiplier >= 0):
            raise ModelError(
                f"block {self.name!r} has the learning-rate multiplier {self.multiplier}; "
                "it must be a finite number >= 0, where 0 freezes the block"
            )
        if self.mode not in MODES:
            raise ModelError(
                f"block {self.name!r} has the mode {self.mode!r}; it must be one of "
                f"{', '.join(MODES)}"
            )

    @property
    def frozen(self) -> bool:
        """Whether the block is frozen."""
        return self.multiplier == 0


@dataclass(frozen=True)
class Recipe:
    """Learning rates and frozen blocks for one fine-tuning run (BioTune paper, Sec. III).

    Attributes:
        blocks: The model's blocks, in execution order, head last.
        lr: Base learning rate; block b trains at ``lr * blocks[b].multiplier``.
        weight_decay: Weight decay of matrices and kernels; norms and biases get none.
        fitted: Whether the head is fitted to convergence by logistic regression instead of being
            trained by steps of an optimiser; all other blocks are frozen. Rate and weight decay
            are for networks whose output is not one linear layer, and for loops of your own.
        training: What the recipe says of the training besides: names and values as in `UNUSED`.
            What it does not name is as the training settings have it.
    """

    blocks: tuple[BlockRecipe, ...]
    lr: float
    weight_decay: float = 0.0
    fitted: bool = False
    training: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ModelError(
                f"learning rate {self.lr} is not a finite number above 0, such as 1e-3"
            )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ModelError(f"weight decay {self.weight_decay} is not a finite number >= 0")
        if self.fitted and any(not block.frozen for block in self.blocks[:-1]):
            raise ModelError("a recipe whose head is fitted must freeze all other blocks")
        for name, value in self.training.items():
            if name not in UNUSED:
                raise ModelError(f"training gene {name!r} is not one of {', '.join(UNUSED)}")
            _check_value(name, value)

    # -- making one ----------------------------------------------------------------------------

    @classmethod
    def from_multipliers(
        cls,
        blocks: Sequence[BlockLike],
        multipliers: Sequence[float],
        *,
        lr: float,
        weight_decay: float = 0.0,
        modes: Sequence[Mode] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> Recipe:
        """Build a recipe from one multiplier a block.

        Args:
            blocks: The model's blocks, in order.
            multipliers: As many factors on ``lr``; 0 freezes.
            lr: Base learning rate.
            weight_decay: Weight decay, default 0.
            modes: What of each block trains, default all of it.
            training: What it says of the training besides, default nothing.

        Raises:
            ModelError: If the lengths differ or a number is out of range.
        """
        if len(blocks) != len(multipliers):
            raise ModelError(
                f"{len(multipliers)} multipliers were given for {len(blocks)} blocks; "
                "give one a block"
            )
        return cls(
            tuple(
                BlockRecipe(b.name, float(m), tuple(b.parameter_names), tuple(b.buffer_names), mode)
                for b, m, mode in zip(
                    blocks, multipliers, modes or (MODES[-1],) * len(blocks), strict=True
                )
            ),
            lr=float(lr),
            weight_decay=float(weight_decay),
            training=dict(training or {}),
        )

    @classmethod
    def full(cls, blocks: Sequence[BlockLike], *, lr: float, weight_decay: float = 0.0) -> Recipe:
        """Build full fine-tuning: every block at ``lr``. Arguments as for `from_multipliers`."""
        return cls.from_multipliers(blocks, [1.0] * len(blocks), lr=lr, weight_decay=weight_decay)

    @classmethod
    def linear_probe(
        cls, blocks: Sequence[BlockLike], *, lr: float, weight_decay: float = 0.0
    ) -> Recipe:
        """Build a linear probe: the head at ``lr``, everything else frozen.

        Arguments as for `from_multipliers`.
        """
        multipliers = [0.0] * (len(blocks) - 1) + [1.0]
        return cls.from_multipliers(blocks, multipliers, lr=lr, weight_decay=weight_decay)

    @classmethod
    def fitted_probe(
        cls, blocks: Sequence[BlockLike], *, lr: float = 1e-2, weight_decay: float = 0.0
    ) -> Recipe:
        """Build a linear probe whose head is fitted to convergence by logistic regression.

        Args:
            blocks: The model's blocks, in order, the head last.
            lr: Rate of the head where it cannot be fitted, default 1e-2.
            weight_decay: Weight decay there, default 0.
        """
        probe = cls.linear_probe(blocks, lr=lr, weight_decay=weight_decay)
        return dataclasses.replace(probe, fitted=True)

    @classmethod
    def layer_decay(
        cls, blocks: Sequence[BlockLike], *, lr: float, decay: float, weight_decay: float = 0.0
    ) -> Recipe:
        """Build layer-wise decay: block b of B at ``lr * decay ** (B - 1 - b)``.

        The rule is that of Clark et al., "ELECTRA" (2020).

        Args:
            blocks: The model's blocks, in order, the head last.
            lr: Learning rate of the head.
            decay: Factor from one block to the one below it, such as 0.75.
            weight_decay: Weight decay, default 0.
        """
        last = len(blocks) - 1
        multipliers = [decay ** (last - b) for b in range(len(blocks))]
        return cls.from_multipliers(blocks, multipliers, lr=lr, weight_decay=weight_decay)

    # -- reading it ----------------------------------------------------------------------------

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the frozen blocks, in order."""
        return tuple(b.name for b in self.blocks if b.frozen)

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the blocks that train, in order."""
        return tuple(b.name for b in self.blocks if not b.frozen)

    @property
    def multipliers(self) -> dict[str, float]:
        """Factor on the base learning rate by block name; 0 means frozen."""
        return {b.name: b.multiplier for b in self.blocks}

    @property
    def modes(self) -> dict[str, Mode]:
        """What of each block trains, by name, where that is not all or nothing of it."""
        return {b.name: b.mode for b in self.blocks if b.mode != "full" and not b.frozen}

    def key(self) -> tuple[Any, ...]:
        """Return what training depends on, rounded to six digits: equal keys train the same way."""
        rates = (f"{b.multiplier * self.lr:.6g}" for b in self.blocks)
        return (
            *rates,
            f"{self.weight_decay:.6g}",
            *(("fitted",) if self.fitted else ()),
            *self.modes.items(),
            *sorted((k, v) for k, v in self.training.items() if v != UNUSED[k] and self._acts(k)),
        )

    def _acts(self, gene: str) -> bool:
        """Whether a training gene can act: what is frozen leaves out no branch."""
        return gene != "drop_path" or any(not block.frozen for block in self.blocks[:-1])

    def frozen_summary(self) -> str:
        """Which blocks are frozen: ``"stem to blocks.2 (4 of 9)"``, ``"none of 9"``."""
        n, names = len(self.blocks), [block.name for block in self.blocks]
        numbers = [i for i, block in enumerate(self.blocks) if block.frozen]
        if len(numbers) in (0, n):
            return f"{'all' if numbers else 'none'} of {n}"
        return f"{_runs(names, numbers)} ({len(numbers)} of {n})"

    def describe(self) -> str:
        """Return the recipe in words: ``"stem to layer2 frozen; fc at 6×; base rate 0.003"``."""
        return describe(
            self.multipliers,
            self.lr,
            fitted=self.fitted,
            modes=self.modes,
            training=self.training,
        )

    # -- using it ------------------------------------------------------------------------------

    def apply(self, model: nn.Module, lr: float | None = None) -> list[dict[str, Any]]:
        """Set ``requires_grad`` throughout the model and return parameter groups.

        Args:
            model: The model this recipe was made for.
            lr: Base learning rate; None takes the recipe's own.

        Returns:
            For each block that trains, one group of its weights and one of its norms and biases
            (weight decay 0), empty groups left out. Keys: ``params``, ``lr`` (the real rate),
            ``weight_decay``, ``name`` (the block), ``multiplier`` and ``mode``. Any optimiser and
            any scheduler of PyTorch or timm takes them as they are. The weights of a block of low
            rank are among them: `biotune_optuna.finetune.lowrank.LowRank` keeps their change at
            that rank, a loop without it trains them in full.

        Raises:
            ModelError: If the recipe and the model do not name the same parameters.
        """
        parameters = dict(model.named_parameters())
        self._check(set(parameters))
        base = self.lr if lr is None else lr
        declared = getattr(model, "no_weight_decay", None)  # timm's convention
        exempt = set(declared()) if callable(declared) else set()
        groups: list[dict[str, Any]] = []
        for block in self.blocks:
            weights: list[nn.Parameter] = []
            others: list[nn.Parameter] = []
            for name in block.parameter_names:
                parameter = parameters[name]
                is_vector = parameter.ndim <= 1 or name.endswith(".bias")
                trains = not block.frozen and (is_vector or block.mode != "norms")
                parameter.requires_grad_(trains)
                if trains:
                    (others if is_vector or name in exempt else weights).append(parameter)
            if not block.frozen and not weights and not others:
                raise ModelError(
                    f"block {block.name!r} has no norms or biases, so that nothing of it trains in "
                    f"the mode {block.mode!r}; give it another"
                )
            groups += [
                {
                    "params": members,
                    "lr": base * block.multiplier,
                    "weight_decay": decay,
                    "name": block.name,
                    "multiplier": block.multiplier,
                    "mode": block.mode if members is weights else "full",
                }
                for members, decay in ((weights, self.weight_decay), (others, 0.0))
                if members
            ]
        return groups

    def train_mode(self, model: nn.Module, frozen_norm: Literal["eval", "train"] = "eval") -> None:
        """Put the model into train mode and its frozen blocks into eval mode.

        A module counts as frozen when it holds tensors and all of them belong to frozen blocks. A
        module without tensors (dropout, drop-path, activations) follows its nearest ancestor.

        Args:
            model: The model this recipe was made for.
            frozen_norm: ``"eval"`` leaves the frozen blocks' BatchNorm statistics untouched;
                ``"train"`` lets normalisation layers of frozen blocks drift, as the paper's
                released code does.
        """
        model.train()
        tensors = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        frozen: set[str] = set()
        for block in self.blocks:
            if block.frozen:
                frozen.update(block.parameter_names, block.buffer_names)
        modules = dict(model.named_modules())
        for path in _holders(tensors & frozen) - _holders(tensors - frozen):
            if path in modules:
                modules[path].eval()
        if frozen_norm == "train":
            from torch.nn.modules.batchnorm import _NormBase

            for module in modules.values():
                if isinstance(module, _NormBase):
                    module.train()

    def _check(self, parameters: set[str]) -> None:
        named = [name for block in self.blocks for name in block.parameter_names]
        missing = [name for name in named if name not in parameters]
        extra = sorted(parameters.difference(named))
        if missing or extra:
            what = f"does not have {missing[0]!r}" if missing else f"also has {extra[0]!r}"
            raise ModelError(
                f"the recipe names {len(named)} parameters of another model: this one {what}; "
                "apply it to the architecture it was made for"
            )

    # -- keeping it ----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON-ready data, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION if self.modes or self.training else 1,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            **({"fitted": True} if self.fitted else {}),
            **({"training": dict(self.training)} if self.training else {}),
            "blocks": [
                {
                    "name": b.name,
                    "multiplier": b.multiplier,
                    "parameters": list(b.parameter_names),
                    "buffers": list(b.buffer_names),
                    **({} if b.frozen or b.mode == "full" else {"mode": b.mode}),
                }
                for b in self.blocks
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Rebuild a recipe from `to_dict`'s data.

        Raises:
            ModelError: If the data is of a newer schema or lacks a field.
        """
        version = data.get("schema_version")
        if version not in (1, SCHEMA_VERSION):
            raise ModelError(
                f"recipe schema version {version!r} cannot be read; "
                f"this version reads 1 and {SCHEMA_VERSION}"
            )
        try:
            blocks = tuple(
                BlockRecipe(
                    str(b["name"]),
                    float(b["multiplier"]),
                    tuple(b.get("parameters", ())),
                    tuple(b.get("buffers", ())),
                    mode_of(b.get("mode", "full")),
                )
                for b in data["blocks"]
            )
            return cls(
                blocks,
                lr=float(data["lr"]),
                weight_decay=float(data["weight_decay"]),
                fitted=bool(data.get("fitted", False)),
                training=dict(data.get("training", {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the recipe lacks or garbles a field: {error}") from None

    def save(self, path: str | Path) -> Path:
        """Write the recipe as JSON and return the path."""
        target = Path(path)
        target.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe that `save` wrote.

        Args:
            path: The JSON file.

        Raises:
            ModelError: If the file is not such a recipe.
        """
        try:
            data = read_json(path)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read as a recipe: {error}") from None
        if not isinstance(data, dict):
            raise ModelError(f"{path} is not a recipe: it holds no JSON object")
        return cls.from_dict(data)


def describe(
    multipliers: Mapping[str, float],
    lr: float | None = None,
    *,
    fitted: bool = False,
    modes: Mapping[str, str] | None = None,
    training: Mapping[str, Any] | None = None,
) -> str:
    """Return a recipe in words: ``"stem to layer2 frozen; fc at 6×; base rate 0.003"``.

    One that trains every block at the base rate is ``"full fine-tuning"``.

    Args:
        multipliers: Factor on the base learning rate of each block, from the input on; 0 is frozen.
        lr: The base learning rate, None where it is not known.
        fitted: Whether the head is fitted by logistic regression, which has no rate.
        modes: What of a block trains, where that is neither all nor nothing.
        training: What the recipe says of the training besides, as in `UNUSED`.
    """
    names = list(multipliers)
    if fitted:
        return f"{names[-1]} fitted by logistic regression, all else frozen"
    alike: dict[str, list[int]] = {}
    for number, (name, multiplier) in enumerate(multipliers.items()):
        mode = _MODE_WORDS[(modes or {}).get(name, "full")]
        rate = f"{mode}at {multiplier:.2g}×" if multiplier > 0 else "frozen"
        alike.setdefault(rate, []).append(number)
    if list(alike) == ["at 1×"]:
        parts = ["full fine-tuning"]
    elif len(alike) == 1 and len(names) > 1:
        parts = [f"all blocks {rate}" for rate in alike]
    else:
        rates = sorted(alike, key=lambda rate: rate != "frozen")
        parts = [f"{_runs(names, alike[rate])} {rate}" for rate in rates]
    parts += [] if lr is None else [f"base rate {lr:.2g}"]
    return "; ".join([*parts, *training_words(training or {})])


_MODE_WORDS = {"full": "", "norms": "norms only ", "low-rank": "low rank "}

_TRAINING_WORDS = {
    "augment": "{}",
    "length": "{:g}x as long",
    "balance": "classes balanced by {}",
    "label_smoothing": "labels smoothed by {:g}",
    "mix": "{}",
    "drop_path": "drop-path {:g}",
    "ema": "weights averaged (decay {:g})",
}

_VALUE_WORDS = {
    "flip": "mirrored",
    "crop": "random crops",
    "crop-flip": "random crops, mirrored",
    "trivial": "TrivialAugment, mirrored",
    "trivial-noflip": "TrivialAugment",
}


_NAMED: Final = {
    "balance": ("none", "weights", "sampling"),
    "mix": ("none", "mixup", "cutmix"),
}


def _check_value(name: str, value: object) -> None:
    """Refuse a training gene's value that means nothing.

    Raises:
        ModelError: It is none of the gene's names, or no number in its range.
    """
    if name == "augment":
        known: tuple[str, ...] = tuple(_VALUE_WORDS)
        if value != "none" and value not in known:
            raise ModelError(f"augment {value!r} is not one of none, {', '.join(known)}")
    elif name in _NAMED:
        if value not in _NAMED[name]:
            raise ModelError(f"{name} {value!r} is not one of {', '.join(_NAMED[name])}")
    else:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        low, high = (1e-3, 1e3) if name == "length" else (0.0, 1.0)
        if not (is_number and low <= float(value) <= high):  # type: ignore[arg-type]
            raise ModelError(f"{name} {value!r} is no number from {low:g} to {high:g}")


def mode_of(name: str) -> Mode:
    """Return a mode by its name.

    Raises:
        ModelError: If there is none of that name.
    """
    for mode in MODES:
        if mode == name:
            return mode
    raise ModelError(f"mode {name!r} is not one of {', '.join(MODES)}")


def training_words(training: Mapping[str, Any]) -> list[str]:
    """Say what a recipe says of its training: ``["TrivialAugment", "2x as long"]``.

    Args:
        training: Names and values as in `UNUSED`; what changes nothing is left out.
    """
    used = {name: value for name, value in training.items() if value != UNUSED.get(name)}
    return [
        _TRAINING_WORDS[name].format(_VALUE_WORDS.get(used[name], used[name]))
        for name in _TRAINING_WORDS
        if name in used
    ]


def _runs(names: Sequence[str], numbers: Sequence[int]) -> str:
    """Write a, b, c and e as "a to c, e"."""
    parts = [f"{names[a]} to {names[b]}" if a < b else names[a] for a, b in ranges(numbers)]
    return ", ".join(parts)


def ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Fold ascending numbers into (first, last) ranges: 1, 2, 3, 5 into (1, 3), (5, 5)."""
    found: list[tuple[int, int]] = []
    for n in numbers:
        if found and n == found[-1][1] + 1:
            found[-1] = (found[-1][0], n)
        else:
            found.append((n, n))
    return found


def _holders(tensors: set[str]) -> set[str]:
    """Return the paths of all modules that hold one of the tensors, the whole model's ("") too."""
    found = set()
    for name in tensors:
        path = name
        while path:
            path = path.rpartition(".")[0]
            found.add(path)
    return found
