"""Colours, symbols and layout shared by all figures.

The palette is Okabe and Ito's, which readers of every common kind of colour vision tell apart; each
role has a symbol of its own as well, so that a grey print still reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import plotly.graph_objects as go

BLACK, GREY, LIGHT = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
VERMILION, PURPLE = "#D55E00", "#CC79A7"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)

# Light to dark without a turn: prints in grey as it reads on screen.
RATE_SCALE = ("#fff7bc", "#fec44f", "#ec7014", "#a63603", "#4a1203")
SHARE_SCALE = ("#ffffff", "#d6e6f4", "#85bcdb", "#2171b5", "#08306b")
RATE_TICKS = (0.1, 0.3, 1.0, 3.0, 10.0)

_AXIS = 52  # pixels that ticks and title of the lowest axis take
_BELOW = _AXIS + 30  # and a line of legend


class Mark(NamedTuple):
    """How one role is drawn."""

    words: str
    colour: str
    symbol: str

    def marker(self, size: float) -> dict[str, Any]:
        """Return plotly's settings of a marker of this size in pixels."""
        rim = {"width": 0.5 if size < 10 else 1, "color": "white"}
        return {"color": self.colour, "symbol": self.symbol, "size": size, "line": rim}


ROLES: Mapping[str, Mark] = {
    "immigrant": Mark("random newcomer", GREY, "circle"),
    "initial": Mark("informed start", BLACK, "star"),
    "exploit": Mark("small step from an elite", ORANGE, "diamond"),
    "offspring": Mark("offspring", BLUE, "triangle-up"),
    "re-evaluation": Mark("measured again", PURPLE, "square"),
    "extra": Mark("extra offspring", SKY, "triangle-down"),
    "enqueued": Mark("asked for by hand", GREEN, "cross"),
    "donated": Mark("from an earlier study", GREEN, "hexagon"),
    "added": Mark("brought in", VERMILION, "pentagon"),
}
_OTHER = Mark("trial", BLUE, "circle")

TOP: Mapping[str, int] = {"row": 1, "col": 1}
"""The upper or left plot of a figure of several."""


def mark(role: object) -> Mark:
    """How a role is drawn; an unknown one is an ordinary trial."""
    return ROLES.get(str(role), _OTHER)


def finish(
    figure: go.Figure, title: str, *, height: int = 380, legend: bool | None = None, **layout: Any
) -> go.Figure:
    """Give a figure the common look.

    Args:
        figure: The figure with its traces.
        title: Says what is seen, in a sentence of the reader's language.
        height: Height in pixels; the width follows the window.
        legend: Whether a legend is shown; None leaves it to plotly.
        layout: Further layout settings.
    """
    figure.update_layout(
        template="none",
        title={
            "text": title,
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "yref": "container",
            "y": 1,
            "yanchor": "top",
            "pad": {"l": 12, "t": 10},
            "font": {"size": 15, "color": BLACK},
        },
        font={"family": "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif", "size": 12.5},
        font_color=BLACK,
        paper_bgcolor="white",
        plot_bgcolor="white",
        hoverlabel={"align": "left", "bgcolor": "white", "bordercolor": GREY},
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "yanchor": "top",
            "font": {"size": 11.5},
            "itemsizing": "constant",
        },
        barcornerradius=2,
    )
    if legend is not None:
        figure.update_layout(showlegend=legend)
    axis = {
        "automargin": True,
        "gridcolor": LIGHT,
        "linecolor": GREY,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": LIGHT,
        "title": {"standoff": 8},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_layout(**layout)
    return at_height(figure, height, title_lines=1 + title.count("<br>"))


def at_height(figure: go.Figure, height: int, *, title_lines: int) -> go.Figure:
    """Set a figure's height, with room for its title above and its legend below the axis.

    Args:
        figure: A finished figure.
        height: In pixels.
        title_lines: Lines of the title; 0 for none, which puts the legend above the plot.
    """
    figure.update_layout(
        height=height, margin={"l": 12, "r": 12, "t": 16 + 20 * title_lines, "b": 12}
    )
    if title_lines:
        plot = height - 16 - 20 * title_lines - _BELOW
        figure.update_layout(legend={"y": -_AXIS / plot, "yanchor": "top"})
    else:
        figure.update_layout(legend={"y": 1.02, "yanchor": "bottom"})
    return figure


def safe(text: object) -> str:
    """Text for a figure: plotly reads tags in it, so a class called ``<b>`` is escaped."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def shorten(text: object, length: int = 22) -> str:
    """Text that fits beside an axis, escaped; the middle gives way."""
    words = str(text)
    if len(words) > length:
        half = (length - 1) // 2
        words = f"{words[:half]}…{words[-half:]}"
    return safe(words)
