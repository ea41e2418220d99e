"""What is kept of a choice among networks. Neither PyTorch nor timm is loaded: reports read it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from biotune_optuna.schema import Cost, Stored, as_mapping


def is_auto(model: str) -> bool:
    """Whether a model's name leaves the choice open: ``auto``, ``auto:30M``, ``auto:20ms``."""
    return model.partition(":")[0] == "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked(Cost):
    """One network, and what a linear probe made of it.

    Attributes:
        name: timm's name.
        score: The metric on training images, by folds that had not seen them; on the validation
            images where there are too few for folds. NaN where the network failed.
        low: Lower end of the 95 % interval of the score.
        high: Upper end.
        parameters: Parameters, with a classifier of these classes.
        ms: Milliseconds an image, forward, on this device.
        megabytes: Size of the weights.
        weights: Where they came from.
        why_not: Why the network is not ranked; empty where it is.
    """

    name: str = ""
    score: float = math.nan
    low: float = math.nan
    high: float = math.nan
    parameters: int = 0
    ms: float = math.nan
    megabytes: float = 0.0
    weights: str = ""
    why_not: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried(Cost):
    """A network that was trained to see whether it is the one.

    Attributes:
        name: timm's name.
        half: Validation score with the lower half of the blocks frozen.
        full: With all blocks trained.
        again: Of the better of the two, on another seed.
        value: Mean of the better one's two scores.
    """

    name: str = ""
    half: float = math.nan
    full: float = math.nan
    again: float = math.nan
    value: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Stored):
    """Which network was chosen for a study, and on what evidence.

    Attributes:
        asked: What was asked for: ``"auto"`` and limits.
        chosen: The network; empty where the user named it.
        why: In words.
        metric: Metric of all scores.
        ranked: What the ranking found.
        tried: The networks that were trained; none where there was but one to take.
    """

    asked: str = ""
    chosen: str = ""
    why: str = ""
    metric: str = ""
    ranked: tuple[Ranked, ...] = ()
    tried: tuple[Tried, ...] = ()

    @property
    def cost(self) -> Cost:
        """Image passes and seconds of ranking and trainings."""
        return Cost.sum([*self.ranked, *self.tried])

    @classmethod
    def of(cls, stored: object) -> Choice:
        """Read what a study stores; an empty one where it stores none."""
        data = as_mapping(stored)
        rows = {
            "ranked": tuple(Ranked.from_dict(one) for one in _mappings(data.get("ranked"))),
            "tried": tuple(Tried.from_dict(one) for one in _mappings(data.get("tried"))),
        }
        return cls.from_dict({**data, **rows})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data: numbers that are not finite are left out."""
        data = super(Choice, self).to_dict()  # slots: a class of its own
        for name in ("ranked", "tried"):
            data[name] = [
                {key: v for key, v in one.items() if not isinstance(v, float) or math.isfinite(v)}
                for one in data[name]
            ]
        return data


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def front(ranked: Sequence[Ranked]) -> list[Ranked]:
    """Return the networks that no other beats in as little time, the best score first."""
    able = [one for one in ranked if not one.why_not]
    best: list[Ranked] = []
    for one in sorted(able, key=lambda one: (one.ms, -one.score)):
        if not best or one.score > best[-1].score:
            best.append(one)
    return best[::-1]


def line(one: Ranked) -> str:
    """Return a ranked network in one line."""
    if one.why_not:
        return f"{one.name}: left out, {one.why_not}"
    return (
        f"{one.name}: {one.score:.3f} ({one.low:.3f} to {one.high:.3f}), "
        f"{one.parameters / 1e6:.1f} million parameters, {one.ms:.1f} ms an image"
    )
