"""``model="auto"``: the network of a study, chosen on its training and validation images."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from biotune_optuna.data.sources.open import open_images
from biotune_optuna.models.candidates import Limits, select
from biotune_optuna.recipe import Recipe
from biotune_optuna.study.choice import Choice, Tried, front, line
from biotune_optuna.study.ranking import rank_models
from biotune_optuna.study.setup import prepare

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource
    from biotune_optuna.finetune.results import EpochRecord, RunResult
    from biotune_optuna.study.setup import Setup
    from biotune_optuna.study.spec import StudySpec

_log = logging.getLogger("biotune_optuna.study")

TRIED: Final = 3
"""How many networks are trained, of those that the ranking puts first."""


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


def _try(setup: Setup, checkpoint: Callable[[], None] | None) -> Tried:
    """Train half frozen and full, and the better of both again."""
    spec, blocks = setup.spec, setup.blocks
    rates: dict[str, Any] = {
        "lr": setup.space.base_lr,
        "weight_decay": setup.space.base_weight_decay,
    }
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
