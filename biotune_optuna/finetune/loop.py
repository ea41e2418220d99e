"""One run: the training loop itself."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn.modules.batchnorm import _NormBase

from biotune_optuna.data.transfer import to_device
from biotune_optuna.errors import BioTuneError
from biotune_optuna.finetune import metrics
from biotune_optuna.finetune.batches import parts
from biotune_optuna.finetune.device import (
    PeakMemory,
    autocast,
    kind_of,
    out_of_memory,
    release_memory,
    rewinder,
    tried_out,
    with_less,
)
from biotune_optuna.finetune.feeds import probabilities
from biotune_optuna.finetune.graph import WARM_UP, WORTH, RecordedStep, recorder_for
from biotune_optuna.finetune.hooks import Hooks
from biotune_optuna.finetune.lowrank import LowRank
from biotune_optuna.finetune.optim import (
    Schedule,
    build_optimizer,
    carry_state,
    put_rates_on,
    with_base,
)
from biotune_optuna.finetune.results import EpochRecord, RunResult, StopTraining
from biotune_optuna.models.states import copy_into

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from biotune_optuna.finetune.batches import BatchSampler, Indices, Loss
    from biotune_optuna.finetune.feeds import Feed
    from biotune_optuna.finetune.graph import Mass
    from biotune_optuna.finetune.prefix.cut import Features
    from biotune_optuna.finetune.settings import TrainSettings
    from biotune_optuna.recipe import Recipe

    OnEpoch = Callable[[EpochRecord], object]


_log = logging.getLogger("biotune_optuna.finetune")

EXPLODED = 1e4
"""A mean batch loss above this counts as diverged: the right class then has log-probability -1e4,
which no schedule repairs."""

_CHECK_EVERY = 20  # steps between looks at the loss where a look makes the device wait
_GRADIENT_SCALE = 2.0**10  # keeps float16 gradients of a look from vanishing
_SAMPLE_EVERY = 5  # epochs between looks at the memory in use
_SMALLEST_BATCH = 2
_MOST_RECORDINGS = 4  # of one run: some methods begin a new optimiser each epoch


class _BatchNorm(NamedTuple):
    """A layer whose statistics are those of an epoch, and the momentum of its own."""

    module: _NormBase
    momentum: float | None


class _Average:
    """An exponential average of tensors, to be put in their place and taken out again.

    Args:
        tensors: What training changes; none for no average.
        decay: The average's.
    """

    def __init__(self, tensors: Iterable[torch.Tensor], decay: float) -> None:
        self._decay = decay
        self._tensors = [t.detach() for t in tensors if t.is_floating_point()]
        self._mean = [t.clone() for t in self._tensors]
        self._own: list[torch.Tensor] = []
        self._steps = 0

    def add(self) -> None:
        """Count what a step left."""
        if self._tensors:
            decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
            self._steps += 1
            torch._foreach_lerp_(self._mean, self._tensors, 1.0 - decay)

    def put_in(self) -> None:
        """Give the model the average, and keep what it had."""
        if self._tensors:
            self._own = [t.clone() for t in self._tensors]
            torch._foreach_copy_(self._tensors, self._mean)

    def take_out(self) -> None:
        """Give the model back what it had."""
        if self._own:
            torch._foreach_copy_(self._tensors, self._own)


class _Diverged(Exception):  # noqa: N818 - ends a run, is no failure
    pass


@dataclass(eq=False)
class Held:
    """Images at once that memory has sufficed for; a trainer's runs of one kind share it.

    Attributes:
        training: In a forward and backward pass.
        evaluating: In validation, where there are no gradients.
    """

    training: int
    evaluating: int


@dataclass(eq=False)
class Run:
    """One training of one model, from its reset weights on.

    Attributes:
        model: The network, on its device.
        recipe: Which blocks train, and how fast.
        settings: How to train.
        feed: From images to logits.
        sampler: Which images make a batch.
        loss: Cross-entropy of the run.
        labels: Labels of all images, (N,).
        n_classes: Number of classes.
        val_idx: Positions of the validation images, or None.
        hooks: What a method does differently.
        amp: Autocast type or None.
        held: Images at once to begin with; less where memory runs out.
        seed: Seed of the first values of low-rank factors.
    """

    model: nn.Module
    recipe: Recipe
    settings: TrainSettings
    feed: Feed
    sampler: BatchSampler
    loss: Loss
    labels: Indices
    n_classes: int
    val_idx: Indices | None
    hooks: Hooks
    amp: torch.dtype | None
    held: Held
    seed: int = 0

    def __post_init__(self) -> None:
        self.optimizer: torch.optim.Optimizer
        self._rates: torch.Tensor | None = None
        self.device = next(self.model.parameters()).device
        self._on_cpu = self.device.type == "cpu"
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp is torch.float16)
        self._recorder = recorder_for(self.device) if self._may_record() else None
        self._recorded: RecordedStep | None = None
        self._recordings = 0
        self._records = False  # whether this epoch's full steps are worth recording
        self._full_steps = 0  # made with this optimiser
        self._best: dict[str, torch.Tensor] = {}
        self._low_rank = LowRank(self.seed)
        self._average = _Average((), 0.0)
        self._norms: list[_BatchNorm] = []
        self._seen = 0  # forward passes of the epoch
        self._memory = PeakMemory(self.device)
        self._schedule: Schedule | None = None
        self._epoch_start = 0.0
        self._probabilities: NDArray[np.float32] | None = None
        self.result = RunResult(score=math.nan, device=kind_of(self.device, self.amp))

    # -- for hooks -------------------------------------------------------------------------------

    def use_groups(self, groups: list[dict[str, Any]]) -> None:
        """Start a new optimiser, without memory, over these groups."""
        self._low_rank = LowRank(self.seed)
        groups = self._low_rank.groups(groups)
        self.optimizer = build_optimizer(groups, self.settings.optimizer, self.device)
        # also for steps made one by one, or they would round otherwise than recorded ones
        on_device = self.device.type == "cuda" or self._recorder is not None
        self._rates = put_rates_on(self.optimizer, self.device) if on_device else None
        self._recorded, self._full_steps = None, 0

    def use_recipe(self, recipe: Recipe) -> None:
        """Train by another recipe from here on.

        Parameters that go on training keep their optimiser state; newly freed ones join with none.
        """
        old = self.optimizer
        known = set().union(*(one.state for one in with_base(old)))
        groups = []
        for group in recipe.apply(self.model):  # fused kernels want all of a group in one state
            for joins in (False, True):
                params = [p for p in group["params"] if (p not in known) == joins]
                groups += [{**group, "params": params, "joins": joins}] if params else []
        self.use_groups(groups)
        carry_state(old, self.optimizer)
        self.recipe = recipe
        self._find_modes()
        self._count_parameters()

    def gradients(self, idx: Indices) -> None:
        """Leave the gradient of the mean loss over a batch in the parameters; charged."""
        with_less(lambda: self._gradients(idx), lambda: self._halve(len(idx)))

    def _gradients(self, idx: Indices) -> None:
        self.model.zero_grad(set_to_none=True)
        scale = _GRADIENT_SCALE if self._scaler.is_enabled() else 1.0
        for part, mass in self._portions(idx):
            loss = self._loss(*self.feed.inputs(part), mass)
            (scale * loss).backward()  # type: ignore[no-untyped-call]
            self.result.images_forward += len(part)
            self.result.images_backward += len(part)
        if scale != 1.0:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= scale

    # -- the run ---------------------------------------------------------------------------------

    def fit(
        self, epochs: int, on_epoch: OnEpoch | None = None, *, keep_weights: bool = False
    ) -> RunResult:
        """Train.

        Args:
            epochs: Most epochs.
            on_epoch: Told of each epoch; may raise `StopTraining`.
            keep_weights: Whether the best epoch's weights are put back at the end, where there are
                validation images.
        """
        result = self.result
        self._epochs = epochs
        self.use_groups(self.hooks.groups(self))
        self._find_modes()
        self._count_parameters()
        if self.settings.ema:
            self._average = _Average(self._changing().values(), self.settings.ema)
        try:
            for epoch in range(epochs):
                record = self._epoch(epoch)
                result.epochs.append(record)
                better = result.best_epoch == 0 or record.score > result.score
                if self.val_idx is None or better:
                    result.score, result.best_epoch = record.score, record.epoch
                    result.probabilities = probs = self._probabilities
                    result.predictions = None if probs is None else probs.argmax(1)
                    if keep_weights and self.val_idx is not None:
                        self._remember()
                if on_epoch is not None:
                    on_epoch(record)
                if self._out_of_patience(epoch):
                    result.stopped = "patience"
                    break
            if self.val_idx is None:
                self._check_weights()
        except _Diverged:
            self._end_diverged()
        except StopTraining:
            result.stopped = "callback"
        finally:
            self._recorded = None  # a graph holds the memory of a whole step
            self._set_momentum(None)
        copy_into(self.model, self._best)
        result.peak_memory_mb = self._memory.megabytes
        result.batch_size = self.held.training
        return result

    def _out_of_patience(self, epoch: int) -> bool:
        patience = self.settings.patience
        if self.val_idx is None or patience is None:
            return False
        return epoch + 1 - max(self.result.best_epoch, self.hooks.patient_until) >= patience

    def _check_weights(self) -> None:
        """Look at what the last step left, which no loss has seen without validation images."""
        finite = [p.detach().isfinite().all() for p in self.model.parameters()]
        if not bool(torch.stack(finite).all()):
            raise _Diverged

    def _end_diverged(self) -> None:
        result = self.result
        result.score = metrics.worst(self.settings.metric)
        result.best_epoch, result.predictions, result.probabilities = 0, None, None
        result.diverged, result.stopped = True, "diverged"
        elapsed = time.perf_counter() - self._epoch_start
        result.epochs.append(EpochRecord(len(result.epochs) + 1, math.nan, result.score, elapsed))

    def _epoch(self, epoch: int) -> EpochRecord:
        self._epoch_start = time.perf_counter()
        self._average.take_out()
        self._set_training(training=True)
        self.hooks.before_epoch(self, epoch)
        self._seen = 0  # what a hook looks at is no part of an epoch's statistics
        self.feed.begin_epoch(epoch)
        train_loss = self._train(epoch)
        self._average.put_in()
        value = math.nan if self.val_idx is None else self._validate(self.val_idx)
        seconds = time.perf_counter() - self._epoch_start
        _log.debug("epoch %d: loss %.4f, score %.4f", epoch + 1, train_loss, value)
        return EpochRecord(epoch + 1, train_loss, value, seconds)

    def _train(self, epoch: int) -> float:
        batches = self.sampler.epoch(self.settings.batch_size)
        schedule = self._schedule = self._schedule or Schedule(self.settings, len(batches))
        total = torch.zeros((), device=self.device, dtype=torch.float64 if self._on_cpu else None)
        self._records = self._is_worth_recording(batches)
        for step, idx in enumerate(batches):
            schedule.apply(self.optimizer, epoch, step, self._rates)
            is_full = len(idx) == self.settings.batch_size
            with tried_out(on=is_full and not self._on_cpu):
                if is_full and self._is_recorded():
                    loss = self._replay(idx)
                else:
                    loss = self._step(idx, sample=step == 0 and epoch % _SAMPLE_EVERY == 0)
            self._full_steps += is_full
            total += loss * len(idx)
            if self._on_cpu or step % _CHECK_EVERY == _CHECK_EVERY - 1:
                _check(float(loss))
        mean = float(total) / sum(map(len, batches))
        _check(mean)
        return mean

    # -- steps -----------------------------------------------------------------------------------

    def _may_record(self) -> bool:
        """Whether a step of this run does nothing that a graph could not repeat."""
        return (
            self.settings.cuda_graph == "auto"
            and not self.settings.compile
            and self.amp is not torch.float16  # its scale is looked at after each step
            and type(self.hooks).penalty is Hooks.penalty
            and self.settings.norm_statistics == "running"  # else momentum changes at each step
        )

    def _is_worth_recording(self, batches: list[Indices]) -> bool:
        """Whether the run has so many full steps, and an optimiser whose steps can be recorded."""
        if self._recorder is None or self._rates is None:
            return False
        n_full = sum(len(idx) == self.settings.batch_size for idx in batches)
        again = self._recorded is not None or self._recordings < _MOST_RECORDINGS
        return again and self._epochs * n_full >= WORTH

    def _is_recorded(self) -> bool:
        """Whether the next full step is replayed; has it recorded once it is time to."""
        if self._recorder is None or not self._records:
            return False
        if self._recorded is None:
            fits = self.held.training >= self.settings.batch_size
            if self._full_steps < WARM_UP or not fits:
                return False
            self._recorded = RecordedStep(self._whole_step, self._recorder, self.device)
            self._recordings += 1
        return True

    def _replay(self, idx: Indices) -> torch.Tensor:
        assert self._recorded is not None
        inputs, targets = self.feed.inputs(idx)
        loss = self._recorded(inputs, targets, self._mass(idx))
        if self._recorded.failed:
            self._recorder = None  # from here on as usual, in portions where memory runs out
        self.result.images_forward += len(idx)
        self.result.images_backward += len(idx)
        self._average.add()
        return loss

    def _whole_step(self, inputs: Features, targets: torch.Tensor, mass: Mass) -> torch.Tensor:
        """Make a step on a batch that fits into memory; what a graph records."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(inputs, targets, mass)
        loss.backward()  # type: ignore[no-untyped-call]
        self._advance()
        return loss.detach()

    def _step(self, idx: Indices, *, sample: bool) -> torch.Tensor:
        """Make a step kernel by kernel, in portions where memory does not suffice for the whole."""
        rewind = self._rewinder() if not self.result.images_backward else None

        def less() -> None:
            self._halve(len(idx))
            if rewind is not None:
                rewind()

        def attempt() -> torch.Tensor:
            return self._accumulate(idx, sample=sample)

        if self._recorder is None or not self._records:
            loss = with_less(attempt, less)
        else:  # a recording wants what is lazy set up on its own stream
            loss = self._recorder.run(lambda: with_less(attempt, less))
        try:
            self._advance()
            self._average.add()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise BioTuneError(
                "memory ran out for the optimizer's state; use a smaller model or an optimizer "
                "that keeps less, such as sgd"
            ) from None
        return loss

    def _accumulate(self, idx: Indices, *, sample: bool) -> torch.Tensor:
        """Return the batch's gradient, and its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        self._low_rank.clear()
        total: torch.Tensor | None = None
        for part, mass in self._portions(idx):
            loss = self._loss(*self.feed.inputs(part), mass)
            if sample:
                self._memory.sample()
            self.result.images_forward += len(part)
            objective = loss
            if total is None:
                penalty = self.hooks.penalty(self)
                objective = loss if penalty is None else loss + penalty
            self._scaler.scale(objective).backward()  # type: ignore[no-untyped-call]
            self.result.images_backward += len(part)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _advance(self) -> None:
        """One step of the optimiser; never repeated, for half of a step cannot be taken back."""
        self._low_rank.pull()
        if self.settings.grad_clip is not None:
            self._scaler.unscale_(self.optimizer)
            held = [p for g in self.optimizer.param_groups for p in g["params"]]
            torch.nn.utils.clip_grad_norm_(held, self.settings.grad_clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self._low_rank.push()

    def _portions(self, idx: Indices) -> list[tuple[Indices, Mass]]:
        """Return the batch in portions that fit, each with the whole batch's divisor."""
        mass = self._mass(idx)
        return [(idx[part], mass) for part in parts(len(idx), self.held.training)]

    def _mass(self, idx: Indices) -> Mass:
        """Return the divisor of a batch's summed loss, on the device where a graph must read it."""
        mass = self.loss.mass(self.labels[idx], mixed=self.feed.mixed)
        if self._rates is None or self.loss.is_steady(mixed=self.feed.mixed):
            return mass
        return to_device(torch.tensor(mass, dtype=torch.float32), self.device)

    def _loss(self, inputs: Features, targets: torch.Tensor, mass: Mass) -> torch.Tensor:
        self._seen += 1
        self._set_momentum(1.0 / self._seen)
        with autocast(self.device, self.amp):
            logits = self.feed.logits(inputs)
        return self.loss(logits, targets) / mass

    def _rewinder(self) -> Callable[[], None]:
        """Return what undoes a forward pass: the run then goes as one that began with less."""
        inside = [b for m in self._in_training for b in m.buffers(recurse=False)]
        before = [b.clone() for b in inside]
        draw_again, seen = rewinder(self.device, self.feed.generator), self._seen

        def rewind() -> None:
            self._seen = seen
            with torch.no_grad():
                for buffer, value in zip(inside, before, strict=True):
                    buffer.copy_(value)
            draw_again()

        return rewind

    def _halve(self, n: int) -> None:
        """Hold half as many images; a step still sees its whole batch, in portions."""
        held = min(n, self.held.training)
        if held <= _SMALLEST_BATCH:
            raise BioTuneError(
                f"memory ran out with {held} images at once; use a smaller model or image size"
            )
        self.held.training = fewer = max(_SMALLEST_BATCH, held // 2)
        _log.warning("memory ran out with %d images at once; going on with %d", held, fewer)
        self.optimizer.zero_grad(set_to_none=True)
        self._low_rank.clear()
        release_memory(self.device)

    def _validate(self, idx: Indices) -> float:
        self._set_training(training=False)
        self.optimizer.zero_grad(set_to_none=True)  # their memory is of use here
        probs, self.held.evaluating = probabilities(
            self.feed.evaluate, idx, self.held.evaluating, self.device, self.amp
        )
        self.result.images_forward += len(idx)
        if not np.isfinite(probs).all():
            raise _Diverged
        self._probabilities = probs
        return metrics.score(self.settings.metric, self.labels[idx], probs, self.n_classes)

    # -- modes and weights -----------------------------------------------------------------------

    def _find_modes(self) -> None:
        self.recipe.train_mode(self.model, self.settings.frozen_norm)
        self._in_training = [m for m in self.model.modules() if m.training]
        self._watching = [
            m for m in self._in_training if type(m).train is not torch.nn.Module.train
        ]
        inside = {m for watching in self._watching for m in watching.modules()}
        self._still_inside = inside.difference(self._in_training)
        self._set_momentum(None)
        self._norms = []
        if self.settings.norm_statistics == "epoch":
            self._norms = [
                _BatchNorm(m, m.momentum) for m in self._in_training if isinstance(m, _NormBase)
            ]

    def _set_momentum(self, momentum: float | None) -> None:
        """Let each batch count alike in an epoch's statistics; None puts back what was there."""
        for norm in self._norms:
            norm.module.momentum = norm.momentum if momentum is None else momentum

    def _set_training(self, *, training: bool) -> None:
        """Switch the modules that train between the modes; all others are in eval mode anyway.

        With a cached prefix an epoch takes milliseconds, and walking the whole network by
        `torch.nn.Module.train` would take a fifth of them. Only modules with a ``train`` of their
        own are told: some attentions of timm forget there what they derived from their weights.
        """
        for module in self._watching:
            module.train(training)
        for module in self._still_inside:
            object.__setattr__(module, "training", False)
        for module in self._in_training:
            object.__setattr__(module, "training", training)

    def _count_parameters(self) -> None:
        parameters = list(self.model.parameters())
        self.result.total_parameters = sum(p.numel() for p in parameters)
        training = sum(p.numel() for p in parameters if p.requires_grad) - self._low_rank.n_saved
        # where blocks join on the way, the most that trained at once
        self.result.trainable_parameters = max(self.result.trainable_parameters, training)

    def _changing(self) -> dict[str, torch.Tensor]:
        """Return what training can change, by name."""
        fixed = self.hooks.prefix_is_fixed  # else what is frozen now may train later
        every = self.model.named_parameters()
        trained = ((n, p) for n, p in every if p.requires_grad or not fixed)
        return dict((*trained, *self.model.named_buffers()))

    def _remember(self) -> None:
        """Keep what training can change; called at each new best epoch."""
        changing = self._changing().items()
        self._best = {name: tensor.detach().clone() for name, tensor in changing}


def _check(loss: float) -> None:
    if not math.isfinite(loss) or loss > EXPLODED:
        raise _Diverged
