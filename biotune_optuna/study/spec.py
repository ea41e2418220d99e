"""What defines a study: the facts stored in it, and which of them must agree."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from biotune_optuna._version import __version__
from biotune_optuna.errors import StudyError
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.genome import (
    MIRRORED,
    MODE,
    TRAINING_GENES,
    USUAL_RATES,
    GenomeSpace,
    Variant,
)
from biotune_optuna.jsonable import make_plain
from biotune_optuna.models import DEFAULT_MAX_BLOCKS, MIN_MAX_BLOCKS

if TYPE_CHECKING:
    from biotune_optuna.recipe import BlockLike


# Where the same thing may be found at another place, or looked for in another way, the study goes
# on; what it *is* is settled by the fingerprints. What the study knows better is the study's.
MAY_CHANGE = frozenset(
    {
        *("data", "weights", "skip_bad_images", "size_found", "lr_found", "own_seeds"),
        "train.prefix_cache_mb",  # of the machine's memory; changes rounding alone
    }
)

# The training settings that a gene searches.
_SET_BY = {
    "augment": ("augment",),
    "balance": ("class_weights", "sampling"),
    "label_smoothing": ("label_smoothing",),
    "mix": ("mixup", "cutmix"),
    "drop_path": ("drop_path",),
    "ema": ("ema",),
}

_LARGEST_SEED = 2**63 - 1  # a PyTorch generator takes no more than 64 bits
_SEARCH, _CONFIRM, _FINAL, _TRIAL = 1, 2, 3, 4  # streams of run seeds that never meet


@dataclass(frozen=True, slots=True)
class SearchRun:
    """One training within an evaluation.

    Attributes:
        index: Position in the evaluation's list of runs, from 0.
        fold: Fold to train on; None is the whole training part.
        seed: Seed of the head's initialisation, the order of images and the augmentation.
    """

    index: int
    fold: int | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """Everything that defines a study.

    The spec is stored in the study, so that a worker needs only the database and the study's name.
    All fields are identity, a study goes on only where they agree, except ``data`` and ``weights``,
    which say where to look (the fingerprints say what must be found there), ``skip_bad_images``,
    the training's ``prefix_cache_mb``, and ``lr_found`` and ``own_seeds``, which the study knows.
    NumPy's numbers and paths become Python's numbers and text.

    Attributes:
        model: A timm architecture, such as ``"resnet50"``.
        data: Folder, CSV manifest or name of a data set.
        weights: ``"auto"`` (default), ``"hub"``, ``"none"`` or a file.
        image_size: Side of the training images in pixels; None is the model's own, but at most
            about twice the images' own.
        crop_pct: Share of the shorter side kept by the centre crop; None is the model's own.
        max_blocks: Blocks the model is divided into at most, at least 3, default 16.
        preset: Preset of the search strategy, ``"default"`` or ``"paper"``.
        population_size: Individuals in a generation; None is the preset's.
        lr: Base learning rate, or the bounds it is searched in. ``"auto"`` (default) is (1e-3,
            3e-2), or a tenth or a hundredth of it where full fine-tuning learns nothing in their
            middle, see `biotune_optuna.study.rates.find_rates`.
        weight_decay: Weight decay, or its bounds; default 0.01.
        head_trains: Whether the head trains whatever its gene says, default True.
        threshold: ``"gene"``, a fixed freezing threshold, or None: nothing is frozen.
        variant: How a gene becomes a learning-rate multiplier.
        genes: What is searched besides, default nothing: ``"mode"``, whether of a block only norms
            and biases train, or its weights at a low rank; and names of
            `biotune_optuna.genome.TRAINING_GENES`. ``"balance"`` is left out by `prepare` where the
            largest class has at most twice as many training images as the smallest.
        mirror: Whether a mirrored image is as good as the image, so that the gene ``"augment"`` may
            mirror; default False: digits and letters are others then.
        n_seeds: Trainings per fold in one evaluation, default 1: another genome is worth about as
            much to a search as another training of the same one.
        n_folds: Folds of the training part, default 1 (no folds).
        scheme: ``"holdout"`` (one validation part for all) or ``"kfold"``.
        train_size: Images to train on at most, stratified; None is all.
        val_size: Images to validate on, instead of ``val_fraction``; None follows that. Of a
            validation part that comes with the data, so many at most.
        val_fraction: Share of the training data held out for validation, default 0.2.
        test_fraction: Share of all data held out for the test where no test part is given, default
            0.2; 0 for no test, when that is done elsewhere.
        group_regex: Pattern whose first group names the images that belong together.
        strict: Whether exact duplicates across splits are refused.
        skip_bad_images: Whether images that cannot be read are left out instead of refused.
        train: How each run trains.
        racing: Whether an evaluation that is clearly beaten gets no further runs.
        seed: Seed of the whole study.
        own_seeds: Whether each trial trains on seeds of its own, so that one seed's luck is not
            shared by all recipes; None (default) is yes, and no with preset "paper".
        stop_losers: Whether a training ends that is behind most others at the same epoch
            (`biotune_optuna.study.losers`), where an evaluation is one training. Default no.
        fingerprints: ``{"data", "splits", "weights"}``: what was found, filled in by `prepare`.
        size_found: The side that ``image_size=None`` came to, filled in by `prepare`; 0 is the
            model's own whatever the images are, as in studies made before it was looked for.
        lr_found: The bounds that ``lr="auto"`` came to, filled in when the study begins.
    """

    model: str
    data: str
    weights: str = "auto"
    image_size: int | None = None
    crop_pct: float | None = None
    max_blocks: int = DEFAULT_MAX_BLOCKS
    preset: Literal["default", "paper"] = "default"
    population_size: int | None = None
    lr: float | tuple[float, float] | Literal["auto"] = "auto"
    weight_decay: float | tuple[float, float] = 0.01
    head_trains: bool = True
    threshold: Literal["gene"] | float | None = "gene"
    variant: Variant = "exponential"
    genes: tuple[str, ...] = ()
    mirror: bool = False
    n_seeds: int = 1
    n_folds: int = 1
    scheme: Literal["holdout", "kfold"] = "holdout"
    train_size: int | None = None
    val_size: int | None = None
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    group_regex: str | None = None
    strict: bool = False
    skip_bad_images: bool = False
    train: TrainSettings = field(default_factory=TrainSettings)
    racing: bool = True
    seed: int = 0
    own_seeds: bool | None = None
    stop_losers: bool = False
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    lr_found: tuple[float, float] | None = None
    size_found: int | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        if self.own_seeds is None:
            object.__setattr__(self, "own_seeds", self.preset != "paper")
        if not isinstance(self.model, str):
            raise StudyError(
                f"model {self.model!r} is no name; give one architecture, such as 'resnet50' "
                "(`biotune tune` searches several side by side)"
            )
        at_least("n_seeds", self.n_seeds, 1)
        at_least("n_folds", self.n_folds, 2 if self.scheme == "kfold" else 1)
        at_least("max_blocks", self.max_blocks, MIN_MAX_BLOCKS)
        at_least("seed", self.seed, 0)
        if self.seed > _LARGEST_SEED:
            raise StudyError(f"seed {self.seed} is too large; give at most {_LARGEST_SEED}")
        if self.image_size is not None:
            at_least("image_size", self.image_size, 8)
        if isinstance(self.lr, str) and self.lr != "auto":
            raise StudyError(f"lr {self.lr!r} is unknown; give a rate, two bounds or auto")
        if self.scheme not in ("holdout", "kfold"):
            raise StudyError(f"scheme {self.scheme!r} is unknown; choose holdout or kfold")
        if self.preset not in ("default", "paper"):
            raise StudyError(f"preset {self.preset!r} is unknown; choose default or paper")
        if self.preset == "paper" and self.scheme == "kfold":
            raise StudyError("preset 'paper' validates on one held-out part; use scheme 'holdout'")
        self._check_genes()
        if not 0 < self.val_fraction < 1:
            raise StudyError(f"val_fraction {self.val_fraction} must lie between 0 and 1")
        if not 0 <= self.test_fraction < 1:
            raise StudyError(f"test_fraction {self.test_fraction} must be 0 or lie below 1")

    def _check_genes(self) -> None:
        known = (MODE, *TRAINING_GENES)
        for name in self.genes:
            if name not in known:
                raise StudyError(f"gene {name!r} is unknown; choose among {', '.join(known)}")
            if self.genes.count(name) > 1:
                raise StudyError(f"gene {name!r} is given twice; give it once")
        if self.genes and self.preset == "paper":
            raise StudyError(
                f"preset 'paper' has no gene {self.genes[0]!r}; leave it out or take another preset"
            )
        if MODE in self.genes and isinstance(self.threshold, (int, float)):
            raise StudyError(
                f"gene 'mode' needs the threshold 'gene' or None: at {self.threshold} some modes "
                "could not be reached"
            )
        if MODE in self.genes and self.variant != "exponential":
            raise StudyError(f"gene 'mode' needs the variant 'exponential', not {self.variant!r}")
        usual = TrainSettings()
        for gene, settings in _SET_BY.items():
            set_otherwise = [
                name for name in settings if getattr(self.train, name) != getattr(usual, name)
            ]
            if gene in self.genes and set_otherwise:
                name = set_otherwise[0]
                raise StudyError(
                    f"{name} {getattr(self.train, name)!r} is set and the gene {gene!r} searches "
                    "it; give one of them"
                )

    @classmethod
    def paper(cls, *, model: str, data: str, **changes: Any) -> StudySpec:
        """Return the paper's protocol: folds by generation, three seeds, rate 1e-3, no racing.

        Args:
            model: A timm architecture.
            data: Folder, CSV manifest or name of a data set.
            changes: Any other field, where it shall differ from the paper's.

        Raises:
            StudyError: If a field is out of range.
        """
        paper: dict[str, Any] = {
            "preset": "paper",
            "lr": 1e-3,
            "weight_decay": 0.0,
            "head_trains": False,
            "n_seeds": 3,
            "n_folds": 2,
            "train": TrainSettings.paper(),
            "racing": False,
        }
        return cls(model=model, data=data, **(paper | changes))

    # -- what follows from it ------------------------------------------------------------------

    def space(self, blocks: Sequence[BlockLike]) -> GenomeSpace:
        """Return the genome space over the model's blocks."""
        return GenomeSpace(
            blocks,
            head_trains=self.head_trains,
            threshold=self.threshold,
            variant=self.variant,
            lr=(self.lr_found or USUAL_RATES) if self.lr == "auto" else self.lr,
            weight_decay=self.weight_decay,
            modes=MODE in self.genes,
            training={
                name: (*values, *(MIRRORED if self.mirror and name == "augment" else ()))
                for name, values in TRAINING_GENES.items()
                if name in self.genes
            },
        )

    @property
    def most_epochs(self) -> int:
        """Most epochs of one training: with the gene ``"length"`` more than ``train.epochs``."""
        lengths = TRAINING_GENES["length"] if "length" in self.genes else (1.0,)
        return max(self.train.by({"length": length}).epochs for length in lengths)

    def search_runs(
        self, *, generation: int = 0, repeat: int = 0, index: int | None = None
    ) -> tuple[SearchRun, ...]:
        """Return the runs of one evaluation.

        Args:
            generation: The trial's generation. Only the paper's preset trains different
                generations on different folds (fold = generation mod n_folds).
            repeat: How often this genome was evaluated before; each time gets runs of its own.
            index: The trial's slot within the generation (`biotune_optuna.slot_of`). With
                ``own_seeds`` generation and slot settle the seeds: a trial that takes over the
                slot of a lost one trains as that one would have. Without them, and where it is
                None, all genomes have the same.
        """
        if self.n_folds == 1:
            folds: list[int | None] = [None]
        elif self.preset == "paper":
            folds = [generation % self.n_folds]
        else:
            folds = list(range(self.n_folds))
        stream, first = _SEARCH, repeat * self.n_seeds
        where: tuple[int, ...] = ()
        if self.own_seeds and index is not None:
            stream, first = _TRIAL, 0
            where = (generation, index if index >= 0 else 2**31 - index)  # no slot: below 0
        pairs = [(fold, s) for s in range(first, first + self.n_seeds) for fold in folds]
        return tuple(
            SearchRun(i, fold, self._seed(stream, fold or 0, s, *where))
            for i, (fold, s) in enumerate(pairs)
        )

    def confirm_runs(self, n: int) -> tuple[SearchRun, ...]:
        """``n`` runs on the whole training part whose seeds the search never uses."""
        return tuple(SearchRun(i, None, self._seed(_CONFIRM, 0, i)) for i in range(n))

    def final_seeds(self, n: int) -> tuple[int, ...]:
        """Return seeds of the final training, to be tried in turn where it diverges."""
        return tuple(self._seed(_FINAL, 0, i) for i in range(n))

    def _seed(self, stream: int, fold: int, index: int, *more: int) -> int:
        sequence = np.random.SeedSequence([self.seed, stream, fold, index, *more])
        return int(sequence.generate_state(1, np.uint32)[0])

    # -- keeping and comparing -----------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as JSON-ready data."""
        data = dataclasses.asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StudySpec:
        """Rebuild a spec from `to_dict`'s data.

        Raises:
            StudyError: If a field is unknown to this version.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - names)
        if unknown:
            raise StudyError(
                f"the study's spec has the field {unknown[0]!r}, which version {__version__} does "
                "not know; use the version that made the study"
            )
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        values.setdefault("size_found", 0)
        values["train"] = TrainSettings.from_dict(values["train"])
        values.setdefault("own_seeds", False)  # made before trials had seeds of their own
        return cls(**values)

    def differences(self, other: StudySpec) -> list[str]:
        """Identity fields in which another spec differs, as ``"field: mine, not theirs"``."""
        mine, theirs = _flat(self.to_dict()), _flat(other.to_dict())
        return [
            f"{name}: {mine.get(name)!r}, not {theirs.get(name)!r}"
            for name in dict.fromkeys([*mine, *theirs])
            if name not in MAY_CHANGE and mine.get(name) != theirs.get(name)
        ]


def default_name(model: str, data: str) -> str:
    """Return a study's name made of data and model: ``flowers-resnet50``."""
    stem = re.split(r"[\\/]", str(data).rstrip("/\\"))[-1] or "data"
    stem = re.sub(r"\.(csv|tsv)$", "", stem, flags=re.IGNORECASE)
    return re.sub(r"[^\w.-]+", "-", f"{stem}-{model}").strip("-.")


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Lift the fields of nested mappings: {"train": {"epochs": 5}} to {"train.epochs": 5}."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": item for inner, item in _flat(value).items()})
        else:
            flat[key] = value
    return flat


def at_least(name: str, value: float, low: int) -> None:
    """Refuse a number that is too small."""
    if value < low:
        raise StudyError(f"{name} {value} is too small; give at least {low}")
