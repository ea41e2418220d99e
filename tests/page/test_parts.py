"""Parts of a page: the same content as HTML and as Markdown, and nothing that is not escaped."""

from __future__ import annotations

import json
import re

import plotly.graph_objects as go
import pytest

from biotune_optuna.page import parts
from biotune_optuna.page.html import document
from biotune_optuna.page.parts import (
    Bars,
    Code,
    Facts,
    Figure,
    Heading,
    Items,
    Markdown,
    Part,
    Pictures,
    Section,
    Table,
    Text,
    Tiles,
    Verdict,
    markdown,
)

EVIL = "</script><b>|*x*_y_`z`"
EVERY: list[Part] = [
    Heading(EVIL),
    Text(EVIL, "soft"),
    Code(EVIL),
    Items([EVIL]),
    Table((EVIL, "n"), [(EVIL, "1")]),
    Facts([(EVIL, EVIL)]),
    Figure(go.Figure(go.Bar(y=[1], name=EVIL), {"title": {"text": EVIL}}), EVIL, "name"),
    Section("name", EVIL, [Text(EVIL)]),
    Verdict("won", EVIL, [EVIL]),
    Tiles([(EVIL, EVIL)]),
    Pictures([(EVIL, [EVIL]), ("", [EVIL])]),
    Bars([(EVIL, 0.5, EVIL), (EVIL, None, EVIL)]),
]


def test_every_part_is_tried_here() -> None:
    assert {type(part) for part in EVERY} == set(Part.__subclasses__())


@pytest.mark.parametrize("part", EVERY, ids=lambda part: type(part).__name__)
def test_html_is_escaped(part: Part) -> None:
    html = part.__html__()
    assert "<b>|" not in html
    assert html.count("</script>") == html.count("<script")


@pytest.mark.parametrize("part", EVERY, ids=lambda part: type(part).__name__)
def test_markdown_is_escaped(part: Part) -> None:
    if not isinstance(part, Code):  # fenced
        assert not re.search(r"(?<!\\)[<*_`]", str(part))


def test_a_page_as_markdown() -> None:
    page = [
        Heading("Costs", 1),
        Text("In  all\n3 min."),
        Table(("part", "kind", "time"), [("search", "a|b", "2 min")], words=2),
        Tiles([("3", "left out")]),
        Items(["one", "two"]),
        Items(["none", "first"], first=0),
        Section("more", "More", [Code("biotune demo", "console")]),
        Facts([("seed", "3")]),
    ]
    assert markdown(page) == (
        "# Costs\n\nIn all 3 min.\n\n"
        "| part | kind | time |\n|---|---|---:|\n| search | a\\|b | 2 min |\n\n"
        "- one\n- two\n\n0. none\n1. first\n\n"
        "## More\n\n```console\nbiotune demo\n```\n\n|  | value |\n|---|---|\n| seed | 3 |\n"
    )


def test_markdown_by_hand_is_kept_and_dedented() -> None:
    text = Markdown("""
        A `name` and
        **more**.
    """)
    cells = Table((Markdown("*a*"), "b"), [("_c_", Markdown("`d`"))])
    assert markdown([text, cells]) == (
        "A `name` and\n**more**.\n\n| *a* | b |\n|---|---:|\n| \\_c\\_ | `d` |\n"
    )


def test_in_html_markdown_is_text_like_any_other() -> None:
    html = document("Title", [Text(Markdown("<i>`x`</i>"))], eyebrow="Test")
    assert "<p>&lt;i&gt;`x`&lt;/i&gt;</p>" in html


def test_words_are_marked_and_one_row_is_set_off() -> None:
    html = " ".join(Table(("a", "b"), [("c", "1"), ("d", "2")], strong=1).__html__().split())
    assert html.count('class="words"') == 3
    assert '<tr><td class="words">c</td><td>1</td></tr>' in html
    assert '<tr class="winner"><td class="words">d</td>' in html


def test_a_figure_has_its_title_above_and_its_data_whole() -> None:
    drawn = go.Figure(go.Bar(y=[3]), {"title": {"text": "Seen <b>so</b>"}})
    html = Figure(drawn, "How to read it.", "seen").__html__()
    assert "<h3>Seen  so </h3>" in html
    assert "<figcaption>How to read it.</figcaption>" in html
    data = re.search(r'id="seen-data">(.*)</script>', html)
    assert data is not None
    assert json.loads(data[1])["data"][0]["y"] == [3]
    assert "<h3>Its own</h3>" in Figure(go.Figure(), "", "own", "Its own").__html__()


def test_bars_are_as_long_as_their_share() -> None:
    html = parts.Bars([("a", 0.25, "2×"), ("b", None, "frozen")]).__html__()
    assert 'style="width:25%"' in html
    assert html.count('class="hatch"') == 1
