"""The report's plotly figures, one a file: each says what it is called and where it stands.

    import optuna
    from biotune_optuna.report import figures

    study = optuna.load_study(study_name="flowers", storage="sqlite:///biotune.db")
    figures.draw("search-history", study).show()

A figure that has nothing to show raises `NothingToShow`, whose message is one sentence that can be
printed in the figure's place.

A new figure is a new file in this folder, with a function below `StudyFigure`; nothing else has to
know of it. A figure of your own, from outside, is such a function too: the report and the dashboard
have it as soon as it was declared, or without that where an installed package names its module in
the entry point group ``biotune_optuna.figures``.
"""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from biotune_optuna.errors import StudyError
from biotune_optuna.page.parts import Figure
from biotune_optuna.report.sections import CHAPTERS
from biotune_optuna.report.view import NothingToShow, StudyView, as_view

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna import Study

__all__ = ["NothingToShow", "StudyFigure", "all_figures", "draw"]

logger = logging.getLogger(__name__)

ENTRY_POINTS = "biotune_optuna.figures"
"""Group of the entry points by which an installed package adds figures; each names a module."""

Draw = TypeVar("Draw", bound=Callable[..., Any])

_declared: dict[str, StudyFigure] = {}


@dataclass(kw_only=True)
class StudyFigure:
    """A figure about a study: a decorator of the function that draws it.

    The function takes a study's reading, draws, and raises `NothingToShow` where there are no data.

    Attributes:
        name: What it is called, of letters and dashes.
        title: Heading where the drawing has no title of its own.
        caption: How to read it.
        chapter: The chapter of the report that it stands in, a key of
            `biotune_optuna.report.sections.CHAPTERS`.
        place: Figures of a chapter stand in the order of this number.
        dashboard: Its heading in optuna-dashboard, where figures are sorted by it; None: it is not
            shown there. Studies keep what was drawn under this heading, so it must not change.
        dashboard_limits: Arguments of the function that keep the figure small there.
        draw: The function.

    Raises:
        StudyError: If there is no such chapter, or another function has drawn under this name.
    """

    name: str
    title: str
    caption: str
    chapter: str
    place: float
    dashboard: str | None = None
    dashboard_limits: Mapping[str, int] = field(default_factory=dict)
    draw: Callable[..., go.Figure] = field(init=False)

    def __post_init__(self) -> None:
        if self.chapter not in CHAPTERS:
            raise StudyError(
                f"figure {self.name!r} stands in chapter {self.chapter!r}, which the report does"
                f" not have; give one of {', '.join(CHAPTERS)}"
            )

    def __call__(self, draw: Draw) -> Draw:
        """Declare the figure; the function stays as it is."""
        other = _declared.get(self.name)
        if other is not None and _origin(other.draw) != _origin(draw):
            raise StudyError(f"there is a figure {self.name!r} already; give another name")
        self.draw = draw
        _declared[self.name] = self
        return draw

    def part(self, view: StudyView) -> Figure:
        """Return it drawn, as a part of a page."""
        return Figure(self.draw(view), self.caption, self.name, self.title)


def _origin(function: Callable[..., Any]) -> tuple[str, str]:
    """Where a function was written: run again, as in a notebook, it replaces itself."""
    return function.__module__, function.__qualname__


def all_figures() -> list[StudyFigure]:
    """Return every figure there is, in the order of the report."""
    _load()
    chapters = list(CHAPTERS)
    return sorted(_declared.values(), key=lambda f: (chapters.index(f.chapter), f.place, f.name))


@cache
def _load() -> None:
    """Import the files of this folder, and what other packages offer; each declares its figures."""
    for file in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{file.name}")
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:  # noqa: BLE001 - another package's fault must not stop ours
            logger.warning("figures of %r are left out: %s", point.name, error)


def draw(name: str, study: Study | StudyView, **limits: int) -> go.Figure:
    """Draw one figure of a study.

    Args:
        name: The figure's name.
        study: A study of one objective, or a reading of it.
        limits: Arguments of the figure's function, such as ``max_points``.

    Raises:
        NothingToShow: If the study has no data for it.
        StudyError: If there is no such figure.
    """
    _load()
    if name not in _declared:
        raise StudyError(f"there is no figure {name!r}; there are {', '.join(sorted(_declared))}")
    return _declared[name].draw(as_view(study), **limits)
