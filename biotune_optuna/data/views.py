"""How an image is shown to a network that predicts: as it is, and in other views besides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

VIEWS: Final = {"mirror": "mirrored", "zoom": "with its middle enlarged"}
"""Views besides the image as it is, and how a reader calls them."""

_EDGE = 16  # a sixteenth of each side is left out at either end: the middle 7/8 are enlarged


def shown(batch: torch.Tensor, view: str) -> torch.Tensor:
    """Return images as a view shows them.

    Args:
        batch: Images, (n, 3, H, W).
        view: ``"mirror"``: left and right exchanged. ``"zoom"``: the middle 7/8 of each side,
            enlarged to the whole. Any other name: as they are.
    """
    if view == "mirror":
        return batch.flip(3)
    if view == "zoom":
        from torch.nn.functional import interpolate

        height, width = batch.shape[2:]
        top, left = height // _EDGE, width // _EDGE
        middle = batch[:, :, top : height - top, left : width - left]
        return interpolate(middle, size=(height, width), mode="bilinear", align_corners=False)
    return batch


def is_views(views: object) -> bool:
    """Whether this is a list of known views, each once."""
    return (
        isinstance(views, Sequence)
        and not isinstance(views, str)
        and all(isinstance(one, str) and one in VIEWS for one in views)
        and len(set(views)) == len(views)
    )


def views_words(views: Sequence[str]) -> str:
    """Return the views in words: ``"as it is, mirrored and with its middle enlarged"``."""
    *first, last = ["as it is", *(VIEWS[view] for view in views)]
    return f"{', '.join(first)} and {last}" if first else last
