"""The parts of a page: headings, texts, tables, figures; each writes itself as HTML and Markdown.

    costs = Table(("part", "time"), [("search", "2 min"), ("confirmation", "1 min")])
    print(markdown([Heading("A study", 1), Text("It took 3 min."), costs]))

HTML is made by jinja2 templates, which escape every value; Markdown is escaped by `plain`. So a
name that comes from a file or a folder is always shown as text. Only `Markdown` is kept as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from html import unescape
from textwrap import dedent
from typing import TYPE_CHECKING, Any, ClassVar, Self

from jinja2 import Environment, StrictUndefined, Template

from biotune_optuna.page.style import at_height

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import plotly.graph_objects as go

__all__ = [
    "Bars",
    "Code",
    "Facts",
    "Figure",
    "Heading",
    "Items",
    "Markdown",
    "Part",
    "Section",
    "Table",
    "Text",
    "Tiles",
    "Verdict",
    "markdown",
    "render",
    "texts",
]

_JINJA = Environment(
    autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


@cache
def _template(source: str) -> Template:
    return _JINJA.from_string(source)


def render(source: str, **values: Any) -> str:
    """Fill a jinja2 template; values are escaped, except parts and what it calls safe.

    Args:
        source: The template's text.
        values: What its names stand for.
    """
    return _template(source).render(values)


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
    """Something on a page: jinja2 puts it in as HTML, `str` gives Markdown.

    Attributes:
        template: jinja2 template of its HTML, filled with the part's fields.
    """

    template: ClassVar[str]

    def __html__(self) -> str:
        return render(self.template, **vars(self))

    def __str__(self) -> str:
        return ""  # where Markdown has nothing like it


@dataclass(frozen=True)
class Heading(Part):
    """A heading; level 1 is a page's title."""

    text: str
    level: int = 2

    template = "<h{{ level }}>{{ text }}</h{{ level }}>"

    def __str__(self) -> str:
        return f"{'#' * self.level} {plain(self.text)}"


@dataclass(frozen=True)
class Text(Part):
    """A paragraph; `kind` is ``"soft"`` for a note, ``"none"`` for why something is missing."""

    text: str
    kind: str = ""

    template = '<p{% if kind %} class="{{ kind }}"{% endif %}>{{ text }}</p>'

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

    template = "<pre>{{ text }}</pre>"

    def __str__(self) -> str:
        return f"```{self.language}\n{self.text}\n```"


@dataclass(frozen=True)
class Items(Part):
    """A list; numbered from `first` on where that is given."""

    items: Sequence[str]
    first: int | None = None

    template = """\
{% set kind = "ul" if first is none else "ol" %}
<{{ kind }}{% if first is not none %} start="{{ first }}"{% endif %}>
{% for item in items %}<li>{{ item }}</li>{% endfor %}
</{{ kind }}>"""

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

    template = """\
{% macro cells(kind, row) %}
{% for cell in row %}
<{{ kind }}{% if loop.index <= words %} class="words"{% endif %}>{{ cell }}</{{ kind }}>
{%- endfor %}
{% endmacro %}
<div class="scroll"><table><thead><tr>{{ cells("th", head) }}</tr></thead><tbody>
{% for row in rows %}
<tr{% if loop.index0 == strong %} class="winner"{% endif %}>{{ cells("td", row) }}</tr>
{% endfor %}
</tbody></table></div>"""

    def __str__(self) -> str:
        rule = "|" + "---|" * self.words + "---:|" * (len(self.head) - self.words)
        first, *lines = (f"| {' | '.join(map(plain, row))} |" for row in (self.head, *self.rows))
        return "\n".join([first, rule, *lines])


@dataclass(frozen=True)
class Facts(Part):
    """Names and their values."""

    facts: Sequence[tuple[str, str]]

    template = (
        "<dl>{% for name, value in facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>"
    )

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

    template = (
        '<figure id="figure-{{ name }}"><h3>{{ title }}</h3>'
        '<div class="plot" id="{{ name }}"></div>'
        '<script type="application/json" id="{{ name }}-data">{{ data | safe }}</script>'
        "<figcaption>{{ caption }}</figcaption></figure>"
    )

    def __html__(self) -> str:
        figure = self.figure
        own = unescape(re.sub(r"<[^>]*>", " ", figure.layout.title.text or ""))
        figure.update_layout(title=None)
        at_height(figure, figure.layout.height or 380, title_lines=0)
        # JSON that cannot end the script element
        data = str(figure.to_json()).replace("<", "\\u003c")
        return render(self.template, **vars(self) | {"title": own or self.title, "data": data})


@dataclass(frozen=True)
class Section(Part):
    """A heading of the second level and what stands below it."""

    name: str
    title: str
    parts: Sequence[Part]

    template = (
        '<section id="{{ name }}"><h2>{{ title }}</h2>'
        "{% for part in parts %}{{ part }}{% endfor %}</section>"
    )

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

    template = (
        '<section class="verdict {{ tone }}"><strong>{{ headline }}</strong>'
        "{% for sentence in sentences %}<p>{{ sentence }}</p>{% endfor %}</section>"
    )


@dataclass(frozen=True)
class Tiles(Part):
    """The few numbers to take away, each with its words."""

    tiles: Sequence[tuple[str, str]]

    template = (
        '<div class="tiles">{% for number, words in tiles %}'
        '<div class="tile"><b>{{ number }}</b><span>{{ words }}</span></div>'
        "{% endfor %}</div>"
    )


@dataclass(frozen=True)
class Bars(Part):
    """One bar a name: its length as a share of the width, None for hatched, and words in it."""

    bars: Sequence[tuple[str, float | None, str]]

    template = """\
<div class="recipe">
{% for name, share, words in bars %}
<div class="name">{{ name }}</div><div class="track">
{%- if share is none %}<div class="hatch"></div>
{%- else %}<div class="fill" style="width:{{ "%.0f" | format(100 * share) }}%"></div>
{%- endif %}<span class="value">{{ words }}</span></div>
{% endfor %}
</div>"""
