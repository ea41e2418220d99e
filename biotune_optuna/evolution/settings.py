"""What a user may change about the search, and the two presets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from biotune_optuna.errors import StudyError

Preset = Literal["default", "paper"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """What defines a search besides its space and its seed.

    ``SearchSettings()`` is the paper's strategy. `of` begins with a preset, for example
    ``SearchSettings.of("default", candidates=100)``.

    Attributes:
        preset: Name of the preset that these settings began with; it changes nothing by itself.
        population_size: P >= 3, individuals that survive a generation.
        n_elites: E, 0 <= E < P, how many of the best are exploited each generation.
        momentum: κ >= 0 of the crossover.
        crossover: False: a child begins as its first parent. This and the next three leave out an
            operator of the paper's offspring, for ablations.
        mutation: False: children do not mutate.
        extinction: False: the mutation's strength is a half for all, whatever their rank.
        adoption: False: children are not pulled towards their parents and a prototype.
        informed: Begin with recipes that did well on other tasks, single blocks, full fine-tuning
            and a linear probe among them. This and what follows is what the default preset adds.
        structured: Breed by moves in the space of what a genome means: shift all rates, tilt them
            with depth, move the boundary of the frozen prefix, add, drop, swap or retune single
            blocks. Genes of frozen blocks do not drift.
        smoothing: Rank genomes by a model of the landscape, which pools the noise of neighbours
            and what other tasks taught, so that a lucky value does not rule.
        candidates: How many offspring the model compares before one is evaluated; 1: none.
        kappa: How much of the model's standard deviation counts for a candidate.
        unique: Replace an offspring that means the same as a genome already evaluated.
        reevaluations: Slots of each generation that evaluate one of the best genomes again, on new
            runs (see `biotune_optuna.slot_of`).
    """

    preset: Preset = "paper"
    # P = 10 and E = 3 are the paper's. It gives momentum no coefficient; 1 was decided here.
    population_size: int = 10
    n_elites: int = 3
    momentum: float = 1.0
    crossover: bool = True
    mutation: bool = True
    extinction: bool = True
    adoption: bool = True
    informed: bool = False
    structured: bool = False
    smoothing: bool = False
    candidates: int = 1
    kappa: float = 0.0
    unique: bool = False
    reevaluations: int = 0

    @classmethod
    def of(cls, preset: Preset, **changes: Any) -> SearchSettings:
        """Return the settings of a preset, some of them changed.

        Args:
            preset: ``"paper"`` is the published strategy to the letter; ``"default"`` is what
                measures best in this project's benchmark.
            **changes: Other values of the attributes above.

        Raises:
            StudyError: If there is no such preset.
        """
        if preset not in get_args(Preset):
            raise StudyError(f"preset {preset!r} is unknown; choose 'default' or 'paper'")
        if preset == "paper":
            return cls(**changes)
        # docs/benchmarks/search.md, "One switch at a time", measures these.
        default = cls(
            preset="default",
            n_elites=0,  # chosen by hand while the preset was developed
            informed=True,
            structured=True,
            smoothing=True,
            candidates=128,
            kappa=1.0,
            unique=True,
            reevaluations=1,
        )
        return replace(default, **changes)

    @property
    def uses_archive(self) -> bool:
        """Whether offspring depend on more than the population."""
        return self.structured or self.smoothing or self.unique or self.reevaluations > 0

    def check(self) -> None:
        """Raise StudyError where a number is out of range."""
        if self.population_size < 3:
            raise StudyError(f"population_size {self.population_size} is too small; give 3 or more")
        if not 0 <= self.n_elites < self.population_size:
            raise StudyError(
                f"n_elites {self.n_elites} does not fit a population of {self.population_size}; "
                "give 0 or more, and fewer than the population"
            )
        if not 0 <= self.momentum < float("inf"):
            raise StudyError(f"momentum {self.momentum} must be a number >= 0; 0 switches it off")
        if not 0 <= self.kappa < float("inf"):
            raise StudyError(f"kappa {self.kappa} must be a number >= 0")
        if self.candidates < 1:
            raise StudyError(f"candidates {self.candidates} must be 1 or more; 1 compares none")
        free = self.population_size - self.n_elites
        if not 0 <= self.reevaluations <= free:
            raise StudyError(
                f"reevaluations {self.reevaluations} must lie between 0 and the {free} slots of "
                "a generation that are no elite's"
            )
