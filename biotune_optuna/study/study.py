"""Studies: created, found again, worked on."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from biotune_optuna._version import __version__
from biotune_optuna.data import left_out
from biotune_optuna.data.identity import is_early
from biotune_optuna.errors import StudyError
from biotune_optuna.jsonable import plain_value
from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.schema import KEPT_KEY, LEFT_OUT_KEY, SPEC_KEY, TOTAL_KEY, TrialRecord
from biotune_optuna.storage.open import keep_user_attr, open_storage
from biotune_optuna.storage.urls import StorageURL, default_artifact_dir
from biotune_optuna.study.auto import choose_model
from biotune_optuna.study.board import study_names
from biotune_optuna.study.choice import Choice, is_auto
from biotune_optuna.study.keeping import SearchModels, check_kept, most_kept, note_kept
from biotune_optuna.study.objective import Objective
from biotune_optuna.study.rates import RateCheck, find_rates
from biotune_optuna.study.setup import Setup, prepare
from biotune_optuna.study.spec import StudySpec, at_least, default_name
from biotune_optuna.study.worker import run_trials

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource
    from biotune_optuna.study.objective import Observer
    from biotune_optuna.study.stop import StopRequest


logger = logging.getLogger(__name__)

Storage = str | os.PathLike[str] | optuna.storages.BaseStorage | None


class TuningStudy:
    """A study of fine-tuning recipes: what it is, where it is kept, and what works on it.

    Made by `create_study` and `load_study`.

    Attributes:
        study: The Optuna study underneath; all of Optuna's tools work on it.
        setup: Data, model and trainer.
    """

    def __init__(self, study: optuna.Study, setup: Setup) -> None:
        self.study = study
        self.setup = setup
        self._scratch: Path | None = None

    @property
    def name(self) -> str:
        """The study's name in its storage."""
        return self.study.study_name

    @property
    def spec(self) -> StudySpec:
        """What defines the study."""
        return self.setup.spec

    @property
    def total(self) -> int | None:
        """The total that was last asked for, None if there was none."""
        stored = self.study.user_attrs.get(TOTAL_KEY)
        return None if stored is None else int(stored)

    @property
    def models(self) -> SearchModels:
        """The models of its best trials, see `search`.

        They lie in the folder of artifacts beside its database, in ``models``; those of a study in
        memory in a folder that this object takes with it.
        """
        url = getattr(self.study._storage, "url", None)
        if isinstance(url, StorageURL) and url.kind != "memory":
            return SearchModels(self.study, default_artifact_dir(url) / "models")
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="biotune-models-"))
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return SearchModels(self.study, self._scratch)

    def search(
        self,
        total: int | None = None,
        *,
        timeout: float | None = None,
        keep_models: int | None = None,
        observer: Observer | None = None,
        callbacks: Sequence[Callable[[optuna.Study, optuna.trial.FrozenTrial], None]] = (),
        on_evaluated: Callable[[optuna.Trial, list[list[int]] | None], None] | None = None,
        stop: StopRequest | None = None,
    ) -> TuningStudy:
        """Evaluate genomes until the study holds ``total`` finished ones or time is up.

        Args:
            total: For the study, not for this call: trials finished before count. None is no limit.
            timeout: Seconds for this call; None is no limit.
            keep_models: Trials whose models are kept, the best ones so far: what the first run of
                each has changed, at its best epoch. It holds for all workers and later calls until
                another number is given; 0 deletes those that are kept. None goes on as before, a
                new study without.
            observer: Told of runs and epochs.
            callbacks: Called with the study and each trial that has ended.
            on_evaluated: Called with each trial before it ends, see `Objective`.
            stop: Lets a signal hand back the running trial.

        Raises:
            StudyError: If neither limit is given or one is not above 0, or the models of trials
                cannot be kept.
        """
        total, timeout = plain_value(total), plain_value(timeout)
        check_end(total, timeout)
        models = self._keep_models(plain_value(keep_models))
        if total is not None and total != self.total:
            self.study.set_user_attr(TOTAL_KEY, total)
        self._warn_of_other_devices()
        objective = Objective(
            self.setup,
            observer=observer,
            checkpoint=stop.check if stop else None,
            on_evaluated=on_evaluated,
            models=models,
        )
        run_trials(
            self.study,
            objective,
            n_trials=total,
            timeout=timeout,
            callbacks=callbacks if models is None else (models.tidy, *callbacks),
            stop=stop,
        )
        return self

    def _keep_models(self, most: int | None) -> SearchModels | None:
        """Note how many models are kept; return what keeps them, None where nothing does."""
        if most is not None:
            check_kept(self.spec, most)
            if most or most_kept(self.study.user_attrs):
                note_kept(self.study, most)
        if not self.study.user_attrs.get(KEPT_KEY):
            return None
        models = self.models
        models.tidy()
        return models if models.most else None

    def _warn_of_other_devices(self) -> None:
        """Say so where earlier trainings of the study ran on another kind of device than these."""
        trials = self.study.get_trials(deepcopy=False)
        kinds = {run.device for trial in trials for run in TrialRecord(trial).runs}
        if other := sorted(kinds - {"", self.setup.trainer.kind}):
            logger.warning(
                "study %r has trainings on %s, and this worker trains on %s: their numbers round "
                "differently, and so may their scores",
                self.name,
                "; ".join(other),
                self.setup.trainer.kind,
            )


