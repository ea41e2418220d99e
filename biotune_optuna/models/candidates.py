"""Which networks a ranking looks at: the short list, names and patterns, and limits."""

from __future__ import annotations

import fnmatch
import functools
import json
import re
from dataclasses import dataclass
from importlib import resources

from biotune_optuna.errors import ModelError

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(k|m|g|b|ms)?", re.IGNORECASE)
_TIMES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network that a ranking may look at.

    Attributes:
        name: timm's name.
        parameters: How many it has, with the classifier that it was pre-trained with.
        size: ``"tiny"`` (below 6 million parameters), ``"small"`` (30), ``"base"`` (100); empty
            for one that is not in the short list, as are all that follow.
        gmacs: Multiplications and additions of one image of its own size, in billions.
        input_size: That size in pixels.
        licence: Licence of the weights, as timm states it.
        source: Why it is in the list.
    """

    name: str
    parameters: int
    size: str = ""
    gmacs: float | None = None
    input_size: int | None = None
    licence: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a network may take.

    Attributes:
        parameters: Most parameters; None is no limit.
        ms: Most milliseconds an image on the device at hand; None is no limit.
    """

    parameters: float | None = None
    ms: float | None = None

    @classmethod
    def parse(cls, text: str) -> Limits:
        """Read ``"30M"``, ``"20ms"`` or ``"30M,20ms"``.

        Raises:
            ModelError: If a part is neither.
        """
        found: dict[str, float] = {}
        for part in filter(None, (one.strip() for one in text.split(","))):
            amount = _AMOUNT.fullmatch(part)
            value = float(amount[1]) if amount else 0.0
            if amount is None or value <= 0:
                raise ModelError(
                    f"limit {part!r} is neither a number of parameters, such as 30M, nor of "
                    "milliseconds an image, such as 20ms"
                )
            unit = (amount[2] or "").lower()
            if unit == "ms":
                found["ms"] = value
            else:
                found["parameters"] = value * _TIMES[unit]
        return cls(**found)

    def __str__(self) -> str:
        """Return the limits in words, empty where there are none."""
        words = [] if self.parameters is None else [f"at most {self.parameters:,.0f} parameters"]
        words += [] if self.ms is None else [f"at most {self.ms:g} ms an image"]
        return " and ".join(words)


@functools.cache
def short_list() -> tuple[Candidate, ...]:
    """Return the networks that a ranking takes by default, the smallest first."""
    text = (resources.files("biotune_optuna.models") / "candidates.json").read_text("utf-8")
    return tuple(Candidate(**row) for row in json.loads(text))


def select(among: str | None = None, limits: Limits | None = None) -> list[Candidate]:
    """Return the networks to rank, the smallest first.

    Args:
        among: Names and patterns with commas between, such as ``"convnext*,vit_small*"``; a pattern
            stands for all of timm's networks that have pre-trained weights and fit it. None is the
            short list.
        limits: What a network may take; the parameters count here.

    Raises:
        ModelError: If a name is unknown (the nearest are named), a pattern fits nothing, or the
            limits exclude all.
    """
    listed = {one.name: one for one in short_list()}
    if among is None:
        found = list(listed.values())
    else:
        words = [word.strip() for word in among.split(",")]
        names = dict.fromkeys(name for word in words if word for name in _matching(word, listed))
        found = [listed.get(name) or _counted(name) for name in names]
        if not found:
            raise ModelError(f"among {among!r} names no network; give names or patterns of timm's")
    most = None if limits is None else limits.parameters
    small = [one for one in found if most is None or one.parameters <= most]
    if not small:
        least = min(found, key=lambda one: one.parameters)
        raise ModelError(
            f"all {len(found)} networks have more than {most:,.0f} parameters; the smallest, "
            f"{least.name}, has {least.parameters:,}"
        )
    return sorted(small, key=lambda one: one.parameters)


def _matching(word: str, listed: dict[str, Candidate]) -> list[str]:
    import timm

    from biotune_optuna.models.weights import check_name

    if not any(sign in word for sign in "*?["):
        check_name(word)
        return [word]
    own = fnmatch.filter(listed, word)
    known = timm.list_models(word, pretrained=True, include_tags=False)
    found = [*own, *(name for name in known if name not in {n.partition(".")[0] for n in own})]
    if not found:
        raise ModelError(
            f"pattern {word!r} fits no network of timm's that has pre-trained weights; "
            "write convnext* or vit_small*"
        )
    return found


def _counted(name: str) -> Candidate:
    from biotune_optuna.models.weights import meta_model

    return Candidate(name, sum(p.numel() for p in meta_model(name).parameters()))
