"""A page as one HTML file that needs nothing else: style, plotly itself, figures as data."""

from __future__ import annotations

from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING

from biotune_optuna._version import __version__
from biotune_optuna.errors import StudyError
from biotune_optuna.files import replace_text
from biotune_optuna.page.parts import render

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from biotune_optuna.page.parts import Part

__all__ = ["document", "replace_file"]


def document(
    heading: str, parts: Iterable[Part], *, eyebrow: str, title: str = "", below: str = ""
) -> str:
    """Return a page that needs nothing else, not even a network.

    Args:
        heading: The page's heading.
        parts: What is on the page.
        eyebrow: A line above the heading that says what kind of page this is.
        title: Title of the window; default the heading.
        below: A line below the heading.
    """
    from plotly.offline import get_plotlyjs

    assets = resources.files("biotune_optuna.page") / "assets"
    return render(
        (assets / "page.html").read_text("utf-8"),
        title=title or heading,
        heading=heading,
        eyebrow=eyebrow,
        below=below,
        parts=parts,
        when=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        version=__version__,
        css=(assets / "page.css").read_text("utf-8"),
        script=(assets / "page.js").read_text("utf-8"),
        plotly=get_plotlyjs(),
    )


def replace_file(target: Path, text: str) -> Path:
    """Write a file so that a reader sees the old one or the new one.

    Args:
        target: The file; its folder is made where it is missing.
        text: Its content.

    Returns:
        The file.

    Raises:
        StudyError: If it cannot be written; an earlier file is as it was.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_text(target, text)
    except OSError as error:
        raise StudyError(
            f"{str(target)!r} cannot be written ({error.strerror or error});"
            " give a path in a folder you may write to"
        ) from error
    return target
