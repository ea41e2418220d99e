"""``model="auto"``: the network of a study, chosen on its training and validation images."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from biotune_optuna.data.sources.open import open_images
from biotune_optuna.models.candidates import Limits, select
from biotune_optuna.recipe import Recipe
from biotune_optuna.schema import Cost, Stored, as_mapping
from biotune_optuna.study.ranking import Ranked, front, rank_models
from biotune_optuna.study.setup import prepare

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource
    from biotune_optuna.finetune.results import EpochRecord, RunResult
    from biotune_optuna.study.setup import Setup
    from biotune_optuna.study.spec import StudySpec

_log = logging.getLogger("biotune_optuna.study")

AUTO: Final = "auto"
TRIED: Final = 3
"""How many networks are trained, of those that the ranking puts first."""


def is_auto(model: str) -> bool:
    """Whether a model's name leaves the choice open: ``auto``, ``auto:30M``, ``auto:20ms``."""
    return model.partition(":")[0] == AUTO


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


def choose_model(
    spec: StudySpec,
    *,
    source: ImageSource | None = None,
    device: str = "auto",
    cache_dir: str | Path | None = None,
    tell: Callable[[str], object] | None = None,
    checkpoint: Callable[[], None] | None = None,
) -> Choice:
    """Choose a network: ranked by a linear probe, then the best few trained.

    The first `TRIED` of the ranking, those on its front of score and time before all others, get
    one training with the lower half of the blocks frozen and one of all blocks, at the middle of
    the searched rates; the better of both is trained again on another seed. The best mean wins.
    Test images are not looked at.

    Args:
        spec: The study, whose ``model`` is ``"auto"``, perhaps with limits: ``"auto:30M,20ms"``.
        source: Images in memory; None opens ``spec.data``.
        device: Where to compute.
        cache_dir: Folder of decoded images.
        tell: Told in a line what is found.
        checkpoint: Called after each epoch; raises to stop.

    Raises:
        ModelError: If the limits cannot be read or exclude all, or no network can be ranked.
    """
    say = tell or _log.info
    limits = Limits.parse(spec.model.partition(":")[2])
    candidates = select(None, limits)
    if source is None:
        source = open_images(
            spec.data, group_regex=spec.group_regex, skip_bad_images=spec.skip_bad_images
        )
    where: dict[str, Any] = {"source": source, "device": device, "cache_dir": cache_dir}
    ranked = rank_models(
        spec, candidates, max_ms=limits.ms, tell=lambda one: say(line(one)), **where
    )
    able = [one for one in ranked if not one.why_not]
    first = front(ranked)
    names = [one.name for one in (*first, *(one for one in able if one not in first))][:TRIED]
    tried: list[Tried] = []
    if len(names) > 1:
        for name in names:
            setup = prepare(dataclasses.replace(spec, model=name), **where)
            tried.append(_try(setup, checkpoint))
            one = tried[-1]
            say(f"{name}: half frozen {one.half:.3f}, full {one.full:.3f}, again {one.again:.3f}")
    chosen = max(tried, key=lambda one: one.value).name if tried else names[0]
    why = "it is the only network that could be ranked"
    if tried:
        why = f"it has the best mean of two trainings among the {len(tried)} best ranked"
        why += f" of {len(able)} networks"
    say(f"Model: {chosen}; {why}.")
    return Choice(
        asked=spec.model,
        chosen=chosen,
        why=why,
        metric=spec.train.metric,
        ranked=tuple(ranked),
        tried=tuple(tried),
    )


def line(one: Ranked) -> str:
    """Return a ranked network in one line."""
    if one.why_not:
        return f"{one.name}: left out, {one.why_not}"
    return (
        f"{one.name}: {one.score:.3f} ({one.low:.3f} to {one.high:.3f}), "
        f"{one.parameters / 1e6:.1f} million parameters, {one.ms:.1f} ms an image"
    )


def _try(setup: Setup, checkpoint: Callable[[], None] | None) -> Tried:
    """Train half frozen and full, and the better of both again."""
    spec, blocks = setup.spec, setup.blocks
    rates = {"lr": setup.space.base_lr, "weight_decay": setup.space.base_weight_decay}
    frozen = len(blocks) // 2
    recipes = {
        "half": Recipe.from_multipliers(
            blocks, [0.0] * frozen + [1.0] * (len(blocks) - frozen), **rates
        ),
        "full": Recipe.full(blocks, **rates),
    }
    made: list[RunResult] = []

    def score(recipe: Recipe, repeat: int) -> float:
        seed = spec.search_runs(repeat=repeat)[0].seed
        run = setup.trainer.fit(recipe, *setup.splits.run(None), seed=seed, on_epoch=on_epoch)
        made.append(run)
        return run.score

    def on_epoch(_record: EpochRecord) -> None:
        if checkpoint:
            checkpoint()

    scores = {name: score(recipe, 0) for name, recipe in recipes.items()}
    best = max(scores, key=lambda name: scores[name])
    again = score(recipes[best], 1)
    return Tried(
        name=spec.model,
        half=scores["half"],
        full=scores["full"],
        again=again,
        value=float(np.mean([scores[best], again])),
        forward=sum(run.images_forward for run in made),
        backward=sum(run.images_backward for run in made),
        seconds=round(sum(run.seconds for run in made), 3),
    )


def same_request(stored: Mapping[str, Any] | None, asked: str) -> bool:
    """Whether a stored study's network was chosen for the same request.

    Args:
        stored: What a study stores under its spec's key.
        asked: The model as it is asked for now.
    """
    return stored is not None and Choice.of(stored.get("choice")).asked == asked

