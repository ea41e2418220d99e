"""Networks ranked by what a linear probe of each makes of the same images."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from biotune_optuna.data.sources.open import open_images
from biotune_optuna.errors import BioTuneError, ModelError
from biotune_optuna.models.hub import is_at_hand
from biotune_optuna.models.states import one_line
from biotune_optuna.study.choice import Ranked
from biotune_optuna.study.probe import linear_probe
from biotune_optuna.study.setup import prepare

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource
    from biotune_optuna.models.candidates import Candidate
    from biotune_optuna.study.setup import Setup
    from biotune_optuna.study.spec import StudySpec

_log = logging.getLogger("biotune_optuna.study")

_NO_HUB = "the hub cannot be reached, and its weights are not at hand"
_OFFLINE = 2  # networks in a row whose weights cannot be fetched: there is no hub
_TIMED, _TIMES = 16, 3  # images, and how often


def rank_models(
    spec: StudySpec,
    candidates: Sequence[Candidate],
    *,
    max_ms: float | None = None,
    source: ImageSource | None = None,
    device: str = "auto",
    cache_dir: str | Path | None = None,
    known: Mapping[str, Ranked] | None = None,
    tell: Callable[[Ranked], object] | None = None,
) -> list[Ranked]:
    """Fit a linear probe on the training images with each network's frozen features.

    A network that cannot be loaded, or is too slow, is named and passed over. Where the weights of
    two in a row cannot be fetched, only those that are at hand are looked at from then on.

    Args:
        spec: The study that the network is for; its ``model`` is not looked at.
        candidates: The networks.
        max_ms: Most milliseconds an image.
        source: Images in memory; None opens ``spec.data``.
        device: Where to compute.
        cache_dir: Folder of decoded images.
        known: Networks that were ranked before, by name; they are taken over.
        tell: Told of each network as it ends.

    Returns:
        The networks, the best score first, then those that are not ranked.

    Raises:
        DataError: If the images cannot be used.
        ModelError: If no network can be ranked.
    """
    if source is None:
        source = open_images(
            spec.data, group_regex=spec.group_regex, skip_bad_images=spec.skip_bad_images
        )
    found: list[Ranked] = []
    failed = 0
    for candidate in candidates:
        one = (known or {}).get(candidate.name)
        if one is None:
            own = dataclasses.replace(spec, model=candidate.name)
            at_hand = is_at_hand(candidate.name, spec.weights)
            if failed >= _OFFLINE and not at_hand:
                one = Ranked(name=candidate.name, why_not=_NO_HUB)
            else:
                one, loaded = _ranked(own, source, device, cache_dir)
                if not at_hand:
                    failed = 0 if loaded else failed + 1
        if not one.why_not and max_ms is not None and one.ms > max_ms:
            one = dataclasses.replace(one, why_not=f"slower than {max_ms:g} ms an image")
        found.append(one)
        if tell:
            tell(one)
    if all(one.why_not for one in found):
        first = found[0]
        raise ModelError(
            f"none of {len(found)} networks can be ranked; the first, {first.name}: {first.why_not}"
        )
    return sorted(found, key=lambda one: (1, 0.0) if one.why_not else (0, -one.score))


def _ranked(
    spec: StudySpec, source: ImageSource, device: str, cache_dir: str | Path | None
) -> tuple[Ranked, bool]:
    """Return a network's rank, and whether its weights could be had."""
    start = time.perf_counter()
    try:
        setup = prepare(spec, source=source, device=device, cache_dir=cache_dir)
    except ModelError as error:
        return Ranked(name=spec.model, why_not=str(error).partition("; without the hub")[0]), False
    except RuntimeError as error:  # memory, or a network that does not run here
        return Ranked(name=spec.model, why_not=one_line(error)), True
    try:
        probe = linear_probe(setup)
        score, low, high = probe.folds if len(probe.fitted.judged) else probe.validation
        ms = _milliseconds(setup)
    except (BioTuneError, RuntimeError) as error:
        return Ranked(name=spec.model, why_not=one_line(error)), True
    tensors = setup.trainer.model.state_dict().values()
    one = Ranked(
        name=spec.model,
        score=score,
        low=low,
        high=high,
        parameters=sum(p.numel() for p in setup.trainer.model.parameters()),
        ms=round(ms, 3),
        megabytes=round(sum(t.numel() * t.element_size() for t in tensors) / 1e6, 1),
        weights=setup.loaded.weights,
        forward=probe.cost.forward + (_TIMES + 1) * _TIMED,
        seconds=round(time.perf_counter() - start, 3),
    )
    return one, True


def _milliseconds(setup: Setup) -> float:
    """Time some images, forward, several times; the least counts, as it was disturbed least."""
    few = np.resize(setup.splits.train, _TIMED)
    setup.trainer.predict(few)
    seconds = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        setup.trainer.predict(few)
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds) / _TIMED
