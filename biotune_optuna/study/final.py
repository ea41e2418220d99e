"""The training that is tested and exported: on another seed where it diverges on the first."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from biotune_optuna.errors import StudyError
from biotune_optuna.finetune.rivals import charge

if TYPE_CHECKING:
    from collections.abc import Callable

    from biotune_optuna.finetune.results import RunResult
    from biotune_optuna.study.spec import StudySpec

__all__ = ["train_finally"]

_log = logging.getLogger("biotune_optuna.study")

_TRIES = 3


def train_finally(spec: StudySpec, what: str, train: Callable[[int], RunResult]) -> RunResult:
    """Trains on the first of a study's final seeds on which the run does not diverge.

    Args:
        spec: Gives the seeds.
        what: What is trained and for how long, for the error.
        train: Trains on a seed, without validation images.

    Returns:
        The run that holds, with the cost of those before it.

    Raises:
        StudyError: If it diverges on three seeds.
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
    raise StudyError(
        f"the final training ({what}) diverged on {_TRIES} seeds; make another recipe win by more "
        "trials, or begin a study with a lower lr or with grad_clip"
    )
