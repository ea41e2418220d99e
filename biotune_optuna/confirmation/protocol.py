"""The training that is tested and exported: on another seed where it diverges on the first."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from biotune_optuna.errors import StudyError
from biotune_optuna.finetune.results import charge

if TYPE_CHECKING:
    from collections.abc import Callable

    from biotune_optuna.finetune.results import RunResult
    from biotune_optuna.study.spec import StudySpec

__all__ = ["train_finally"]

_log = logging.getLogger("biotune_optuna.study")

_TRIES = 3


def train_finally(
    spec: StudySpec, what: str, train: Callable[[int], RunResult], *, must_hold: bool = True
) -> RunResult:
    """Trains on the first of a study's final seeds on which the run does not diverge.

    Args:
        spec: Gives the seeds.
        what: What is trained and for how long, for the error.
        train: Trains on a seed, without validation images.
        must_hold: Whether a model is to come of it; if not, as for a rival that is only tested, a
            training that diverges on three seeds stands as it is.

    Returns:
        The run that holds, else the last, with the cost of those before it.

    Raises:
        StudyError: If it diverges on three seeds and must not.
    """
    earlier: RunResult | None = None
    for seed in spec.final_seeds(_TRIES):
        result = train(seed)
        if earlier is not None:
            charge(result, earlier)
        if not result.diverged:
            return result
        _log.warning("the final training (%s) diverged on seed %d", what, seed)
        earlier = result
    if not must_hold:
        return result
    raise StudyError(
        f"the final training ({what}) diverged on {_TRIES} seeds; make another recipe win by more "
        "trials, or begin a study with a lower lr or with grad_clip"
    )
