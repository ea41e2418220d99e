"""Several networks searched side by side, by successive halving, and what is kept of it.

Neither PyTorch nor timm is loaded: reports read it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from biotune_optuna.errors import StudyError
from biotune_optuna.schema import Cost, Stored, as_mapping

LEAST: Final = 4
"""Trials of each network in the first round; fewer say too little about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raced(Cost):
    """A network that is searched beside others. The cost is that of its study so far.

    Attributes:
        name: timm's name.
        study: Name of its study.
        trials: Its finished trials when it was last compared.
        value: What the model of the landscape expected of its best recipe then; NaN before.
        fresh: Mean of that recipe's trainings on fresh seeds; NaN where there were none.
        left: The round after which it was left behind; 0 where it was not.
    """

    name: str = ""
    study: str = ""
    trials: int = 0
    value: float = math.nan
    fresh: float = math.nan
    left: int = 0

    @property
    def worth(self) -> float:
        """What it is compared by: fresh seeds where there are some, else the landscape's model."""
        known = self.fresh if math.isfinite(self.fresh) else self.value
        return known if math.isfinite(known) else -math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Race(Stored):
    """Networks that are searched side by side. One without networks is false.

    Attributes:
        rounds: Rounds that are over.
        networks: The networks, in the order in which they were named.
    """

    rounds: int = 0
    networks: tuple[Raced, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.networks)

    @property
    def alive(self) -> tuple[Raced, ...]:
        """The networks that have not been left behind."""
        return tuple(one for one in self.networks if not one.left)

    @property
    def cost(self) -> Cost:
        """What the networks that were left behind have cost."""
        return Cost.sum(one for one in self.networks if one.left)

    def after(self, found: Iterable[Raced]) -> Race:
        """Return the race after a round: the better half goes on, of three networks two.

        Args:
            found: The networks that were alive, as the round has left them.
        """
        ranked = sorted(found, key=lambda one: -one.worth)
        behind = {one.name for one in ranked[(len(ranked) + 1) // 2 :]}
        known = {one.name: one for one in ranked}
        return Race(
            rounds=self.rounds + 1,
            networks=tuple(
                dataclasses.replace(
                    known.get(one.name, one),
                    left=self.rounds + 1 if one.name in behind else one.left,
                )
                for one in self.networks
            ),
        )

    @classmethod
    def of(cls, stored: object) -> Race:
        """Read what a study stores; an empty one where it stores none."""
        data = as_mapping(stored)
        rows = [one for one in data.get("networks") or () if isinstance(one, Mapping)]
        return cls.from_dict({**data, "networks": tuple(map(Raced.from_dict, rows))})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data: numbers that are not finite are left out."""
        return {
            "rounds": self.rounds,
            "networks": [
                {
                    key: value
                    for key, value in one.to_dict().items()
                    if not isinstance(value, float) or math.isfinite(value)
                }
                for one in self.networks
            ],
        }


def quotas(total: int, networks: int) -> list[int]:
    """Return how many trials each network that is in the race has after each round.

    Successive halving (Jamieson and Talwalkar, 2016): each round has the same share of the trials,
    and the better half of the networks goes on. The last round is of one network alone; it has what
    the others have not taken.

    Args:
        total: Trials of all networks together.
        networks: How many there are, at least two.

    Raises:
        StudyError: If the first round would have fewer than `LEAST` trials for a network.
    """
    alive = [networks]
    while alive[-1] > 1:
        alive.append((alive[-1] + 1) // 2)
    least = LEAST * len(alive) * networks
    if total < least:
        raise StudyError(
            f"{total} trials are too few for {networks} networks; give at least {least}"
        )
    found, done, taken = [], 0, 0
    for now, then in itertools.pairwise(alive):
        done += total // (len(alive) * now)
        taken += (now - then) * done
        found.append(done)
    return [*found, total - taken]
