"""`BioTuneClassifier`: a study of fine-tuning recipes behind scikit-learn's interface."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import optuna
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from biotune_optuna.confirmation.calibrate import calibrations
from biotune_optuna.confirmation.confirm import TrainedWinner, confirm, train_winner
from biotune_optuna.confirmation.plan import MEMBERS, ConfirmPlan, check_members
from biotune_optuna.confirmation.planning import plan_study, timing_of
from biotune_optuna.confirmation.protocol import Contest, Entrant
from biotune_optuna.effort import KEPT, NORMAL, effort_of
from biotune_optuna.errors import StudyError
from biotune_optuna.estimator import persistence as keeping
from biotune_optuna.estimator.inputs import InputError, images_of, training_images
from biotune_optuna.estimator.progress import Bar, somebody_looks
from biotune_optuna.estimator.results import results_of, snapshot
from biotune_optuna.export import Predictor
from biotune_optuna.finetune.results import epochs_of_final_run
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.jsonable import plain_value
from biotune_optuna.sampler.sampler import rank_finished
from biotune_optuna.schema import TrialRecord
from biotune_optuna.storage.open import open_storage
from biotune_optuna.storage.urls import scrub
from biotune_optuna.study.setup import preprocessing_of
from biotune_optuna.study.spec import StudySpec, default_name
from biotune_optuna.study.study import TuningStudy, check_end, create_study, read_spec

if TYPE_CHECKING:
    from sklearn.utils import Tags

    from biotune_optuna.clock import Plan
    from biotune_optuna.confirmation.record import Confirmation
    from biotune_optuna.data.sources.image_source import ImageSource
    from biotune_optuna.study.objective import Observer


class BioTuneClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Image classifier that searches what to freeze and how fast to train the rest.

    `fit` runs a study on the images, trains the best few recipes again on fresh seeds beside full
    fine-tuning and a linear probe, and keeps the winner, trained on all images, several times::

        classifier = BioTuneClassifier("resnet18", n_trials=20, random_state=0)
        classifier.fit(images, labels).score(test_images, test_labels)

    Args:
        model: A timm architecture; or ``"auto"``, perhaps with limits as in ``"auto:30M,20ms"``:
            the one that suits these images best, of a short list. ``exported_.name`` tells it.
        effort: ``"quick"``, ``"normal"`` or ``"thorough"`` (`biotune_optuna.effort`): sets
            ``n_trials``, ``epochs``, ``members``, the evidence and the largest ``image_size``, each
            where it has been left at its default. None is the normal one.
        n_trials: Finished trials that the study shall hold in all; None needs ``timeout``.
        timeout: Seconds for the search; None is no limit.
        time_limit: Seconds for everything. Image size (unless given), epochs, trials and evidence
            are chosen to fit, `epochs` and `n_trials` being the most; None is no limit.
        storage: URL, file or Optuna storage that keeps the study, so that an interrupted `fit`
            goes on and several processes share it. None keeps it in memory.
        study_name: Name of the study in the storage; None makes one of the model, the images'
            content and the parameters that make a study another one, so that every fold of a
            cross-validation and every point of a grid has a study of its own. ``n_trials`` and
            ``timeout`` are not among them: a second `fit` with more of them goes on; nor is
            ``random_state``, which has to stay the same.
        weights: Pre-trained weights: ``"auto"``, ``"hub"``, ``"none"`` or a file.
        image_size: Side of the images that the network sees, in pixels; None is the model's own,
            but at most about twice the images'.
        metric: Score that the search maximises on validation images.
        val_fraction: Share of the images that the search validates on. The winner is trained on
            all of them.
        epochs: Most epochs of one training.
        batch_size: Images per step.
        train_params: Further fields of `TrainSettings`, as a mapping.
        study_params: Further fields of `StudySpec`, as a mapping.
        confirm: A `ConfirmPlan`, True for the default one, or False to take the search's best
            trial as it is, which is faster and more often mere luck. With
            ``ConfirmPlan(from_search=True)`` the model is made of the search's own models, which
            have not seen the validation images, and nothing is trained after the search.
        members: How many times the chosen recipe is trained finally, on different seeds; the
            probabilities are the mean of what these members predict. 1 is a single model. It counts
            whatever a `ConfirmPlan` says.
        callbacks: Called with the Optuna study and each trial that has ended.
        device: Where to train: ``"auto"``, ``"cpu"``, ``"cuda:N"`` or ``"mps"``.
        cache_dir: Folder that keeps decoded images between calls; None keeps them for this one.
        verbose: 1 shows a bar with the time that is left, in a terminal or a notebook; 0 nothing.
        random_state: Seed of everything. None draws one, or takes that of the study which is
            already in the storage.

    Attributes:
        classes_: Labels as given to `fit`, sorted, shape (n_classes,); names of classes in the
            order of the source where ``X`` has its own labels.
        recipe_: The recipe that was chosen.
        study_: The Optuna study; all of Optuna's tools work on it.
        cv_results_: The trials as a dict of arrays, ready for ``pandas.DataFrame``.
        best_score_: Best validation score of the search.
        confirmation_: What `biotune_optuna.confirm` found; None without it.
        exported_: The trained network with its preprocessing.
    """

    def __init__(
        self,
        model: str = "resnet50",
        *,
        effort: str | None = None,
        n_trials: int | None = NORMAL.trials,
        timeout: float | None = None,
        time_limit: float | None = None,
        storage: str | os.PathLike[str] | optuna.storages.BaseStorage | None = None,
        study_name: str | None = None,
        weights: str = "auto",
        image_size: int | None = None,
        metric: str = "macro_accuracy",
        val_fraction: float = 0.2,
        epochs: int = 10,
        batch_size: int = 32,
        train_params: Mapping[str, Any] | None = None,
        study_params: Mapping[str, Any] | None = None,
        confirm: bool | ConfirmPlan = True,
        members: int = MEMBERS,
        callbacks: Sequence[Callable[[optuna.Study, optuna.trial.FrozenTrial], None]] = (),
        device: str = "auto",
        cache_dir: str | Path | None = None,
        verbose: int = 1,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.model = model
        self.effort = effort
        self.n_trials = n_trials
        self.timeout = timeout
        self.time_limit = time_limit
        self.storage = storage
        self.study_name = study_name
        self.weights = weights
        self.image_size = image_size
        self.metric = metric
        self.val_fraction = val_fraction
        self.epochs = epochs
        self.batch_size = batch_size
        self.train_params = train_params
        self.study_params = study_params
        self.confirm = confirm
        self.members = members
        self.callbacks = callbacks
        self.device = device
        self.cache_dir = cache_dir
        self.verbose = verbose
        self.random_state = random_state

    # -- learning ------------------------------------------------------------------------------

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Search, confirm and train the winner on all images.

        Args:
            X: Array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or float in [0, 1] or
                [0, 255]; or a list of image files, or of PIL pictures; or an `ImageSource`, whose
                given train, val and test parts are kept, or what `open_images` understands.
            y: N labels, numbers or strings; None where ``X`` has its own.

        Raises:
            DataError: If images or labels cannot be used.
            ModelError: If the model or its weights cannot be used.
            StudyError: If a parameter is out of range, or the storage holds another study of that
                name.
        """
        began = time.monotonic()
        evidence = self._plan()
        self._check_time_limit()
        check_end(self._most_trials(), plain_value(self.timeout), name="n_trials")
        skip = bool((self.study_params or {}).get("skip_bad_images"))
        source, classes, scale = training_images(X, y, skip_bad_images=skip)
        backend = self.storage
        if backend is None or isinstance(backend, str | os.PathLike):
            backend = open_storage(backend or "memory://")
        name = self.study_name or self._default_name(source)
        with _cache_folder(self.cache_dir) as cache_dir:
            spec, plan = plan_study(
                None if self.time_limit is None else float(self.time_limit),
                self._spec(source, self._seed(backend, name)),
                storage=backend,
                name=name,
                given=self._given(),
                source=source,
                device=self.device,
                effort=effort_of(self.effort),
            )
            study = create_study(
                spec,
                storage=backend,
                name=name,
                source=source,
                device=self.device,
                cache_dir=cache_dir,
            )
            winner, confirmation = self._run(study, evidence, plan, began)
            exported = _exported(study, winner, confirmation)
        # all at once: a fit that was interrupted leaves the classifier as it was
        self.classes_, self._scale = classes, scale
        self.recipe_, self.confirmation_ = winner.recipe, confirmation
        self.exported_ = exported
        self._model_args = dict(study.setup.loaded.model_args)
        self.study_ = study.study
        self.best_score_ = float(study.study.best_value)
        return self

    def _given(self) -> dict[str, Any]:
        """Return what no effort and no time limit may change, for `plan_study`."""
        train = {**(self.train_params or {})}
        usual = self.epochs == NORMAL.epochs and "epochs" not in train
        levelled = effort_of(self.effort) != NORMAL
        return {
            "image_size": self.image_size,
            "epochs": None if usual or not levelled else train.get("epochs", self.epochs),
            "most_trials": self._most_trials(),
            "members": self._members(),
            "from_search": self._is_from_search(),
        }

    def _most_trials(self) -> int | None:
        """Return the total of the study, that of the effort where nobody gave another."""
        trials = plain_value(self.n_trials)
        return effort_of(self.effort).trials if trials == NORMAL.trials else trials

    def _members(self) -> int:
        """Return the number of members, that of the effort where nobody gave another."""
        members: int = plain_value(self.members)
        check_members(members)
        return effort_of(self.effort).members if members == NORMAL.members else members

    def _is_from_search(self) -> bool:
        """Whether the model is made of the search's own."""
        return isinstance(self.confirm, ConfirmPlan) and self.confirm.from_search

    def _check_time_limit(self) -> None:
        if self.time_limit is None:
            return
        if self.timeout is not None:
            raise StudyError("time_limit is for everything and timeout for the search; give one")
        if not self.time_limit > 0:
            raise StudyError(f"time_limit {self.time_limit} is too short; give seconds above 0")

    def _run(
        self, study: TuningStudy, evidence: ConfirmPlan | None, plan: Plan | None, began: float
    ) -> tuple[TrainedWinner, Confirmation | None]:
        """Search, confirm and train the winner finally, shown in a bar."""
        callbacks = tuple(self.callbacks)
        shown = bool(self.verbose) and somebody_looks()
        if not shown and self.time_limit is None:
            study.search(
                self._most_trials(),
                timeout=self.timeout,
                keep_models=KEPT if self._is_from_search() else None,
                callbacks=callbacks,
            )
            return self._train_best(study, evidence)
        timing = timing_of(
            study,
            self._most_trials(),
            evidence or ConfirmPlan(),
            limit=self.time_limit,
            plan=plan,
            most=effort_of(self.effort).trials,
        )
        timing.began = began
        timing.store(study.study)
        bar = Bar(timing, None if timing.limit else self._most_trials()) if shown else None
        with contextlib.nullcontext() if bar is None else bar:
            if not (timing.done and timing.is_time_up):
                clock = [timing.trial_finished, *([] if bar is None else [bar.trial_finished])]
                study.search(
                    timing.most_trials(self._most_trials()),
                    timeout=self.timeout,
                    keep_models=KEPT if self._is_from_search() else None,
                    observer=bar,
                    callbacks=(*clock, *callbacks),
                )
            if not isinstance(self.confirm, ConfirmPlan):
                evidence = evidence and timing.confirm_plan(study)
            return self._train_best(study, evidence, bar)

    def _default_name(self, source: ImageSource) -> str:
        """Model, data, and a digest of what makes a study another one."""
        # the data may be elsewhere tomorrow, and None as a seed takes that of the study
        spec = self._spec(source, 0)
        content = spec.to_dict() | {"data": "", "skip_bad_images": False}
        if effort_of(self.effort) != NORMAL:
            content["effort"] = self.effort
        del content["size_found"]  # not known before the images are opened
        text = json.dumps(content, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return default_name(self.model, f"{source.name}-{source.early_fingerprint[:12]}-{digest}")

    def _spec(self, source: ImageSource, seed: int) -> StudySpec:
        train = {"metric": self.metric, "epochs": self.epochs, "batch_size": self.batch_size}
        fields: dict[str, Any] = {
            "model": self.model,
            "data": source.name,
            "weights": self.weights,
            "image_size": self.image_size,
            "val_fraction": self.val_fraction,
            "train": TrainSettings(
                **_with(train, self.train_params, TrainSettings, "train_params")
            ),
            "seed": seed,
        }
        fields = _with(fields, self.study_params, StudySpec, "study_params")
        fields.setdefault("test_fraction", 0.0)  # scikit-learn's users test on data of their own
        return StudySpec(**fields)

    def _seed(self, backend: optuna.storages.BaseStorage, name: str) -> int:
        """Return the seed given, else that of the study in the storage, else a new one."""
        if isinstance(self.random_state, (int, np.integer)):
            return int(self.random_state)
        if self.random_state is None:
            with contextlib.suppress(KeyError):
                stored = read_spec(optuna.load_study(study_name=name, storage=backend))
                if stored is not None:
                    return stored.seed
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _plan(self) -> ConfirmPlan | None:
        members = self._members()
        if isinstance(self.confirm, ConfirmPlan):
            return dataclasses.replace(self.confirm, members=members)
        if self.confirm not in (True, False):
            raise StudyError(f"confirm {self.confirm!r} is neither true, false nor a ConfirmPlan")
        level = effort_of(self.effort)
        plan = ConfirmPlan(top_k=level.top_k, n_runs=level.n_runs, members=members)
        return plan if self.confirm else None

    def _train_best(
        self, study: TuningStudy, plan: ConfirmPlan | None, observer: Observer | None = None
    ) -> tuple[TrainedWinner, Confirmation | None]:
        """Train the chosen recipe finally."""
        if plan is not None:
            result = confirm(study, plan, observer=observer)
            return train_winner(study, observer), result
        space = study.setup.space
        ranked = rank_finished(study.study, space)
        if not ranked:
            raise StudyError("no trial has finished; give more n_trials or a longer timeout")
        trial = study.study.get_trials(deepcopy=False)[ranked[0]]
        recipe = space.genome(trial.params).decode()
        best_epochs = [run.best_epoch for run in TrialRecord(trial).runs]
        entrant = Entrant(name=f"trial {trial.number}", method="biotune", recipe=recipe)
        final = Contest(study.setup, [entrant]).finish(
            entrant.name, epochs_of_final_run(best_epochs), members=self._members()
        )
        return TrainedWinner(recipe, final.members), None

    # -- predicting ----------------------------------------------------------------------------

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class probabilities.

        Args:
            X: Images as in `fit`.

        Returns:
            (N, n_classes), in the order of ``classes_``; rows add up to 1.

        Raises:
            DataError: If an image cannot be read.
        """
        check_is_fitted(self)
        rows = []
        for prediction in self.exported_.iter_predict(images_of(X, self._scale)):
            if prediction.error is not None:
                raise InputError(prediction.error)
            rows.append(prediction.probabilities)
        if not rows:
            raise InputError("there are no images to predict; 0 sample(s) were given")
        found: NDArray[np.float64] = np.stack(rows).astype(np.float64)
        found /= found.sum(axis=1, keepdims=True)
        return found

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable label of each image, shape (N,), of the type given to `fit`."""
        probabilities = self.predict_proba(X)
        return np.asarray(self.classes_[probabilities.argmax(axis=1)])

    # -- looking -------------------------------------------------------------------------------

    @property
    def cv_results_(self) -> dict[str, NDArray[Any]]:
        """The finished trials, best rank 1, in the order they were made.

        Keys as in scikit-learn's searches: ``params``, ``param_<name>``, ``mean_test_score`` (on
        validation images), ``std_test_score``, ``rank_test_score``, ``mean_fit_time``; and
        ``number``, ``state``, ``role``, ``generation``, ``frozen``, ``trainable_pct``. Runs that
        were cut short leave NaN.
        """
        check_is_fitted(self)
        return results_of(self.study_)

    # -- keeping -------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> Path:
        """Write the fitted classifier as a folder, weights as safetensors.

        The subfolder ``model`` is what ``biotune export`` writes: timm and ``biotune predict`` read
        it. The study is not part of it, nor are storage, callbacks, device and cache folder.

        Args:
            directory: A new or empty folder, or one that `save` has written.

        Returns:
            The folder.

        Raises:
            BioTuneError: If the folder cannot be written or holds something else.
        """
        check_is_fitted(self)
        return keeping.write(
            Path(directory),
            self.exported_,
            {
                "params": keeping.plain(self.get_params(deep=False)),
                "classes": {"dtype": self.classes_.dtype.str, "values": self.classes_.tolist()},
                "scale": self._scale,
                "best_score": self.best_score_,
                "confirmation": self.confirmation_ and self.confirmation_.to_dict(),
                "model_args": self._model_args,
            },
        )

    @classmethod
    def load(cls, directory: str | Path, *, device: str = "auto") -> Self:
        """Read what `save` wrote; nothing is unpickled.

        Args:
            directory: The folder.
            device: Where to predict: ``"auto"``, ``"cpu"``, ``"cuda:N"`` or ``"mps"``.

        Returns:
            A fitted classifier without a study: ``study_`` and ``cv_results_`` are not there.

        Raises:
            ModelError: If the folder is no such classifier, is damaged or of another schema.
        """
        content, exported = keeping.read(Path(directory), device)
        found = cls(**content["params"], device=device)
        found.classes_ = content["classes"]
        found._scale = content["scale"]
        found.best_score_ = content["best_score"]
        found.confirmation_ = content["confirmation"]
        found._model_args = content["model_args"]
        found.exported_ = exported
        assert exported.recipe is not None  # `load_exported` insists on it
        found.recipe_ = exported.recipe
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "storage" and type(value) is str:
            value = _StorageURL(value)
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "study_" in state:  # the storage may be a live connection
            state["study_"] = snapshot(state["study_"])
        return state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True  # a list of files
        tags.non_deterministic = self.random_state is None
        return tags


class _StorageURL(str):
    """A URL whose password is not shown where scikit-learn shows parameters."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(scrub(str(self)))


def _with(
    fields: Mapping[str, Any], more: Mapping[str, Any] | None, kind: type, name: str
) -> dict[str, Any]:
    """Add the user's further fields, which must be known and not parameters of their own."""
    known = {field.name for field in dataclasses.fields(kind)}
    for key in more or {}:
        if key not in known:
            raise StudyError(f"{name} has {key!r}, which is no field of {kind.__name__}")
        if key in fields:
            raise StudyError(f"{name} has {key!r}, which {kind.__name__} gets from elsewhere")
    return dict(fields) | dict(more or {})


@contextlib.contextmanager
def _cache_folder(given: str | Path | None) -> Iterator[str | Path]:
    """Give the folder of decoded images; one for this call alone where none is given."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="biotune-") as folder:
        yield folder


def _exported(
    study: TuningStudy, winner: TrainedWinner, confirmed: Confirmation | None
) -> Predictor:
    """Return the networks of the winner, on their own, with what belongs to them."""
    setup = study.setup
    model, *members = setup.trainer.networks(winner.members)
    trusted = {} if confirmed is None else calibrations(study, confirmed)
    return Predictor(
        model,
        members=members,
        weights=winner.weights,
        calibration=trusted.get("members" if members else "single"),
        name=setup.loaded.name,
        classes=setup.classes,
        preprocessing=preprocessing_of(setup, () if confirmed is None else confirmed.views),
        recipe=winner.recipe,
        device=setup.trainer.device,
    )
