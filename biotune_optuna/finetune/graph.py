"""One optimiser step on a full batch, recorded as a CUDA graph and replayed.

The CPU takes longer to ask for a step of a small network, kernel by kernel, than the GPU takes to
compute it. A graph asks for all kernels at once. It reads its batch from fixed places in memory, so
each batch is copied there first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch

from biotune_optuna.finetune.device import release_memory
from biotune_optuna.models.states import one_line

if TYPE_CHECKING:
    from biotune_optuna.finetune.prefix.cut import Features

    Work = Callable[[], torch.Tensor]
    Mass = float | torch.Tensor

_log = logging.getLogger("biotune_optuna.finetune")

WARM_UP = 3
"""Full steps made as they are before one is recorded: by then all that is lazy has been set up."""

WORTH = 30
"""Full steps that a run must have in all; recording one takes as long as several."""


class Recorder(Protocol):
    """Runs work, or records it to be run again."""

    def run(self, work: Work) -> torch.Tensor:
        """Do the work once."""

    def record(self, work: Work) -> Work:
        """Return what does the work again, in the same places of memory, and returns its result."""


class CudaRecorder:
    """Records work as a CUDA graph, on a stream of its own, as PyTorch asks for.

    Args:
        device: The card.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, work: Work) -> torch.Tensor:
        """Do the work once on the stream of the recorder, between what is asked for elsewhere."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            found = work()
        current.wait_stream(self._stream)
        return found

    def record(self, work: Work) -> Work:
        """Return the replay of a graph of the work, whose result is the same tensor each time.

        Raises:
            RuntimeError: If something in the work cannot be recorded. Nothing of it was done.
        """
        generator = torch.cuda.default_generators[self._device.index or 0]
        before = generator.clone_state()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=self._stream):
                found = work()
        except (RuntimeError, AssertionError):
            generator.graphsafe_set_state(before)  # or it would wait for the end of the recording
            raise

        def replay() -> torch.Tensor:
            graph.replay()
            return found

        return replay


def recorder_for(device: torch.device) -> Recorder | None:
    """Return what records steps on a device; None where that is not to be had."""
    return CudaRecorder(device) if device.type == "cuda" else None


class RecordedStep:
    """A step that is recorded when it is first called, and replayed from then on.

    Attributes:
        failed: Whether it could not be recorded. It is then made as it is.

    Args:
        step: Forward pass, backward pass and optimiser of one batch; maps inputs, targets and the
            divisor of the summed loss to the loss.
        recorder: Records it.
        device: Where it runs.
    """

    def __init__(
        self,
        step: Callable[[Features, torch.Tensor, Mass], torch.Tensor],
        recorder: Recorder,
        device: torch.device,
    ) -> None:
        self._step, self._recorder, self._device = step, recorder, device
        self.failed = False
        self._places: list[torch.Tensor] = []
        self._replay: Work | None = None

    def __call__(self, inputs: Features, targets: torch.Tensor, mass: Mass) -> torch.Tensor:
        """Make the step.

        Args:
            inputs: What the network gets, tensors of n rows; of the same shapes each time.
            targets: Labels (n,) or class probabilities (n, C).
            mass: What the summed loss is divided by: the same number each time, or a tensor.
        """
        given = [*inputs, targets, *([mass] if isinstance(mass, torch.Tensor) else [])]
        if self._replay is None:
            self._places = [torch.empty_like(tensor) for tensor in given]
        for place, tensor in zip(self._places, given, strict=True):
            place.copy_(tensor)
        if self._replay is None:
            self._replay = self._record(len(inputs), mass)
        return self._replay()

    def _record(self, n_inputs: int, mass: Mass) -> Work:
        inputs, (targets, *masses) = tuple(self._places[:n_inputs]), self._places[n_inputs:]
        divisor = masses[0] if masses else mass

        def work() -> torch.Tensor:
            return self._step(inputs, targets, divisor)

        try:
            return self._recorder.record(work)
        except (RuntimeError, AssertionError) as error:
            _log.info(
                "steps of this network cannot be recorded, and are made one by one: %s",
                one_line(error),
            )
        self.failed = True
        release_memory(self._device)
        return work
