"""What is compared: tasks, contenders, repeats."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from biotune_optuna.compare.rows import BUDGET_SUFFIX
from biotune_optuna.confirmation.plan import check_members
from biotune_optuna.data.sources.named import NAMED, split_root
from biotune_optuna.effort import NORMAL
from biotune_optuna.errors import ModelError, StudyError
from biotune_optuna.jsonable import plain_value
from biotune_optuna.methods.registry import methods
from biotune_optuna.study.spec import StudySpec, default_name

SEARCHERS: Final = ("random", "tpe", "cma-es", "gp", "nsga-ii")
"""Optuna's own samplers, on the genome space of BioTune."""

_OF_THE_SEARCH: Final = (
    *("preset", "population_size", "lr", "weight_decay", "head_trains", "threshold", "variant"),
    *("n_seeds", "n_folds", "scheme", "racing"),
)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to come to a tuned model.

    Attributes:
        name: What the tables call it.
        kind: ``"search"`` (genomes), ``"rival"`` (its five settings) or ``"budget"`` (settings
            searched with the image passes that ``biotune`` took).
        method: The searcher or the method.
        spec: Fields of the study's spec that differ from the task's: those of the search alone.
        sampler: Fields of `biotune_optuna.SearchSettings` that differ from the preset's.
        trials: Trials of the search, None for the comparison's.
        fitted: Whether its head is fitted, as the linear probe's is: older versions trained a
            method of that name by gradient steps.
    """

    name: str
    kind: Literal["search", "rival", "budget"]
    method: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    sampler: Mapping[str, Any] = field(default_factory=dict)
    trials: int | None = None
    fitted: bool = False

    def __post_init__(self) -> None:
        for name in self.spec:
            if name not in _OF_THE_SEARCH:
                raise StudyError(
                    f"{name} cannot differ between methods of a task; what can is "
                    f"{', '.join(_OF_THE_SEARCH)}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the contender as JSON-ready data, without its name."""
        data = dataclasses.asdict(self)
        left_out = ("name",) if self.fitted else ("name", "fitted")
        return {key: value for key, value in data.items() if key not in left_out}


def contender(name: str) -> Contender:
    """Return the contender of a name: ``biotune``, a searcher, a method, or ``METHOD@budget``.

    Raises:
        StudyError: If there is none of that name.
    """
    method = name.removesuffix(BUDGET_SUFFIX)
    if name == "cma-es" and importlib.util.find_spec("cmaes") is None:
        raise StudyError("method 'cma-es' needs the package cmaes: pip install cmaes")
    if name in ("biotune", *SEARCHERS):
        return Contender(name=name, kind="search", method=name)
    rivals = methods()
    if method not in rivals:
        known = ", ".join(("biotune", *rivals, *SEARCHERS))
        raise StudyError(f"method {name!r} is not one of {known}")
    try:
        rivals[method].check_package()
    except ModelError as error:
        raise StudyError(f"{error}, or name the other methods") from None
    if method != name and not rivals[method].is_tuned:
        raise StudyError(f"method {name!r} has nothing to tune by a budget; name {method}")
    kind: Literal["rival", "budget"] = "rival" if method == name else "budget"
    return Contender(name=name, kind=kind, method=method, fitted=not rivals[method].is_tuned)


def default_methods() -> tuple[str, ...]:
    """BioTune and every rival that can run here."""
    return ("biotune", *(name for name, method in methods().items() if method.can_run))


def data_name(data: str) -> str:
    """Return what tables call a data set: its name, or the name of its folder or file."""
    name, root = split_root(data)
    if root is not None and name in NAMED:
        return name
    return default_name("-", data).rstrip("-")


