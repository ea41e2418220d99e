"""This machine: one process per device or more, started again by us when it dies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from biotune_optuna.study.launch import launch

if TYPE_CHECKING:
    from biotune_optuna.study.engines.base import Job

OPTIONS = frozenset({"devices", "per_device"})


def start(job: Job) -> int:
    """Run the workers here until the study has its trials; see `launch`."""
    return launch(job.study, storage=job.storage, arguments=job.arguments, **job.options)
