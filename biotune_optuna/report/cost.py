"""Where a study's time went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.trial import TrialState

from biotune_optuna.report.view import seconds
from biotune_optuna.schema import ENDED_KEY

if TYPE_CHECKING:
    from biotune_optuna.report.view import StudyView


def time_spent(view: StudyView) -> dict[str, float]:
    """Return seconds per kind of work, summed over workers; kinds that took no time are absent.

    What a trial took whose worker died is not known, and not counted.

    Args:
        view: The study read.
    """
    parts = dict.fromkeys(
        (
            "choosing the network",
            "a first linear probe",
            "finding the range of rates",
            "training, trial kept",
            "training, trial stopped early",
            "trials that failed or were stopped",
            "around training (loading, writing)",
            "confirmation",
        ),
        0.0,
    )
    parts["choosing the network"] = view.model_choice.cost.seconds + view.race.cost.seconds
    parts["a first linear probe"] = view.first_answer.seconds
    parts["finding the range of rates"] = view.rate_check.seconds
    for trial in view.trials:
        if not trial.state.is_finished():
            continue
        wall = trial.duration.total_seconds() if trial.duration is not None else 0.0
        if trial.system_attrs.get(ENDED_KEY) == "lost":
            wall = 0.0  # it ended when somebody noticed, which may be days after its worker died
        said = seconds(trial) or 0.0
        if trial.state == TrialState.FAIL:
            parts["trials that failed or were stopped"] += wall
        elif trial.state == TrialState.PRUNED:
            parts["training, trial stopped early"] += said
        else:
            parts["training, trial kept"] += said
        if trial.state != TrialState.FAIL:
            parts["around training (loading, writing)"] += max(0.0, wall - said)
    parts["confirmation"] = view.confirm_seconds
    return {kind: spent for kind, spent in parts.items() if spent > 0}