def check_end(total: int | None, timeout: float | None, *, name: str = "total") -> None:
    """Refuse a search without an end, before anything is trained.

    Args:
        total: Finished trials that the study shall hold in all.
        timeout: Seconds.
        name: What the caller calls the total.

    Raises:
        StudyError: If neither limit is given or one is not above 0.
    """
    if total is None and timeout is None:
        raise StudyError(f"a search needs an end: give {name}, timeout or both")
    if total is not None:
        at_least(name, total, 1)
    if timeout is not None and timeout <= 0:
        raise StudyError(f"timeout {timeout} is too short; give a number of seconds above 0")


def create_study(
    spec: StudySpec,
    *,
    storage: Storage = None,
    name: str | None = None,
    source: ImageSource | None = None,
    device: str = "auto",
    cache_dir: str | Path | None = None,
    prepared: Callable[[Setup], None] | None = None,
    tell: Callable[[str], object] | None = None,
) -> TuningStudy:
    """Create a study, or go on with the one of that name if it is the same study.

    Where the spec's model is ``"auto"``, perhaps with limits as in ``"auto:30M,20ms"``, the network
    is chosen first; a study that was begun so goes on with the network it has.

    Args:
        spec: What the study is.
        storage: URL or Optuna storage; None is ``$BIOTUNE_STORAGE`` or ``sqlite:///biotune.db``.
        name: The study's name; None makes one of data and model.
        source: Images in memory, instead of ``spec.data``.
        device: Where to train: ``"auto"``, ``"cpu"``, ``"cuda:N"`` or ``"mps"``.
        cache_dir: Folder of decoded images.
        prepared: Called with data and model once they are ready, before anything is trained.
        tell: Told in lines how a network is chosen.

    Raises:
        StudyError: If a study of that name has another identity; the field is named.
        DataError: If the images cannot be used.
        ModelError: If the model or its weights cannot be used.
        StorageError: If the storage cannot be opened.
    """
    backend = _backend(storage)
    name = name or default_name(spec.model, spec.data)
    stored, choice = _stored_spec(backend, name), None
    if is_auto(spec.model) and stored is None:
        choice = choose_model(spec, source=source, device=device, cache_dir=cache_dir, tell=tell)
        spec = dataclasses.replace(spec, model=choice.chosen)
    elif is_auto(spec.model) and _stored_choice(backend, name).asked == spec.model:
        spec = dataclasses.replace(spec, model=stored.model)  # type: ignore[union-attr]
    _check_same(name, stored, spec, fingerprints=False)
    if stored is not None:
        spec = dataclasses.replace(spec, size_found=stored.size_found)
    setup = prepare(spec, source=source, device=device, cache_dir=cache_dir)
    if prepared is not None:
        prepared(setup)
    return study_of(setup, storage=backend, name=name, choice=choice)