@dataclass(frozen=True)
class Cell:
    """One contender in one repeat of one task."""

    task: str
    repeat: int
    contender: Contender

    @property
    def key(self) -> str:
        """Name within the task, as ``"3/full"``."""
        return f"{self.repeat}/{self.contender.name}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A matrix of tasks, contenders and repeats.

    Attributes:
        tasks: A spec for each pair of model and data; repeat r has the spec's seed plus r. Where
            the model is ``"auto"``, each repeat chooses a network on its own training and
            validation images; all methods have that one, and are charged for the choice.
        contenders: Who competes; names, or `Contender` objects.
        repeats: Repeats of each task: fresh splits, or seeds where the data have a test part.
        trials: Trials of each search.
        top_k: Recipes of a search, or settings of a budget's, that are trained again.
        runs: Fresh seeds on which they, and each rival's best setting, are trained again.
        members: How many times what each method has chosen is trained finally, the same for all;
            with several, all together are tested beside the first alone.
        as_tune: Whether a search is confirmed as ``biotune tune`` confirms it: full fine-tuning and
            the probe are tuned beside its recipes, each of them may win, and what the search has
            trained is not trained again. Default no: only recipes of the search may win.
        equal_budget: Whether rivals for which `Method.equal_budget` says so take part again, with
            the total budget of ``biotune``.
        name: Name of the comparison in its storage.
    """

    tasks: tuple[StudySpec, ...]
    contenders: tuple[str | Contender, ...] = field(default_factory=default_methods)
    repeats: int = 10
    trials: int = NORMAL.trials
    top_k: int = 3
    runs: int = 3
    members: int = 1
    as_tune: bool = False
    equal_budget: bool = True
    name: str = "compare"

    def __post_init__(self) -> None:
        for name in ("repeats", "trials", "top_k", "runs"):
            object.__setattr__(self, name, plain_value(getattr(self, name)))
            if getattr(self, name) < 1:
                raise StudyError(f"{name} {getattr(self, name)} is too small; give at least 1")
        object.__setattr__(self, "members", plain_value(self.members))
        check_members(self.members)
        if not self.tasks:
            raise StudyError("a comparison needs a task: a model and data")
        if not self.contenders:
            raise StudyError("a comparison needs a method, such as biotune or full")
        tasks = [self.task_name(spec) for spec in self.tasks]
        names = [one.name for one in self.everyone]
        for what, given, advice in (
            ("task", tasks, "rename one of the folders, or compare them in two comparisons"),
            ("method", names, "give each its own name"),
        ):
            for name in given:
                if given.count(name) > 1:
                    raise StudyError(f"{what} {name!r} is named twice; {advice}")
        if "/" in self.name or self.name in ("", ".", ".."):
            raise StudyError(f"comparison name {self.name!r} must be a word without '/'")
        if any(one.kind == "budget" for one in self.everyone) and "biotune" not in names:
            raise StudyError("an equal budget is that of biotune; name it among the methods")

    @property
    def everyone(self) -> tuple[Contender, ...]:
        """All contenders; those with an equal budget last."""
        named = [contender(one) if isinstance(one, str) else one for one in self.contenders]
        if self.equal_budget and any(one.name == "biotune" for one in named):
            known = [one.name for one in named]
            rivals = [one.method for one in named if one.kind == "rival"]
            equal = [m.name for m in methods().values() if m.equal_budget and m.name in rivals]
            wanted = [f"{name}{BUDGET_SUFFIX}" for name in equal]
            named += [contender(name) for name in wanted if name not in known]
        return tuple(named)

    @staticmethod
    def task_name(spec: StudySpec) -> str:
        """Name of a task: its data and model."""
        return default_name(spec.model, data_name(spec.data))

    def cells(self) -> list[Cell]:
        """All cells in their order: a repeat of every task, then the next.

        So that a comparison which is stopped says as much of each task.
        """
        everyone = self.everyone
        return [
            Cell(self.task_name(spec), repeat, one)
            for repeat in range(self.repeats)
            for spec in self.tasks
            for one in everyone
        ]

    def identity(self, spec: StudySpec) -> dict[str, Any]:
        """Return what must agree for a task to go on: all that its cells have in common."""
        common = {name: getattr(self, name) for name in ("trials", "top_k", "runs")}
        more: dict[str, Any] = {} if self.members == 1 else {"members": self.members}
        if self.as_tune:
            more["as_tune"] = True
        return {"spec": spec.to_dict(), **common, **more}
