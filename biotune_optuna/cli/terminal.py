r"""A terminal is shown text only: names come from databases and folders of other people.

An escape sequence in a study's name could clear the screen, set the title or fill the clipboard
with a command. So while a command runs, standard output and standard error show control characters
as Python writes them, ``\x1b``. Only the live display, whose texts are made here, writes to the
terminal itself.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

# All control characters but tab and the ends of lines; and what turns the direction of text round.
_CONTROLS = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]|\\r(?!\\n)"
)


def visible(text: str) -> str:
    """Return a text with its control characters written out; line ends and tabs stay.

    Args:
        text: Any text.
    """
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


class PlainStream:
    """A text stream that writes control characters out; all else is the stream's own.

    Args:
        stream: Where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text, made visible; return its length."""
        self.stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def show_text_only() -> None:
    """Let standard output and standard error of this process show text only, from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, PlainStream):
            setattr(sys, name, PlainStream(stream))


def terminal_of(stream: TextIO) -> TextIO:
    """Return the stream itself, for a display that moves the cursor.

    Args:
        stream: Standard output or standard error, as it is now.
    """
    return stream.stream if isinstance(stream, PlainStream) else stream