def study_of(
    setup: Setup,
    *,
    storage: optuna.storages.BaseStorage,
    name: str,
    sampler: Callable[[Setup], optuna.samplers.BaseSampler] | None = None,
    checkpoint: Callable[[], None] | None = None,
    choice: Choice | None = None,
) -> TuningStudy:
    """Create the study of a setup that is there already, or go on with it.

    Where the spec leaves the bounds of the learning rate to it, they are found first.

    Args:
        setup: Data, model and trainer.
        storage: Its storage, open.
        name: The study's name.
        sampler: Makes what proposes genomes; None is the spec's own.
        checkpoint: Called between epochs while the range of rates is found; raises to stop.
        choice: How its network was chosen, to be kept; None where the user named it.

    Raises:
        StudyError: If a study of that name has another identity; the field is named.
    """
    make = sampler or _sampler
    stored = _stored_spec(storage, name)
    setup = _as_stored(setup, stored)
    setup, check = _settle_rates(setup, stored, checkpoint)
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        sampler=make(setup),
        pruner=optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    # Looked for again after the trials: another worker may have begun the study in between.
    if not read_spec(study) and study.get_trials(deepcopy=False) and not read_spec(study):
        raise StudyError(f"study {name!r} holds trials of another kind; choose another study name")
    own: dict[str, Any] = {"version": __version__, "spec": setup.spec.to_dict()}
    if check is not None:
        own["rates"] = check.to_dict()
    if choice is not None:
        own["choice"] = choice.to_dict()
    stored = _parse_spec(name, keep_user_attr(study, SPEC_KEY, own))
    setup = _as_stored(setup, stored)
    _check_same(name, stored, setup.spec, fingerprints=True)
    if stored is not None and stored != setup.spec:  # made earlier, or another worker was first
        known = _as_known(setup, stored)
        if known.spec.lr_found != setup.spec.lr_found:
            study.sampler = make(known)
        setup = known
    if skipped := left_out.summary(setup.source.skipped):
        keep_user_attr(study, LEFT_OUT_KEY, skipped)
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([setup.spec.train.metric])
    return TuningStudy(study, setup)


def load_study(
    name: str,
    *,
    storage: Storage = None,
    data: str | None = None,
    weights: str | None = None,
    source: ImageSource | None = None,
    device: str = "auto",
    cache_dir: str | Path | None = None,
) -> TuningStudy:
    """Load a study by its name; the spec comes from the database.

    Args:
        name: The study's name.
        storage: URL or Optuna storage, as in `create_study`.
        data: Where this machine has the images, if elsewhere than the spec says.
        weights: Where this machine has the weights, if elsewhere.
        source: Images in memory, instead of a place.
        device: Where to train.
        cache_dir: Folder of decoded images.

    Raises:
        StudyError: If there is no such study, or what was found is not what the study was made
            with; the field is named.
    """
    backend = _backend(storage)
    spec = _stored_spec(backend, name)
    if spec is None:
        names = study_names(backend)
        if name in names:
            raise StudyError(f"study {name!r} was not made by biotune_optuna: it stores no spec")
        known = f"it has {', '.join(map(repr, names))}" if names else "it has no studies"
        raise StudyError(f"there is no study {name!r} in the storage; {known}")
    changes: dict[str, Any] = {"data": data, "weights": weights}
    spec = dataclasses.replace(spec, **{k: v for k, v in changes.items() if v is not None})
    return create_study(
        spec, storage=backend, name=name, source=source, device=device, cache_dir=cache_dir
    )


