"""Optimisers and schedules by name, through timm's factories."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import torch

from biotune_optuna.errors import BioTuneError
from biotune_optuna.models.states import one_line

if TYPE_CHECKING:
    from biotune_optuna.finetune.settings import TrainSettings


# torch's own optimisers that have a fused kernel; timm's names for them
_FUSED = ("adam", "adamw", "sgd", "nesterov", "momentum")
_SECOND_ORDER = ("adahessian",)  # would need a gradient of the gradient
_FUSED_DEVICES = ("cpu", "cuda", "mps")
_WARMUP_START = 0.01


def build_optimizer(
    groups: list[dict[str, Any]], name: str, device: torch.device
) -> torch.optim.Optimizer:
    """Build an optimiser over a recipe's parameter groups.

    Groups of one rate and one weight decay become one, so that fused kernels run once for all.

    Args:
        groups: Parameter groups with their own ``lr`` and ``weight_decay``; those with ``joins``
            are kept apart, for they have no optimiser state where others have.
        name: A name known to timm's factory.
        device: Where the parameters live; decides whether a fused kernel is used.

    Raises:
        BioTuneError: If the name is unknown, or the optimiser needs what is not here.
    """
    check_optimizer(name)
    create: Any = _timm("optim").create_optimizer_v2
    fused = {"fused": True} if name.lower() in _FUSED and device.type in _FUSED_DEVICES else {}
    alike: dict[tuple[float, float, bool], list[torch.nn.Parameter]] = {}
    for group in groups:
        key = (group["lr"], group["weight_decay"], group.get("joins", False))
        alike.setdefault(key, []).extend(group["params"])
    merged = [{"params": p, "lr": lr, "weight_decay": wd} for (lr, wd, _), p in alike.items()]
    # every group states its rate; this one is timm's required default and is never used
    try:
        optimizer: torch.optim.Optimizer = create(merged, opt=name, lr=groups[0]["lr"], **fused)
    except (AssertionError, ImportError) as error:  # it needs a GPU, or another package
        raise BioTuneError(
            f"optimizer {name!r} cannot be used here: {one_line(error)}; choose another, such as "
            "adamw"
        ) from None
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def put_rates_on(optimizer: torch.optim.Optimizer, device: torch.device) -> torch.Tensor | None:
    """Keep the rates of an optimiser's groups in one tensor on the device, for graphs to read.

    Args:
        optimizer: Its groups' ``lr`` become views of that tensor.
        device: Where its parameters are.

    Returns:
        The rates, (groups,); None where the optimiser has no fused kernel that could read them.
    """
    groups = optimizer.param_groups
    if not all(group.get("fused") for group in groups):
        return None
    # a CPU's kernels read float64, those of CUDA float32
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    rates = torch.tensor([group["lr"] for group in groups], dtype=dtype).to(device)
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = True
    return rates


def with_base(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """Return the optimiser, and the one that it steers, as Lookahead does."""
    base = getattr(optimizer, "_base_optimizer", None)
    return [optimizer] if base is None else [optimizer, *with_base(base)]


def carry_state(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> None:
    """Give a new optimiser what an old one of the same kind remembers.

    That is the state of each parameter that still trains, and what some (LAMB, Adan) keep of a
    whole group, such as the number of its steps; groups of parameters without state keep nothing.
    """
    for before, after in zip(with_base(old), with_base(new), strict=True):
        group_of = {p: group for group in before.param_groups for p in group["params"]}
        for group in after.param_groups:
            kept = [p for p in group["params"] if p in before.state]
            after.state.update({p: before.state[p] for p in kept})
            known = [p for p in group["params"] if p in group_of]
            for key, value in (group_of[known[0]] if known else {}).items():
                group.setdefault(key, value)


def check_optimizer(name: str) -> None:
    """Refuse an optimiser that timm does not know.

    Raises:
        BioTuneError: If the name is unknown.
    """
    known = [str(n) for n in _timm("optim").list_optimizers() if n not in _SECOND_ORDER]
    if name.lower().split("_")[-1] not in known:
        raise BioTuneError(f"optimizer {name!r} is not one that timm knows: {', '.join(known)}")


def _timm(module: str) -> Any:
    """Return a timm module, seen as untyped: its exports are not declared."""
    return importlib.import_module(f"timm.{module}")


class Schedule:
    """The factor by which a schedule multiplies every group's own rate.

    timm's scheduler runs on a stand-in optimiser of rate 1 and only its factor is used: groups may
    come and go during a run, and no scheduler rescales a rate that a recipe has set.

    Args:
        settings: Names the schedule, its length, warm-up and interval.
        steps_per_epoch: Optimiser steps of an epoch.
    """

    def __init__(self, settings: TrainSettings, steps_per_epoch: int) -> None:
        self._by_epoch = settings.schedule_interval == "epoch"
        self._steps = steps_per_epoch
        self._stand_in = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        self._scheduler = _timm_scheduler(self._stand_in, settings, steps_per_epoch)

    def factor(self, epoch: int, step: int) -> float:
        """Return the factor at a step.

        Args:
            epoch: Counted from 0.
            step: Step within the epoch, counted from 0.
        """
        if self._scheduler is None:
            return 1.0
        if self._by_epoch:
            self._scheduler.step(epoch)
        else:
            self._scheduler.step_update(epoch * self._steps + step)
        return float(self._stand_in.param_groups[0]["lr"])

    def apply(
        self,
        optimizer: torch.optim.Optimizer,
        epoch: int,
        step: int,
        rates: torch.Tensor | None = None,
    ) -> None:
        """Set every group's ``lr`` to its ``initial_lr`` times the `factor` at a step.

        Args:
            optimizer: The optimiser.
            epoch: Counted from 0.
            step: Step within the epoch, counted from 0.
            rates: The tensor that holds the rates, where `put_rates_on` has put them into one.
        """
        factor = self.factor(epoch, step)
        groups = optimizer.param_groups
        if rates is not None:
            values = torch.tensor([g["initial_lr"] * factor for g in groups], dtype=rates.dtype)
            rates.copy_(values, non_blocking=rates.device.type == "cuda")
            return
        for group in groups:
            group["lr"] = group["initial_lr"] * factor


def _timm_scheduler(
    stand_in: torch.optim.Optimizer, settings: TrainSettings, steps_per_epoch: int
) -> Any:
    if settings.schedule == "constant" and not settings.warmup_epochs:
        return None
    epochs = settings.schedule_epochs or settings.epochs
    name, extra = {
        "constant": ("step", {"decay_rate": 1.0, "decay_epochs": epochs}),
        "linear": ("poly", {"decay_rate": 1.0}),  # timm calls the polynomial's power decay_rate
        "step": ("step", {"decay_rate": 0.1, "decay_epochs": math.ceil(epochs / 3)}),
    }.get(settings.schedule, (settings.schedule, {}))
    scheduler, _ = _timm("scheduler").create_scheduler_v2(
        stand_in,
        sched=name,
        num_epochs=epochs,
        warmup_epochs=settings.warmup_epochs,
        warmup_lr=_WARMUP_START,
        step_on_epochs=settings.schedule_interval == "epoch",
        updates_per_epoch=steps_per_epoch,
        **extra,
    )
    return scheduler
