"""Ways to look into a study: figures, a one-file report, live progress, status, dashboard."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biotune_optuna.cli.progress import Progress
    from biotune_optuna.report.dashboard.artifacts import attach_model, attach_trial_artifacts
    from biotune_optuna.report.dashboard.serve import refresh_study, run_dashboard
    from biotune_optuna.report.html import write_report
    from biotune_optuna.report.status import StudyStatus, study_status

_HOMES = {
    "Progress": "live",
    "StudyStatus": "status",
    "attach_model": "artifacts",
    "attach_trial_artifacts": "artifacts",
    "refresh_study": "dashboard",
    "run_dashboard": "dashboard",
    "study_status": "status",
    "write_report": "html",
}

__all__ = [
    "Progress",
    "StudyStatus",
    "attach_model",
    "attach_trial_artifacts",
    "refresh_study",
    "run_dashboard",
    "study_status",
    "write_report",
]


def __getattr__(name: str) -> Any:  # plotly and the dashboard load when they are needed
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
