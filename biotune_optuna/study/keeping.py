"""The models of a search's best trials, kept in files until better ones come.

Which file belongs to which trial is written in the trials. A file is deleted because it lies in the
study's own folder and no trial that counts names it; what a database says is never the name of a
file to delete. PyTorch is not loaded before a model is read or written.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from biotune_optuna.errors import StudyError
from biotune_optuna.schema import KEPT_KEY, KEPT_MODEL_KEY, TrialRecord, as_mapping
from biotune_optuna.storage.open import keep_user_attr

if TYPE_CHECKING:
    import numpy as np
    import optuna
    from numpy.typing import NDArray
    from torch import Tensor

    from biotune_optuna.finetune.results import RunResult
    from biotune_optuna.finetune.trainer import Trainer
    from biotune_optuna.study.spec import StudySpec


_WEIGHTS, _PROBABILITIES = "weights/", "probabilities"


@dataclass(frozen=True, slots=True, eq=False)
class SearchModel:
    """What the first training of a trial has made of the model, at its best epoch.

    Attributes:
        changed: The tensors that it changed, see `Trainer.changed`.
        probabilities: What it predicts for the validation images, (n_val, C).
    """

    changed: Mapping[str, Tensor]
    probabilities: NDArray[np.float32]

    @classmethod
    def of(cls, trainer: Trainer, result: RunResult) -> SearchModel | None:
        """Return the model of a training whose best weights were put back; None without one."""
        if result.probabilities is None:
            return None
        return cls(trainer.changed(), result.probabilities)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        import torch

        named = {f"{_WEIGHTS}{name}": tensor for name, tensor in self.changed.items()}
        return named | {_PROBABILITIES: torch.from_numpy(self.probabilities)}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor]) -> SearchModel:
        """Return what `tensors` gave."""
        changed = {
            name.removeprefix(_WEIGHTS): tensor
            for name, tensor in tensors.items()
            if name != _PROBABILITIES
        }
        return cls(changed, tensors[_PROBABILITIES].numpy())


class SearchModels:
    """The kept models of a study's best trials.

    Args:
        study: The study; it says how many are kept.
        folder: Where the models of studies lie; those of this one have a folder in it.
    """

    def __init__(self, study: optuna.Study, folder: Path) -> None:
        self.study = study
        drawn = str(as_mapping(study.user_attrs.get(KEPT_KEY)).get("id"))
        # A copied study has the same id: it must not delete what the other one keeps.
        own = hashlib.sha256(f"{drawn}\0{study.study_name}".encode()).hexdigest()
        self.folder = folder / own[:32]

    @property
    def most(self) -> int:
        """How many models are kept; another process may change it at any time."""
        return most_kept(self.study.user_attrs)

    def offer(self, trial: optuna.Trial, value: float, model: SearchModel | None) -> None:
        """Keep the model of a running trial, if its value is among the best so far.

        The trial names the file before it is there, so that nobody takes it for a file of nobody.
        """
        from biotune_optuna.study.kept import KeptWeights, digest_of

        most = self.most
        best = best_kept(self._trials(), most)
        lacks = len(best) < most or any(value > (one.value or 0.0) for one in best[-1:])
        if model is None or not lacks:
            return
        tensors = model.tensors
        size = sum(tensor.nbytes for tensor in tensors.values())
        trial.set_user_attr(KEPT_MODEL_KEY, {"digest": digest_of(tensors), "bytes": size})
        KeptWeights(self.folder).put(tensors)

    def get(self, trial: FrozenTrial) -> SearchModel | None:
        """Return a trial's model; None where it is not here or is damaged."""
        from biotune_optuna.study.kept import KeptWeights

        tensors = KeptWeights(self.folder).get(TrialRecord(trial).kept.digest)
        return None if not tensors or _PROBABILITIES not in tensors else SearchModel.read(tensors)

    def best(self) -> list[FrozenTrial]:
        """Return the finished trials whose models are kept, best first."""
        return best_kept(self._trials(), self.most)

    def tidy(self, *_: object) -> None:
        """Delete the models of trials that are no longer among the best. A callback of a search."""
        from biotune_optuna.study.kept import files_by_digest

        files = files_by_digest(self.folder)  # first: each of them is named by a trial by now
        trials = self._trials()
        wanted = [*best_kept(trials, self.most)]
        wanted += [trial for trial in trials if trial.state == TrialState.RUNNING]
        kept = {TrialRecord(trial).kept.digest for trial in wanted}
        for digest, paths in files.items():
            for path in paths if digest not in kept else ():
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def _trials(self) -> Sequence[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)


def most_kept(user_attrs: Mapping[str, object]) -> int:
    """Return how many models a study keeps; 0 where nobody has asked for any."""
    most = as_mapping(user_attrs.get(KEPT_KEY)).get("most")
    return most if isinstance(most, int) and not isinstance(most, bool) else 0


def best_kept(trials: Iterable[FrozenTrial], most: int) -> list[FrozenTrial]:
    """Return the finished trials whose models are kept, best first, the older of equal ones.

    Args:
        trials: A study's trials; values are to be maximised.
        most: How many, at most.
    """
    kept = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and trial.value is not None
        and TrialRecord(trial).kept.digest
    ]
    return sorted(kept, key=lambda trial: (-(trial.value or 0.0), trial.number))[:most]


def note_kept(study: optuna.Study, most: int) -> None:
    """Write into a study how many models it keeps from now on.

    Args:
        study: The study.
        most: How many; 0 keeps none.
    """
    known = keep_user_attr(study, KEPT_KEY, {"most": most, "id": uuid.uuid4().hex})
    if known.get("most") != most:
        study.set_user_attr(KEPT_KEY, {**known, "most": most})


def check_kept(spec: StudySpec, most: object) -> None:
    """Refuse to keep models where that means nothing.

    Args:
        spec: The study.
        most: How many models are to be kept.

    Raises:
        StudyError: If that is no whole number, or the study trains on folds.
    """
    if not isinstance(most, int) or isinstance(most, bool) or most < 0:
        raise StudyError(f"keep_models {most!r} is no whole number; give 0 or more")
    if most and spec.n_folds > 1:
        raise StudyError(
            f"keep_models {most} needs models that were judged by the same images, and the study "
            f"trains on {spec.n_folds} folds; leave it out"
        )
