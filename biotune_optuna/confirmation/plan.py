"""How much evidence a confirmation gathers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from biotune_optuna.data.views import VIEWS, is_views
from biotune_optuna.errors import StudyError
from biotune_optuna.jsonable import make_plain
from biotune_optuna.methods.registry import methods
from biotune_optuna.study.spec import at_least

MEMBERS: Final = 5
"""How many times the winner is trained finally where nobody says otherwise."""

_MOST_MEMBERS = 50


@dataclass(frozen=True, kw_only=True)
class ConfirmPlan:
    """How much evidence is gathered.

    Attributes:
        top_k: Recipes of the search that are trained again, default 3.
        n_runs: Fresh seeds for each recipe and rival, default 3.
        rates: Base rates to choose from for each rival that has one, by one run each on the
            search's first seed; with ``reuse`` fewer are trained.
        more_rates: How many further ones a rival gets at most while its lowest or highest rate is
            its best, see `further_rate`; default 3.
        from_search: Whether the model is made of the search's own models, see
            `biotune_optuna.confirmation.from_search`: ``members`` of those that it has kept are
            added up, and nothing is trained. Default False. All but ``members`` and ``mistakes``
            then means nothing.
        reuse: Whether what the search has trained is used: its model says which rates of a rival
            are worth a training (`biotune_optuna.confirmation.known.ModelledRates`), and a recipe
            that it evaluated again has its first run. Default True; in effect once the search has
            8 finished trials, and trains on all training images (no folds).
        mistakes: Test images listed as most confidently wrong.
        rivals: Trained beside the recipes, and a possible winner: ``"full"`` and
            ``"linear-probe"`` (default), or any method that is no more than its recipe, such as
            ``"linear-probe-sgd"``.
        prefer: ``"best"`` (default): the best mean wins, and of equal ones the cheapest.
            ``"cheap"``: the cheapest within the tolerance of the best mean wins.
        tolerance: That tolerance, in standard errors of the best mean, default 1.
        members: How many times the winner is trained finally, on different seeds; the model is
            all of them, and predicts the mean of their probabilities. Default 5; 1 to 50.
        views: How each image is shown to the final model besides, see `biotune_optuna.data.views`:
            ``"mirror"``, where the study allows mirrored images, and ``"zoom"``. It predicts the
            mean over all views, at so many times the cost. Default none.
        must_hold: Whether a winner whose final training diverges on three seeds is an error
            (default), for a model is wanted, or is tested as it is, as a rival is.
    """

    top_k: int = 3
    n_runs: int = 3
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    more_rates: int = 3
    mistakes: int = 12
    rivals: tuple[str, ...] = ("full", "linear-probe")
    prefer: Literal["best", "cheap"] = "best"
    tolerance: float = 1.0
    members: int = MEMBERS
    views: tuple[str, ...] = ()
    must_hold: bool = True
    reuse: bool = True
    from_search: bool = False

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("top_k", "n_runs"):
            at_least(name, getattr(self, name), 1)
        if self.more_rates < 0:
            raise StudyError(f"more_rates {self.more_rates} is negative; give 0 or more")
        known = [name for name, method in methods().items() if method.in_confirmation]
        for name in self.rivals:
            if name not in known:
                raise StudyError(f"rival {name!r} is unknown here; choose {' or '.join(known)}")
        if self.tolerance < 0:
            raise StudyError(f"tolerance {self.tolerance} is negative; give 0 or more")
        if self.prefer not in ("best", "cheap"):
            raise StudyError(f"prefer {self.prefer!r} is unknown; choose best or cheap")
        check_members(self.members)
        if not is_views(self.views):
            said = ",".join(map(str, self.views)) or self.views
            raise StudyError(f"views {said!r} are unknown; choose {' or '.join(VIEWS)}, or both")
        if self.rivals and not self.rates:
            raise StudyError("the rivals need at least one base rate to try")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned, perhaps in another version."""
        known = {one.name for one in dataclasses.fields(cls)}
        found: dict[str, Any] = {key: value for key, value in data.items() if key in known}
        lists = {key: tuple(value) for key, value in found.items() if isinstance(value, list)}
        return cls(**found | lists)

    def basis(self, trials: int) -> dict[str, Any]:
        """Return what a confirmation stands on as JSON-ready data; one with an equal basis holds.

        Args:
            trials: How many trials had finished.
        """
        views = {"views": list(self.views)} if self.views else {}
        if self.from_search:
            return {"trials": trials, "from_search": True, "members": self.members, **views}
        basis: dict[str, Any] = {
            "trials": trials,
            "top_k": self.top_k,
            "n_runs": self.n_runs,
            "rates": list(self.rates),
            **views,
        }
        if self.more_rates:
            basis["more_rates"] = self.more_rates
        if self.members > 1:
            basis["members"] = self.members
        if self.reuse:
            basis["reuse"] = True
        if self.prefer == "best":  # earlier versions knew the other one only
            basis["prefer"] = self.prefer
        usual = ConfirmPlan()
        if (self.rivals, self.tolerance) != (usual.rivals, usual.tolerance):
            basis |= {"rivals": list(self.rivals), "tolerance": self.tolerance}
        return basis

    def holds(self, basis: Mapping[str, Any], trials: int) -> bool:
        """Whether a confirmation has what this plan asks for: the same evidence, or more.

        Args:
            basis: What it stands on.
            trials: How many trials have finished now.
        """
        wanted = self.basis(trials)
        # One that has trained everything anew, as earlier versions did, has more.
        return basis in (wanted, {key: wanted[key] for key in wanted if key != "reuse"})


