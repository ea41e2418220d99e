"""A page as one HTML file that needs nothing else: style, plotly itself, figures as data."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING

from biotune_optuna._version import __version__
from biotune_optuna.page.parts import TEMPLATES

if TYPE_CHECKING:
    from biotune_optuna.page.parts import Part


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
    return TEMPLATES.get_template("page.html").render(
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