def read_spec(study: optuna.Study) -> StudySpec | None:
    """Return the spec stored in a study, None where the study is not one of ours.

    Raises:
        StudyError: If another major version made the study.
    """
    return _parse_spec(study.study_name, study.user_attrs.get(SPEC_KEY))


def _parse_spec(name: str, stored: dict[str, Any] | None) -> StudySpec | None:
    if stored is None:
        return None
    theirs, ours = str(stored["version"]), __version__
    if theirs.split(".", maxsplit=1)[0] != ours.split(".")[0]:
        raise StudyError(
            f"study {name!r} was made by version {theirs} and this is {ours}; "
            "go on with the version that made it"
        )
    return StudySpec.from_dict(stored["spec"])


def _stored_spec(backend: optuna.storages.BaseStorage, name: str) -> StudySpec | None:
    try:
        study_id = backend.get_study_id_from_name(name)
    except KeyError:
        return None
    return _parse_spec(name, backend.get_study_user_attrs(study_id).get(SPEC_KEY))


def _stored_choice(backend: optuna.storages.BaseStorage, name: str) -> Choice:
    study_id = backend.get_study_id_from_name(name)
    return Choice.of(backend.get_study_user_attrs(study_id)[SPEC_KEY].get("choice"))


def _check_same(
    name: str, stored: StudySpec | None, given: StudySpec, *, fingerprints: bool
) -> None:
    if stored is None:
        return
    if not fingerprints:
        given = dataclasses.replace(given, fingerprints=stored.fingerprints)
    different = stored.differences(given)
    if not different:
        return
    cure = "give the same values or another study name"
    if all(field.startswith("fingerprints.") for field in different):
        cure = (
            "the files found here are not the study's, or their classes come in another order:"
            " point data or weights at its own"
        )
        if different[0].startswith("fingerprints.data"):  # other images are also split otherwise
            different = [field for field in different if "fingerprints.splits" not in field]
    raise StudyError(
        f"study {name!r} exists and is another study: it has {'; '.join(different)}; {cure}"
    )


def _as_stored(setup: Setup, stored: StudySpec | None) -> Setup:
    """Return the setup with its images' fingerprint of the kind that the study stores."""
    if stored is None or not is_early(stored.fingerprints.get("data", "")):
        return setup
    found = dict(setup.spec.fingerprints) | {"data": setup.source.early_fingerprint}
    return dataclasses.replace(setup, spec=dataclasses.replace(setup.spec, fingerprints=found))


def _settle_rates(
    setup: Setup, stored: StudySpec | None, checkpoint: Callable[[], None] | None
) -> tuple[Setup, RateCheck | None]:
    """Return the setup with bounds of the learning rate, the study's own or found now, and how."""
    if setup.spec.lr != "auto" or setup.spec.lr_found is not None:
        return setup, None
    if stored is not None and stored.lr_found is not None:
        return _as_known(setup, stored), None
    check = find_rates(setup, checkpoint=checkpoint)
    return _as_known(setup, dataclasses.replace(setup.spec, lr_found=check.bounds)), check


def _as_known(setup: Setup, stored: StudySpec) -> Setup:
    """Return the setup with what a study knows better than who asks for it."""
    known = {name: getattr(stored, name) for name in ("lr_found", "own_seeds", "size_found")}
    spec = dataclasses.replace(setup.spec, **known)
    return dataclasses.replace(setup, spec=spec, space=spec.space(setup.blocks))


def _backend(storage: Storage) -> optuna.storages.BaseStorage:
    return storage if isinstance(storage, optuna.storages.BaseStorage) else open_storage(storage)


def _sampler(setup: Setup) -> BioTuneSampler:
    spec = setup.spec
    return BioTuneSampler(
        space=setup.space,
        preset=spec.preset,
        population_size=spec.population_size,
        seed=spec.seed,
    )
