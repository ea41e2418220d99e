"""Class probabilities, with as many images at once as memory holds."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from biotune_optuna.errors import BioTuneError
from biotune_optuna.finetune.device import autocast, out_of_memory, release_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]

__all__ = ["probabilities"]

_log = logging.getLogger("biotune_optuna.finetune")


def probabilities(
    forward: Callable[[Indices], torch.Tensor],
    idx: Indices,
    batch_size: int,
    device: torch.device,
    amp: torch.dtype | None,
) -> tuple[NDArray[np.float32], int]:
    """Class probabilities of images, in inference mode.

    Args:
        forward: Maps positions of images to logits.
        idx: Positions, (n,).
        batch_size: Images at once; half as many, again and again, where memory runs out.
        device: Where the network lives.
        amp: Autocast type or None.

    Returns:
        (n, C), in the order of ``idx``; and how many images at once fitted.

    Raises:
        BioTuneError: If memory runs out with a single image.
    """
    while True:
        try:
            with torch.inference_mode(), autocast(device, amp):
                found = [
                    forward(idx[start : start + batch_size]).float().softmax(dim=1)
                    for start in range(0, len(idx), batch_size)
                ]
                return torch.cat(found).cpu().numpy(), batch_size
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # outside the handler: the error's traceback would keep the tensors alive
        held = min(batch_size, len(idx))
        if held == 1:
            raise BioTuneError(
                "memory ran out with 1 image at once; use a smaller model or image size"
            )
        batch_size = held // 2
        _log.warning("memory ran out with %d images at once; going on with %d", held, batch_size)
        release_memory(device)
