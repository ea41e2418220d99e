"""The parts of a page: headings, texts, tables, figures; each writes itself as HTML and Markdown.

    costs = Table(("part", "time"), [("search", "2 min"), ("confirmation", "1 min")])
    print(markdown([Heading("A study", 1), Text("It took 3 min."), costs]))

HTML is made by jinja2 templates, which escape every value; Markdown is escaped by `plain`. So a
name that comes from a file or a folder is always shown as text. Only `Markdown` is kept as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import unescape
from textwrap import dedent
from typing import TYPE_CHECKING, Self

from jinja2 import Environment, PackageLoader, StrictUndefined

from biotune_optuna.page.style import at_height

if TYPE_CHECKING:
    import plotly.graph_objects as go


TEMPLATES = Environment(
    loader=PackageLoader("biotune_optuna.page", "assets"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""The files of ``assets/``. Every value is escaped, except parts and what a template calls safe."""


class Markdown(str):
    """Markdown written by hand, which is not escaped there; HTML shows it as it is written.

    Common leading spaces are taken away. It may stand where a part stands, or a part's text.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Take away the spaces that all lines begin with."""
        return super().__new__(cls, dedent(text).strip("\n"))


def plain(text: str) -> str:
    """Return a text on one line that Markdown shows as it is; `Markdown` is returned unchanged."""
    if isinstance(text, Markdown):
        return text
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def markdown(parts: Iterable[Part | Markdown]) -> str:
    """Return parts as a Markdown text; those that Markdown cannot show are left out.

    Args:
        parts: What is on the page, its title as a `Heading` of level 1.
    """
    return "\n\n".join(filter(None, map(str, parts))) + "\n"


class Part:
    """Something on a page: `str` gives its Markdown, and jinja2 puts it in as HTML.

    The HTML is the macro of ``assets/parts.html`` that is called like the class.
    """

    def __html__(self, *more: str) -> str:
        macros = TEMPLATES.get_template("parts.html").module
        return str(getattr(macros, type(self).__name__.lower())(self, *more))

    def __str__(self) -> str:
        return ""  # where Markdown has nothing like it


@dataclass(frozen=True)
class Heading(Part):
    """A heading; level 1 is a page's title."""

    text: str
    level: int = 2

    def __str__(self) -> str:
        return f"{'#' * self.level} {plain(self.text)}"


@dataclass(frozen=True)
class Text(Part):
    """A paragraph; `kind` is ``"soft"`` for a note, ``"none"`` for why something is missing."""

    text: str
    kind: str = ""

    def __str__(self) -> str:
        return plain(self.text)


def texts(sentences: Iterable[str]) -> list[Part]:
    """Return a paragraph for each sentence that is not empty."""
    return [Text(sentence) for sentence in sentences if sentence]


@dataclass(frozen=True)
class Code(Part):
    """Lines to type, shown as they are."""

    text: str
    language: str = ""

    def __str__(self) -> str:
        return f"```{self.language}\n{self.text}\n```"


@dataclass(frozen=True)
class Items(Part):
    """A list; numbered from `first` on where that is given."""

    items: Sequence[str]
    first: int | None = None

    def __str__(self) -> str:
        numbered = enumerate(self.items, self.first or 0)
        leads = ("-" if self.first is None else f"{n}." for n, _ in numbered)
        return "\n".join(f"{a} {plain(b)}" for a, b in zip(leads, self.items, strict=True))


@dataclass(frozen=True)
class Table(Part):
    """A table, which scrolls sideways on a narrow screen.

    Attributes:
        head: Titles of the columns.
        rows: Cells.
        words: So many columns, from the left, hold words; the others hold numbers.
        strong: Row to set off; None for none.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    strong: int | None = None

    def __str__(self) -> str:
        rule = "|" + "---|" * self.words + "---:|" * (len(self.head) - self.words)
        first, *lines = (f"| {' | '.join(map(plain, row))} |" for row in (self.head, *self.rows))
        return "\n".join([first, rule, *lines])


@dataclass(frozen=True)
class Facts(Part):
    """Names and their values."""

    facts: Sequence[tuple[str, str]]

    def __str__(self) -> str:
        return str(Table(("", "value"), self.facts, words=2))


@dataclass(frozen=True)
class Figure(Part):
    """A plotly figure; Markdown leaves it out, since its numbers are in the tables.

    Attributes:
        figure: The figure. Its title becomes a heading above it.
        caption: How to read it.
        name: Its name on the page, of letters and dashes.
        title: Heading of a figure that has no title of its own.
    """

    figure: go.Figure
    caption: str
    name: str
    title: str = ""

    def __html__(self, *_: str) -> str:
        figure = self.figure
        own = unescape(re.sub(r"<[^>]*>", " ", figure.layout.title.text or ""))
        figure.update_layout(title=None)
        at_height(figure, figure.layout.height or 380, title_lines=0)
        data = str(figure.to_json()).replace("<", "\\u003c")  # it cannot end the script element
        return super().__html__(own or self.title, data)


@dataclass(frozen=True)
class Section(Part):
    """A heading of the second level and what stands below it."""

    name: str
    title: str
    parts: Sequence[Part]

    def __str__(self) -> str:
        return markdown([Heading(self.title), *self.parts]).rstrip("\n")


@dataclass(frozen=True)
class Verdict(Part):
    """What came out, set off by a colour.

    Attributes:
        tone: ``"won"``, ``"level"`` or ``"lost"`` for BioTune, ``"open"`` before a confirmation.
        headline: One short sentence.
        sentences: What it rests on.
    """

    tone: str
    headline: str
    sentences: Sequence[str]


@dataclass(frozen=True)
class Tiles(Part):
    """The few numbers to take away, each with its words."""

    tiles: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Bars(Part):
    """One bar a name: its length as a share of the width, None for hatched, and words in it."""

    bars: Sequence[tuple[str, float | None, str]]


@dataclass(frozen=True)
class Pictures(Part):
    """Small pictures, each with lines of text below it.

    Attributes:
        pictures: For each the picture as a data URI ("" where there is none), and its lines.
    """

    pictures: Sequence[tuple[str, Sequence[str]]]
