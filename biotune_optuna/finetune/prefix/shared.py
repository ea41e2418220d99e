"""Several networks that begin alike, as one: what they have in common runs once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from biotune_optuna.finetune.prefix.cut import CHECKED_IMAGES, close, find_cut
from biotune_optuna.models.states import all_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from biotune_optuna.finetune.prefix.cut import PrefixCut
    from biotune_optuna.recipe import BlockLike


def mean_probabilities(
    members: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    weights: Sequence[float] = (),
) -> NDArray[np.float32]:
    """Return the mean of what several networks predict.

    Args:
        members: Probabilities of each, (n, C).
        weights: How much each counts; none where all count alike.

    Returns:
        (n, C).
    """
    mean: NDArray[np.float64] = np.mean(members, axis=0, dtype=np.float64)
    if weights:
        mean = np.average(np.asarray(members, dtype=np.float64), axis=0, weights=weights)
    return mean.astype(np.float32)


def differing(networks: Sequence[nn.Module]) -> set[str]:
    """Return the names of parameters and buffers that are not equal in all networks.

    Args:
        networks: Networks of one architecture.
    """
    first, *others = map(all_tensors, networks)
    return {
        name
        for name, tensor in first.items()
        for other in others
        if other[name] is not tensor and not torch.equal(other[name], tensor)
    }


@dataclass(eq=False)
class SharedPrefix:
    """Networks whose first blocks are equal: these run once, the rest of each in turn.

    Safe to call from several threads, which take turns.

    Attributes:
        networks: The networks, in eval mode.
        blocks: How many leading blocks run once; 0 where the networks run apart.
        cuts: Where each network is cut behind them; empty where they run apart.
    """

    networks: Sequence[nn.Module]
    blocks: int
    cuts: Sequence[PrefixCut]

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    @classmethod
    def find(
        cls,
        networks: Sequence[nn.Module],
        blocks: Sequence[BlockLike],
        sample: Callable[[int], torch.Tensor],
    ) -> SharedPrefix:
        """Look for the longest beginning that networks have in common and can be cut behind.

        A cut is taken only where each network gives the same logits with it as without.

        Args:
            networks: Networks of one architecture, in eval mode.
            blocks: Their blocks, in order.
            sample: Gives that many images, (n, 3, H, W), on the networks' device.
        """
        other = differing(networks)
        names = [{*block.parameter_names, *block.buffer_names} for block in blocks]
        common = next((i for i, held in enumerate(names) if held & other), len(blocks) - 1)
        for length in range(min(common, len(blocks) - 1), 0, -1):
            behind = set().union(*names[length:])
            cuts = [find_cut(network, behind, sample) for network in networks]
            found = [cut for cut in cuts if cut is not None]
            if len(found) == len(networks) and _agree(found, sample(CHECKED_IMAGES)):
                return cls(networks, length, found)
        return cls(networks, 0, ())

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of every network, (n, k, C).

        Args:
            images: (n, 3, H, W).
        """
        with self._lock:
            if not self.cuts:
                return torch.stack([network(images) for network in self.networks], dim=1)
            features = self.cuts[0].prefix(images)
            found = []
            for cut in self.cuts:
                with cut.installed() as suffix:
                    # a suffix may work in place
                    found.append(suffix(tuple(feature.clone() for feature in features)))
            return torch.stack(found, dim=1)

    def passes(self, image: torch.Tensor) -> float:
        """Return what one image costs, in passes of it through one network.

        Counted are the multiplications of convolutions and matrices.

        Args:
            image: (1, 3, H, W).
        """
        k = len(self.networks)
        if not self.cuts:
            return float(k)
        with self._lock, torch.no_grad():
            whole = _work(lambda: self.networks[0](image))
            prefix = _work(lambda: self.cuts[0].prefix(image))
        return 1 + (k - 1) * (1 - prefix / whole) if whole else float(k)


def _agree(cuts: Sequence[PrefixCut], images: torch.Tensor) -> bool:
    """Whether each network, behind the first one's prefix, gives the logits of the whole."""
    with torch.no_grad():
        features = cuts[0].prefix(images)
        for cut in cuts:
            whole = cut.model(images)
            try:
                with cut.installed() as suffix:
                    logits = suffix(tuple(feature.clone() for feature in features))
            except RuntimeError:  # code between modules that cannot work on dummies
                return False
            if not close(whole, logits):
                return False
    return True


def _work(run: Callable[[], object]) -> int:
    """Return how many operations of convolutions and matrices a call makes."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
