"""What a genome is: one gene a block and a freezing threshold, and the recipe they mean.

Pure NumPy; an Optuna trial or study is only ever passed in. `GenomeSpace` has the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from biotune_optuna.errors import StudyError
from biotune_optuna.recipe import MODES, UNUSED, BlockLike, BlockRecipe, Mode, Recipe

if TYPE_CHECKING:
    import optuna


Variant = Literal["exponential", "scaled", "normalized", "discriminative"]
Range = tuple[float, float]

USUAL_RATES: Final = (1e-3, 3e-2)
"""Bounds of the base learning rate that suit most networks with AdamW."""

LR = "lr"
WEIGHT_DECAY = "weight_decay"
_THRESHOLD = "gene.threshold"
_LEAST_GENE = 0.01  # of a block that trains: the threshold and the frozen blocks' genes lie below
_LEAST_MULTIPLIER = 1e-3  # of a block that trains: only the mask freezes, never a rate of 0
# Where, in a gene of [0, 1], each mode of a block begins; a block adapts the more the higher it is.
_MODE_STARTS: Final = np.array([0.0, 0.25, 0.5])

MODE = "mode"
TRAINING_GENES: Final[Mapping[str, tuple[Any, ...]]] = {
    "augment": ("none", "crop", "trivial-noflip"),
    "length": (1.0, 0.5, 2.0),
    "balance": ("none", "weights", "sampling"),
    "label_smoothing": (0.0, 0.1),
    "mix": ("none", "mixup", "cutmix"),
    "drop_path": (0.0, 0.1),
    "ema": (0.0, 0.9),
}
"""Training genes and what they may be, the usual value first; see `biotune_optuna.recipe.UNUSED`.
Values that mirror images are no part of it: digits and letters are others when mirrored."""

MIRRORED: Final = ("crop-flip", "trivial")
"""Further values of ``augment``, where a mirrored image is as good as the image."""


class GenomeSpace:
    """The space of genomes over a model's blocks.

    With blocks b = 0 … B-1, genes ν_b and the freezing threshold ε_f, all in [0, 1]::

        mask        S_b = 1 if ν_b > ε_f else 0
        multiplier  η_b = S_b · 10^(2 (ν_b − 0.5))     "exponential", 0.1 … 10
                    η_b = S_b · ν_b / max ν            "scaled"
                    η_b = S_b · (ν_b − ε_f) / (max ν − ε_f)   "normalized"
                    η_b = S_b                          "discriminative"

    Without a threshold nothing is frozen: S_b = 1, and "normalized" takes ε_f as 0. A genome is
    valid when at least one block trains. No block that trains has a multiplier below 0.001; with
    "normalized" a head that trains although its gene is not above ε_f has just that.

    With ``modes`` the gene of a block that trains also says what of it does: in [0, 1/4) its norms
    and biases, in [1/4, 1/2) these and a low-rank change of its weights, from 1/2 on everything.
    Its place within that part takes the place of ν_b in the formula of the multiplier. The head
    trains in full wherever its gene lies.

    Args:
        blocks: The model's blocks in execution order, head last (`biotune_optuna.model_blocks`).
        head_trains: Whether the head always trains, whatever its gene says; default True. A new
            head is random, and frozen it would stay so. The paper's space has False.
        threshold: ``"gene"`` (default) to search ε_f, its fixed value in [0, 1), or None: no block
            is ever frozen.
        variant: How a gene becomes a multiplier, default ``"exponential"``.
        lr: Base learning rate, or the (low, high) bounds within which it is searched on a log
            scale; default (1e-3, 3e-2).
        weight_decay: Weight decay, or its (low, high) bounds on a log scale; default 0.
        modes: Whether genes say how a block trains; default False: all of it. Needs the variant
            ``"exponential"``.
        training: Training genes that are searched beside them, each with its values, the usual
            one first, such as ``{"augment": ("none", "crop")}``; default none.

    Raises:
        StudyError: If there are no blocks, names repeat, or a number is out of range.
    """

    def __init__(
        self,
        blocks: Sequence[BlockLike],
        *,
        head_trains: bool = True,
        threshold: Literal["gene"] | float | None = "gene",
        variant: Variant = "exponential",
        lr: float | Range = USUAL_RATES,
        weight_decay: float | Range = 0.0,
        modes: bool = False,
        training: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self.blocks = tuple(blocks)
        self.head_trains = head_trains
        self.threshold = threshold
        self.variant: Variant = variant
        self.lr = _bounds(LR, lr)
        self.weight_decay = _bounds(WEIGHT_DECAY, weight_decay)
        self.modes = modes
        self.training = {name: tuple(values) for name, values in (training or {}).items()}
        names = [block.name for block in self.blocks]
        if modes and variant != "exponential":
            raise StudyError(f"modes need the variant 'exponential', not {variant!r}")
        if modes and isinstance(threshold, (int, float)):
            raise StudyError(
                f"modes need the threshold 'gene' or None: at {threshold} some could not be reached"
            )
        for name, values in self.training.items():
            if name not in UNUSED:
                known = ", ".join(UNUSED)
                raise StudyError(f"training gene {name!r} is unknown; choose among {known}")
            if len(set(values)) < max(len(values), 2):
                raise StudyError(
                    f"training gene {name!r} has the values {list(values)}; give at least two "
                    "different ones, the usual one first"
                )
        if not names:
            raise StudyError("a genome space over no blocks is empty; give at least one block")
        if threshold == "gene" and "threshold" in names:
            raise StudyError(
                "a block is called 'threshold' like the threshold's own gene; give it another name"
            )
        if len(set(names)) < len(names):
            raise StudyError(
                f"block names repeat: {', '.join(names)}; each block needs its own name"
            )
        if variant not in get_args(Variant):
            known = ", ".join(get_args(Variant))
            raise StudyError(f"learning-rate variant {variant!r} is unknown; choose one of {known}")
        if threshold is not None and threshold != "gene" and not 0 <= threshold < 1:
            raise StudyError(f"threshold {threshold} must be 'gene', None or a number in [0, 1)")
        self.gene_names = tuple(f"gene.{name}" for name in names)
        if threshold == "gene":
            self.gene_names += (_THRESHOLD,)

    # -- genomes from elsewhere ----------------------------------------------------------------

    def suggest(self, trial: optuna.trial.BaseTrial) -> Genome:
        """Ask an Optuna trial for every parameter of the space."""
        genes = tuple(trial.suggest_float(name, 0.0, 1.0) for name in self.gene_names)
        extras = {
            name: trial.suggest_float(name, low, high, log=True)
            for name, (low, high) in self.extra_bounds.items()
        }
        training = {
            name: trial.suggest_categorical(_training_name(name), values)
            for name, values in self.training.items()
        }
        return Genome(self, genes, extras, training)

    def genome(self, params: Mapping[str, Any]) -> Genome:
        """Return the genome that a trial's parameters spell.

        Raises:
            StudyError: If a parameter is missing.
        """
        missing = [name for name in self.names if name not in params]
        if missing:
            raise StudyError(
                f"parameter {missing[0]!r} is missing; a genome needs all of {self.names}"
            )
        return Genome(
            self,
            tuple(float(params[name]) for name in self.gene_names),
            {name: float(params[name]) for name in self.extra_bounds},
            {name: params[_training_name(name)] for name in self.training},
        )

    def encode(self, recipe: Recipe) -> Genome:
        """Return the genome whose decoding comes nearest to a recipe.

        Multipliers are clipped to what a gene can say, 0.1 … 10. Where the base rate is fixed, a
        recipe's other base rate is folded into the multipliers. With "scaled" and "normalized" a
        multiplier depends on the other genes too, so that only its order among them is kept. What
        the space does not search, modes and training genes, is left out.

        Args:
            recipe: A recipe over the same blocks.

        Raises:
            StudyError: If the recipe's blocks are not this space's.
        """
        if [b.name for b in recipe.blocks] != [b.name for b in self.blocks]:
            raise StudyError("the recipe is over other blocks than the genome space")
        extras = {
            name: float(np.clip(getattr(recipe, name), low, high))
            for name, (low, high) in self.extra_bounds.items()
        }
        multipliers = np.array([block.multiplier for block in recipe.blocks])
        mask, nu = multipliers > 0, multipliers * (recipe.lr / extras.get(LR, self.base_lr))
        if self.variant == "exponential":
            nu = 0.5 + 0.5 * np.log10(np.where(mask, nu, 1.0))
        modes = np.array([MODES.index(block.mode) for block in recipe.blocks])
        training = {
            name: recipe.training[name] if recipe.training.get(name) in values else values[0]
            for name, values in self.training.items()
        }
        genes = self.with_mask(nu, mask, modes)
        return Genome(self, tuple(genes.tolist()), extras, training)

    # -- what genes mean -----------------------------------------------------------------------

    def multipliers(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return the learning-rate multiplier of each block, 0 where frozen.

        Args:
            values: Genes, shape (..., n_genes).

        Returns:
            Shape (..., B).
        """
        genes = np.asarray(values, dtype=np.float64)
        nu, mask = self.places(genes), self.mask(genes)
        if self.variant == "exponential":
            weights = 10.0 ** (2.0 * (nu - 0.5))
        elif self.variant == "discriminative":
            weights = np.ones_like(nu)
        else:
            low = self._thresholds(genes) if self.variant == "normalized" else np.zeros(1)
            span = nu.max(axis=-1, keepdims=True) - low
            weights = (nu - low) / np.where(span > 0, span, 1.0)
        return np.where(mask, np.maximum(weights, _LEAST_MULTIPLIER), 0.0)

    def places(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return what stands for ν_b in the multiplier's formula: with modes, its place in a part.

        Args:
            values: Genes, shape (..., n_genes).

        Returns:
            Shape (..., B), in [0, 1].
        """
        nu = np.asarray(values, dtype=np.float64)[..., : self.n_blocks]
        if not self.modes:
            return nu
        mode = self.block_modes(values)
        widths = np.diff(np.append(_MODE_STARTS, 1.0))
        found: NDArray[np.float64] = (nu - _MODE_STARTS[mode]) / widths[mode]
        return found

    def block_modes(self, values: ArrayLike) -> NDArray[np.int64]:
        """Return what of each block trains, if it does.

        Args:
            values: Genes, shape (..., n_genes).

        Returns:
            Positions in `biotune_optuna.recipe.MODES`, shape (..., B).
        """
        nu = np.asarray(values, dtype=np.float64)[..., : self.n_blocks]
        if not self.modes:
            return np.full(nu.shape, len(MODES) - 1)
        found: NDArray[np.int64] = np.searchsorted(_MODE_STARTS, nu, side="right") - 1
        return found

    def mask(self, values: ArrayLike) -> NDArray[np.bool_]:
        """Which blocks train.

        Args:
            values: Genes, shape (..., n_genes).

        Returns:
            Shape (..., B), True where the block trains.
        """
        genes = np.asarray(values, dtype=np.float64)
        if self.threshold is None:
            return np.ones((*genes.shape[:-1], self.n_blocks), dtype=np.bool_)
        mask: NDArray[np.bool_] = genes[..., : self.n_blocks] > self._thresholds(genes)
        if self.head_trains:
            mask[..., -1] = True
        return mask

    def _thresholds(self, genes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ε_f of each genome: genes of shape (..., n_genes) give shape (..., 1)."""
        if self.threshold == "gene":
            return genes[..., self.n_blocks : self.n_blocks + 1]
        return np.full((*genes.shape[:-1], 1), float(self.threshold or 0.0))

    def with_mask(
        self,
        nu: NDArray[np.float64],
        mask: NDArray[np.bool_],
        modes: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """Return the genes that train just the blocks of a mask.

        The genes of frozen blocks all get one value, so that they cannot drift.

        Args:
            nu: Genes that the blocks that train should have, shape (B,); others are not read.
                With modes: their places within the mode's part, in [0, 1].
            mask: True where the block trains, shape (B,).
            modes: Positions in `biotune_optuna.recipe.MODES`, shape (B,); None trains in full.

        Returns:
            Shape (n_genes,).
        """
        genes = np.clip(nu, 0.0, 1.0)
        if self.modes:
            mode = np.full(len(nu), len(MODES) - 1) if modes is None else modes
            ends = np.append(_MODE_STARTS[1:], np.nextafter(1.0, 2.0))[mode]
            starts = _MODE_STARTS[mode]
            genes = np.minimum(starts + genes * (ends - starts), np.nextafter(ends, 0.0))
        genes = np.clip(genes, _LEAST_GENE, 1.0)
        ruled = mask.copy()  # by the threshold, that is
        ruled[self.n_freezable :] = False
        if self.threshold == "gene":
            threshold = 0.5 * float(genes[ruled].min()) if ruled.any() else 0.5
        else:
            threshold = float(self.threshold or 0.0)
            genes[ruled] = np.maximum(genes[ruled], np.nextafter(threshold, 2.0))
        genes[~mask] = 0.5 * threshold
        return np.append(genes, threshold) if self.threshold == "gene" else genes

    def is_valid(self, values: ArrayLike) -> bool:
        """Whether at least one block trains (BioTune paper: Σ S_b ≥ 1)."""
        return bool(self.mask(values).any(axis=-1).all())

    def repair(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return a valid genome near this one: the block with the largest gene is activated.

        Args:
            values: Genes, shape (n_genes,).

        Returns:
            The genes clipped to [0, 1] and, where no block trained, with the largest block gene
            just above the threshold.
        """
        genes = np.clip(np.asarray(values, dtype=np.float64), 0.0, 1.0)
        if self.is_valid(genes):
            return genes
        best = int(np.argmax(genes[: self.n_blocks]))
        threshold = float(self._thresholds(genes)[0])
        if threshold >= 1.0:  # nothing lies above a threshold of 1: lower it
            threshold = float(np.nextafter(1.0, 0.0))
            genes[self.n_blocks] = threshold
        genes[best] = np.nextafter(threshold, 2.0)
        return genes

    # -- names and ranges ----------------------------------------------------------------------

    @property
    def n_blocks(self) -> int:
        """Number of blocks B."""
        return len(self.blocks)

    @property
    def n_freezable(self) -> int:
        """Number of blocks that a genome may freeze, from the first one on: B, or B − 1."""
        return self.n_blocks - self.head_trains

    @property
    def n_genes(self) -> int:
        """Number of genes: B, plus 1 where the threshold is searched."""
        return len(self.gene_names)

    @property
    def base_lr(self) -> float:
        """The base learning rate, the geometric middle of its bounds where it is searched."""
        return _middle(self.lr)

    @property
    def base_weight_decay(self) -> float:
        """The weight decay, the geometric middle of its bounds where it is searched."""
        return _middle(self.weight_decay)

    @property
    def extra_bounds(self) -> dict[str, Range]:
        """Bounds of the log-scaled parameters searched beside the genes."""
        both = {LR: self.lr, WEIGHT_DECAY: self.weight_decay}
        return {name: value for name, value in both.items() if isinstance(value, tuple)}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all searched parameters: the genes, the extras, the training genes."""
        training = map(_training_name, self.training)
        return (*self.gene_names, *self.extra_bounds, *training)

    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """Return Optuna's distribution of each searched parameter."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        bounds, training = self.extra_bounds.items(), self.training.items()
        return {
            **{name: FloatDistribution(0.0, 1.0) for name in self.gene_names},
            **{name: FloatDistribution(*pair, log=True) for name, pair in bounds},
            **{_training_name(name): CategoricalDistribution(values) for name, values in training},
        }

    # -- as stored data ------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the space as JSON-ready data: block names and settings, no parameter names."""
        ranges = {LR: self.lr, WEIGHT_DECAY: self.weight_decay}
        training = {name: list(values) for name, values in self.training.items()}
        return {
            "blocks": [block.name for block in self.blocks],
            "head_trains": self.head_trains,
            "threshold": self.threshold,
            "variant": self.variant,
            **({"modes": True} if self.modes else {}),
            **({"training": training} if training else {}),
            **{k: list(v) if isinstance(v, tuple) else v for k, v in ranges.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GenomeSpace:
        """Rebuild a space from `to_dict`'s data; its blocks know their names only."""
        options = {k: data[k] for k in ("head_trains", "threshold", "variant", LR, WEIGHT_DECAY)}
        options |= {k: data[k] for k in ("modes", "training") if k in data}
        return cls([BlockRecipe(name, 1.0) for name in data["blocks"]], **options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenomeSpace) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.gene_names, self.head_trains, self.variant))

    def __repr__(self) -> str:
        return f"GenomeSpace({self.n_blocks} blocks: {', '.join(b.name for b in self.blocks)})"


@dataclass(frozen=True)
class Genome:
    """One point of a `GenomeSpace`.

    Attributes:
        space: The space it belongs to.
        values: Genes in [0, 1], in the order of ``space.gene_names``.
        extras: Values of the parameters searched beside the genes (``lr``, ``weight_decay``).
        training: Values of the training genes.
    """

    space: GenomeSpace
    values: tuple[float, ...]
    extras: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = self.space.gene_names
        if len(self.values) != len(names):
            raise StudyError(
                f"a genome of {len(self.values)} genes was given; {len(names)} are needed"
            )
        for name, value in zip(names, self.values, strict=True):
            if not 0 <= value <= 1:
                raise StudyError(f"gene {name!r} is {value}; a gene lies in [0, 1]")

    @property
    def params(self) -> dict[str, Any]:
        """The genome as Optuna parameters, ready for ``study.enqueue_trial``."""
        return {
            **dict(zip(self.space.gene_names, self.values, strict=True)),
            **self.extras,
            **{_training_name(name): value for name, value in self.training.items()},
        }

    def decode(self) -> Recipe:
        """Return the genome's meaning: rates and frozen blocks (BioTune paper, Sec. III)."""
        return Recipe.from_multipliers(
            self.space.blocks,
            self.space.multipliers(self.values).tolist(),
            lr=self.extras.get(LR, self.space.base_lr),
            weight_decay=self.extras.get(WEIGHT_DECAY, self.space.base_weight_decay),
            modes=self._modes(),
            training=self.training,
        )

    def _modes(self) -> list[Mode]:
        modes = [MODES[i] for i in self.space.block_modes(self.values)]
        return [*modes[:-1], "full"]  # a head is new: all of it trains


def _training_name(name: str) -> str:
    return f"train.{name}"


def _bounds(name: str, value: float | Sequence[float]) -> float | Range:
    """Check a fixed value or a pair of bounds."""
    if isinstance(value, (int, float)):
        if not np.isfinite(value) or value < 0 or (name == LR and value == 0):
            raise StudyError(f"{name} {value} is out of range; give a positive number")
        return float(value)
    low, high = (float(bound) for bound in value)
    if not 0 < low < high < np.inf:
        raise StudyError(f"{name} bounds ({low}, {high}) must satisfy 0 < low < high")
    return (low, high)


def _middle(value: float | Range) -> float:
    return float(np.sqrt(value[0] * value[1])) if isinstance(value, tuple) else value