def check_views(views: Sequence[str], *, mirror: bool) -> None:
    """Refuse a mirrored view of images that are others when they are mirrored.

    Args:
        views: The views.
        mirror: Whether a mirrored image is as good as the image, as a study says.

    Raises:
        StudyError: If they are not to be mirrored.
    """
    if "mirror" in views and not mirror:
        raise StudyError(
            "the view 'mirror' needs a study in which a mirrored image is as good as the image: "
            "give --mirror (StudySpec(mirror=True)), or leave the view out"
        )


def check_members(members: object) -> None:
    """Refuse a number of members that is none.

    Args:
        members: The number.

    Raises:
        StudyError: If it is no whole number from 1 to 50.
    """
    whole = isinstance(members, int) and not isinstance(members, bool)
    if not whole or not 1 <= members <= _MOST_MEMBERS:  # type: ignore[operator]
        raise StudyError(f"members {members!r} is no whole number from 1 to {_MOST_MEMBERS}")


def rates_around(rates: Sequence[float], more: int) -> tuple[float, ...]:
    """Return rates and as many further ones below and above, as `further_rate` would take them.

    Args:
        rates: The rates, at least one.
        more: How many further ones to either side.
    """
    found = sorted(rates)
    for _ in range(more):
        found = [_neighbour(found[0], -1), *found, _neighbour(found[-1], 1)]
    return tuple(found)


def further_rate(scores: Mapping[float, float], *, worst: float = 0.0) -> float | None:
    """Return the rate to try next where those tried may not reach the best one.

    A network without normalisation layers, for instance, can need a tenth of what others do.

    Args:
        scores: The score of each rate tried, at most 1, higher is better.
        worst: The score of a run that diverged.

    Returns:
        The next lower of …, 1e-4, 3e-4, 1e-3, …, about a third, where the lowest is better than
        all others, or where all that did not diverge score the same and less than 1, as dead
        networks do; the next higher where the highest is better than all others; else None.
    """
    low, *others = (scores[rate] for rate in sorted(scores))
    if not others:
        return None
    dead = low < 1 and set(others) <= {low, worst}
    if low > max(others) or dead:
        return _neighbour(min(scores), -1)
    *others, high = low, *others
    return _neighbour(max(scores), 1) if high > max(others) else None


def _neighbour(rate: float, step: int) -> float:
    """Return the next rate of 1, 3, 10, 30, … times a power of ten, below or above."""
    half_decades = round(2 * math.log10(rate)) + step
    return float(f"{10 ** (half_decades / 2):.0e}")
