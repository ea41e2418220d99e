"""A picture made small enough to lie within a page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def thumbnail(picture: Image.Image, side: int = 56) -> str:
    """Return a small JPEG as a data URI.

    Args:
        picture: Any picture; it is not changed.
        side: Longest side in pixels.
    """
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    with io.BytesIO() as buffer:
        small.save(buffer, "JPEG", quality=75)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
