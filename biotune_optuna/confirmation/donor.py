"""A search that begins with what an earlier study of the same network found."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import optuna

from biotune_optuna.confirmation.record import Confirmation
from biotune_optuna.errors import StudyError
from biotune_optuna.genome import GenomeSpace
from biotune_optuna.sampler.claims import study_config
from biotune_optuna.sampler.ranking import rank_finished
from biotune_optuna.schema import DONOR_KEY, LIKE_KEY, as_mapping
from biotune_optuna.storage.open import keep_user_attr, open_storage
from biotune_optuna.study.board import study_names
from biotune_optuna.study.study import read_spec

if TYPE_CHECKING:
    from biotune_optuna.study.study import TuningStudy

_GIVEN = 3
"""Recipes that a donor gives: all that one that does not fit can cost."""


class _Donor(NamedTuple):
    study: optuna.Study
    space: GenomeSpace


def begin_like(study: TuningStudy, like: str | None = None) -> str:
    """Enqueue the best recipes of an earlier study, once, before the first trial.

    These are its confirmed recipe and the best others by the model of the landscape, three in all.
    Their trials have the role ``"donated"`` and name study and trial that they come from. What was
    taken is kept in the study (`biotune_optuna.schema.LIKE_KEY`).

    Args:
        study: The study that begins; one with trials, or that has been given recipes, is left as
            it is.
        like: ``"STUDY"`` in the same database or ``"STUDY@URL"`` in another. None looks for the
            study that was confirmed last in the same database, over the same model and blocks.

    Returns:
        A sentence that says what was taken; "" where nothing was.

    Raises:
        StudyError: If the study named does not exist or has other blocks.
    """
    own = study.study
    if LIKE_KEY in own.user_attrs or own.get_trials(deepcopy=False):
        return ""
    donor = _find(study) if like is None else _named(study, like)
    if donor is None:
        return ""
    numbers = _best_of(donor)
    record = {"study": donor.study.study_name, "trials": numbers}
    if not numbers or keep_user_attr(own, LIKE_KEY, record) != record:
        return ""  # another worker was first
    for number in numbers:
        recipe = donor.space.genome(donor.study.trials[number].params).decode()
        own.enqueue_trial(
            study.setup.space.encode(recipe).params,
            user_attrs={DONOR_KEY: f"{donor.study.study_name}, trial {number}"},
        )
    trials = ", ".join(map(str, numbers))
    return (
        f"It begins with the best recipes of study {donor.study.study_name!r} (trials {trials}); "
        "--no-like begins without them."
    )


def _best_of(donor: _Donor) -> list[int]:
    found = Confirmation.of(donor.study.user_attrs)
    ranked = rank_finished(donor.study, donor.space)
    first = [found.winner.trial] if found and found.winner.trial in ranked else []
    return list(dict.fromkeys([*first, *ranked]))[:_GIVEN]


def _find(study: TuningStudy) -> _Donor | None:
    """Return the study of the same database that was confirmed last and fits."""
    summaries = optuna.get_all_study_summaries(study.study._storage, include_best_trial=False)
    confirmed = [
        (Confirmation.of(one.user_attrs).time, one.study_name)
        for one in summaries
        if one.study_name != study.study.study_name and Confirmation.of(one.user_attrs)
    ]
    for _, name in sorted(confirmed, reverse=True):
        donor = _open(study.study._storage, name)
        if donor is not None and _fits(study, donor):
            return donor
    return None


def _named(study: TuningStudy, like: str) -> _Donor:
    name, _, url = like.partition("@")
    storage = open_storage(url, read_only=True) if url else study.study._storage
    names = study_names(storage)
    if name not in names:
        raise StudyError(
            f"there is no study {name!r} to begin like; that database has "
            f"{', '.join(map(repr, names)) or 'none'}"
        )
    donor = _open(storage, name)
    if donor is None or not _same_blocks(study, donor):
        raise StudyError(
            f"study {name!r} has other blocks than {study.setup.spec.model}: its recipes do not "
            "fit; name a study of the same network"
        )
    return donor


def _open(storage: optuna.storages.BaseStorage, name: str) -> _Donor | None:
    study = optuna.load_study(study_name=name, storage=storage)
    space = as_mapping((study_config(study) or {}).get("space"))
    return _Donor(study, GenomeSpace.from_dict(space)) if space else None


def _fits(study: TuningStudy, donor: _Donor) -> bool:
    try:
        spec = read_spec(donor.study)
    except StudyError:
        return False
    model = study.setup.spec.model
    return spec is not None and spec.model == model and _same_blocks(study, donor)


def _same_blocks(study: TuningStudy, donor: _Donor) -> bool:
    names = [block.name for block in study.setup.space.blocks]
    return [block.name for block in donor.space.blocks] == names
