"""What a search is: seed, settings and space, as they are kept in the study."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from biotune_optuna.errors import StudyError
from biotune_optuna.evolution.informed import informed_genomes
from biotune_optuna.evolution.settings import SearchSettings
from biotune_optuna.genome import Genome, GenomeSpace
from biotune_optuna.jsonable import plain_value

if TYPE_CHECKING:
    from biotune_optuna.evolution.settings import Preset


_logger = logging.getLogger(__name__)

CONFIG_VERSION = 1
_WHOLE_NUMBERS = ("population_size", "n_elites", "candidates", "reevaluations")


@dataclass(frozen=True)
class Config:
    """What a search is, as it is kept in the study.

    Attributes:
        settings: The strategy's settings.
        seed: The study's seed; None until one is drawn.
        space: The genome space; None for a generic search.
        initial: Parameters of the genomes wanted in generation 0.
        explicit: Names of the settings that the user gave, ``preset`` among them.
        n_given: How many of the initial genomes the user gave; they come first.
        first: Number of the search's first trial; claims below it came with added trials of
            another study. None until the search begins.
    """

    settings: SearchSettings
    seed: int | None
    space: GenomeSpace | None
    initial: tuple[dict[str, Any], ...]
    explicit: tuple[str, ...] = ()
    n_given: int = 0
    first: int | None = None

    @classmethod
    def make(
        cls,
        *,
        preset: Preset | None,
        strategy: SearchSettings | None,
        population_size: int | None,
        seed: int | None,
        space: GenomeSpace | None,
        initial: Sequence[Genome | Mapping[str, Any]],
    ) -> Config:
        """Check what a user asks for, and make it JSON-ready."""
        seed = None if seed is None else _whole("seed", plain_value(seed))
        if seed is not None and seed < 0:
            raise StudyError(f"seed {seed} is negative; give an integer >= 0")
        if initial and space is None:
            raise StudyError("initial genomes need a space; without one use study.enqueue_trial")
        settings, explicit = _settings(preset, strategy, population_size)
        genomes = [
            one if isinstance(one, Genome) else space.genome(one)  # type: ignore[union-attr]
            for one in initial
        ]
        if settings.informed and space is not None:
            known = {one.decode().key() for one in genomes}
            genomes += [one for one in informed_genomes(space) if one.decode().key() not in known]
        params = tuple({k: plain_value(v) for k, v in one.params.items()} for one in genomes)
        return cls(settings, seed, space, params, explicit, len(initial))

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready data."""
        return {
            "version": CONFIG_VERSION,
            "preset": self.settings.preset,
            "seed": self.seed,
            "settings": {k: v for k, v in asdict(self.settings).items() if k != "preset"},
            "space": None if self.space is None else self.space.to_dict(),
            "initial": list(self.initial),
            "first": self.first,
        }

    def kept_as(self, data: Mapping[str, Any]) -> Config:
        """Return the configuration that the study keeps, after comparison with this one.

        Raises:
            StudyError: If the study was begun with another space or by a newer version.
        """
        if data["version"] != CONFIG_VERSION:
            raise StudyError(
                f"the study's sampler configuration has version {data['version']}; this version "
                f"of biotune-optuna reads {CONFIG_VERSION}"
            )
        space = self.space
        if space is None and data["space"] is not None:
            space = GenomeSpace.from_dict(data["space"])
        if space is not None and space.to_dict() != data["space"]:
            raise StudyError(
                "the study was begun with another genome space than the sampler's; create the "
                "sampler without a space, or begin a new study"
            )
        known = {one.name for one in fields(SearchSettings)}
        # A setting that is unknown is one that an earlier version had.
        kept = _checked({k: v for k, v in data["settings"].items() if k in known})
        settings = SearchSettings(**kept | {"preset": data["preset"]})
        for name in self.explicit:
            mine, theirs = getattr(self.settings, name), getattr(settings, name)
            if mine != theirs:
                words = "%s %r; %r" if name == "preset" else "%s=%s; %s"
                _logger.warning(f"the study keeps {words} is ignored", name, theirs, mine)
        if any(one not in data["initial"] for one in self.initial[: self.n_given]):
            _logger.warning("the study keeps its initial genomes; others are ignored")
        if self.seed not in (None, data["seed"]):
            _logger.warning("the study keeps seed %s; %s is ignored", data["seed"], self.seed)
        initial = tuple(data["initial"])
        return Config(settings, data["seed"], space, initial, first=data.get("first") or 0)


def _settings(
    preset: Preset | None, strategy: SearchSettings | None, population_size: int | None
) -> tuple[SearchSettings, tuple[str, ...]]:
    """Return the settings that a user asks for, and the names of those that were given."""
    if strategy is None:
        explicit: tuple[str, ...] = () if preset is None else ("preset",)
        strategy = SearchSettings.of("default" if preset is None else preset)
    elif preset is None:
        explicit = tuple(one.name for one in fields(strategy) if one.name != "preset")
    else:
        raise StudyError(
            f"preset {preset!r} was given beside a strategy, which has its own; give one of them"
        )
    if population_size is not None:
        explicit = tuple(dict.fromkeys((*explicit, "population_size")))
        strategy = replace(strategy, population_size=population_size)
    plain = {name: plain_value(value) for name, value in asdict(strategy).items()}
    settings = SearchSettings(**_checked(plain))
    settings.check()
    return settings, explicit


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _whole(k, v) if k in _WHOLE_NUMBERS else v for k, v in settings.items()}


def _whole(name: str, value: Any) -> int:
    """Return a whole number, as which a quotient such as 60 / 10 counts too."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int):
        raise StudyError(f"{name} {value!r} is no whole number")
    return value
