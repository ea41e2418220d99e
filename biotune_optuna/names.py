"""Names that come from other people: of classes, files and studies."""

from __future__ import annotations

import unicodedata


def control_characters(text: str) -> bool:
    r"""Whether a name holds characters that no name needs: line ends, escapes and the like.

    Args:
        text: Such as a file's or a class's name.
    """
    return any(unicodedata.category(character) == "Cc" for character in text)
