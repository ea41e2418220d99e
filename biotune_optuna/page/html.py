"""The shell of a self-contained HTML page: style, plotly itself, figures as data."""

from __future__ import annotations

import html as html_escape
import re
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING

from biotune_optuna._version import __version__
from biotune_optuna.errors import StudyError
from biotune_optuna.files import replace_text
from biotune_optuna.page.style import at_height

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import plotly.graph_objects as go

__all__ = ["document", "figure_html", "replace_file"]


def document(title: str, body: Iterable[str]) -> str:
    """Return a page that needs nothing else, not even a network.

    Args:
        title: Title of the window, unescaped.
        body: Parts of the page, as HTML.
    """
    from plotly.offline import get_plotlyjs

    assets = resources.files("biotune_optuna.report") / "assets"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{html_escape.escape(title)}</title>",
            f"<style>{(assets / 'report.css').read_text('utf-8')}</style></head><body><main>",
            *body,
            f"<footer>Written {datetime.now().astimezone():%Y-%m-%d %H:%M %Z} by biotune-optuna"
            f" {__version__}.</footer></main>",
            "<noscript><p>The figures need JavaScript; all results are in the tables too.</p>"
            "</noscript>",
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{(assets / 'report.js').read_text('utf-8')}</script>",
            "</body></html>",
        ]
    )


def figure_html(identity: str, caption: str, figure: go.Figure) -> str:
    """Return a figure: title as a heading, data as JSON that cannot end the script element."""
    title = html_escape.unescape(re.sub(r"<[^>]*>", " ", figure.layout.title.text or ""))
    figure.update_layout(title=None)
    at_height(figure, figure.layout.height, title_lines=0)
    data = str(figure.to_json()).replace("<", "\\u003c")
    return (
        f'<figure id="figure-{identity}"><h3>{html_escape.escape(title)}</h3>'
        f'<div class="plot" id="{identity}"></div>'
        f'<script type="application/json" id="{identity}-data">{data}</script>'
        f"<figcaption>{html_escape.escape(caption)}</figcaption></figure>"
    )


def replace_file(target: Path, text: str) -> Path:
    """Write a file so that a reader sees the old one or the new one."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_text(target, text)
    except OSError as error:
        raise StudyError(
            f"{str(target)!r} cannot be written ({error.strerror or error});"
            " give a path in a folder you may write to"
        ) from error
    return target
