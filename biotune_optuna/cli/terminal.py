r"""A terminal is shown text only: names come from databases and folders of other people.

An escape sequence in a study's name could clear the screen, set the title or fill the clipboard
with a command. So while a command runs, standard output and standard error show control characters
as Python writes them, ``\x1b``. Only the live display, whose texts are made here, writes to the
terminal itself.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import Any, TextIO

import click

# All control characters but tab and the ends of lines; what turns the direction of text round; and
# what takes no space, but for the two joiners that Persian, Hindi and pictures are written with.
_CONTROLS = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\xad\\u061c\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e"
    "\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb\\U000e0000-\\U000e007f]|\\r(?!\\n)"
)


def visible(text: str) -> str:
    """Return a text with its control characters written out; line ends and tabs stay.

    Args:
        text: Any text.
    """
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def say(text: str, *, err: bool = False, indent: str = "") -> None:
    """Print a sentence, broken at words where a terminal shows it; elsewhere it is one line.

    Not for what somebody copies, such as a path or a command: a break would become part of it.

    Args:
        text: One paragraph.
        err: Print to standard error.
        indent: What lines after the first begin with.
    """
    stream = sys.stderr if err else sys.stdout
    if stream.isatty():
        wide = max(40, shutil.get_terminal_size().columns)
        text = textwrap.fill(
            text, wide, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    click.echo(text, err=err)


def one_line(text: str) -> str:
    r"""Return a text as `visible` does, its line ends and tabs written out too.

    Args:
        text: Such as a name, which could else show lines of its own.
    """
    return visible(re.sub(r"[\n\r\t]", lambda found: ascii(found[0])[1:-1], text))


class PlainStream:
    """A text stream that writes control characters out; all else is the stream's own.

    What its encoding lacks is written out too. It has no ``buffer``, past which bytes could go.

    Args:
        stream: Where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write a text, made visible; return its length."""
        self.stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
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
