"""Where people look while it trains: TensorBoard, MLflow, Weights & Biases.

from biotune_optuna.report.loggers import trial_logger

study.search(60, callbacks=[trial_logger("tensorboard:runs", study.name)])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from biotune_optuna.errors import StudyError
from biotune_optuna.report.view import as_view
from biotune_optuna.schema import TrialRecord

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    Callback = Callable[[Study, FrozenTrial], None]

KINDS = ("tensorboard", "mlflow", "wandb")
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def trial_logger(where: str, study: str, metric: str = "value") -> Callback:
    """Return a callback of the search that logs each trial that has ended.

    MLflow and Weights & Biases are served by Optuna's own callbacks, of the package
    optuna-integration.

    Args:
        where: ``"tensorboard:FOLDER"``, ``"mlflow:URI"`` (such as ``sqlite:///mlflow.db``) or
            ``"wandb:PROJECT"``.
        study: Name of the study.
        metric: What the value is called there.

    Raises:
        StudyError: If there is no such place, or its package is not installed.
    """
    kind, _, place = where.partition(":")
    if kind not in KINDS or not place:
        raise StudyError(
            f"log {where!r} is no place; write tensorboard:FOLDER, mlflow:URI or wandb:PROJECT"
        )
    try:
        if kind == "tensorboard":
            return _tensorboard(Path(place) / study)
        if kind == "mlflow":
            return _mlflow(place, metric)
        return _wandb(place, study, metric)
    except ImportError as error:
        package = {"mlflow": "mlflow optuna-integration", "wandb": "wandb optuna-integration"}
        raise StudyError(
            f"log {where!r} needs a package that is not installed ({error}); "
            f"pip install {package.get(kind, kind)}"
        ) from None


def _tensorboard(folder: Path) -> Callback:
    """Log the learning curves of each trial, and its parameters beside its value."""
    from torch.utils.tensorboard import SummaryWriter

    def log(study: Study, trial: FrozenTrial) -> None:
        if trial.state not in _ENDED:
            return
        view = as_view(study)
        with SummaryWriter(str(folder / f"trial-{trial.number:04}")) as writer:
            for run, curve in enumerate(view.curves(trial)):
                for epoch, score in curve:
                    writer.add_scalar(f"validation/run {run}", score, epoch)
            value = trial.value if trial.value is not None else math.nan
            params = {key: _plain(one) for key, one in trial.params.items()}
            facts = params | {"frozen": TrialRecord(trial).frozen or ""}
            writer.add_hparams(facts, {f"hparam/{view.metric}": value}, run_name=".")

    return log


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _mlflow(place: str, metric: str) -> Callback:
    from optuna_integration import MLflowCallback

    callback: Callback = MLflowCallback(tracking_uri=place, metric_name=metric)
    return callback


def _wandb(project: str, study: str, metric: str) -> Callback:
    from optuna_integration import WeightsAndBiasesCallback

    callback: Callback = WeightsAndBiasesCallback(
        metric_name=metric, wandb_kwargs={"project": project, "name": study}
    )
    return callback
