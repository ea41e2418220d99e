"""The report opens from a file, draws all figures, and nothing lies over anything else."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

# Every text of a figure that lies in the plot's margins or legend, as page rectangles. Texts on
# data (cell counts, point numbers) may touch the points they name.
TEXTS = """figure => {
  const seen = [];
  const pick = ".xtick text, .ytick text, .x2tick text, .y2tick text, .xtitle, .ytitle, .x2title," +
    " .y2title, .legendtext, .gtitle, .cbaxis text, .cbtitle";
  for (const text of figure.querySelectorAll(pick)) {
    const box = text.getBoundingClientRect();
    if (box.width > 1 && box.height > 1) {
      const at = { x0: box.left, x1: box.right, y0: box.top, y1: box.bottom };
      seen.push({ text: text.textContent, ...at });
    }
  }
  return seen;
}"""


def overlaps(texts: list[dict[str, Any]], slack: float = 2.0) -> list[tuple[str, str]]:
    """Pairs of texts whose rectangles share more than a rim."""
    found = []
    for i, a in enumerate(texts):
        for b in texts[i + 1 :]:
            wide = min(a["x1"], b["x1"]) - max(a["x0"], b["x0"])
            high = min(a["y1"], b["y1"]) - max(a["y0"], b["y0"])
            if wide > slack and high > slack:
                found.append((a["text"], b["text"]))
    return found


def open_report(page: Any, folder: Path) -> None:
    page.goto((folder / "report.html").as_uri())
    page.wait_for_function("document.body.dataset.drawn !== undefined")
    page.wait_for_timeout(500)


def test_every_figure_is_drawn_from_the_file_alone(page: Any, finished: Path) -> None:
    open_report(page, finished)
    plots = page.query_selector_all(".plot")
    assert len(plots) >= 9
    for plot in plots:
        assert plot.query_selector(".main-svg"), plot.get_attribute("id")
        box = plot.bounding_box()
        assert box["width"] > 280
        assert box["height"] > 150


def test_nothing_overlaps_or_sticks_out(page: Any, finished: Path) -> None:
    open_report(page, finished)
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for plot in page.query_selector_all(".plot"):
        name = plot.get_attribute("id")
        texts = plot.evaluate(TEXTS)
        assert len(texts) > 2, name
        assert overlaps(texts) == [], name
        assert [t["text"] for t in texts if t["x0"] < -1 or t["x1"] > width + 1] == [], name
    boxes = [f.bounding_box() for f in page.query_selector_all("main > section, main > header")]
    for upper, lower in itertools.pairwise(boxes):
        assert upper["y"] + upper["height"] <= lower["y"] + 1


WORDS = """() => {
  const seen = [];
  const pick = "h1, h2, h3, p, th, td, dt, dd, li, figcaption, .tile b, .tile span, pre," +
    " .picture span, .recipe .name, .recipe .value, strong, .modebar-container";
  for (const text of document.querySelectorAll(pick)) {
    const box = text.getBoundingClientRect();
    if (box.width > 1 && box.height > 1 && !text.querySelector(pick)) {
      const at = { x0: box.left, x1: box.right, y0: box.top, y1: box.bottom };
      seen.push({ text: text.textContent.slice(0, 60), ...at });
    }
  }
  return seen;
}"""


@pytest.mark.parametrize("width", [390, 1280])
def test_no_two_texts_of_the_page_overlap(page: Any, finished: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    open_report(page, finished)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    words = page.evaluate(WORDS)
    assert len(words) > 50
    assert overlaps(words) == []


def test_on_a_phone_the_test_column_is_in_view(page: Any, finished: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 900})
    open_report(page, finished)
    cells = page.query_selector_all('td[data-head^="Test"]')
    assert cells
    for cell in cells:
        box = cell.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 390


def test_on_a_phone_no_table_is_cut(page: Any, finished: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 900})
    open_report(page, finished)
    for table in page.query_selector_all(".scroll"):
        hidden = table.evaluate("e => e.scrollWidth - e.clientWidth")
        assert hidden <= 1, table.inner_text()[:80]


def test_a_colleague_finds_the_answers(page: Any, finished: Path) -> None:
    open_report(page, finished)
    text = page.inner_text("main")
    for words in (
        "What was searched", "How the methods compare", "The recipe", "What it cost",
        "How to use the result", "95\u00a0% interval", "test images", "full fine-tuning",
        "biotune predict", "looked at",
    ):  # fmt: skip
        assert words in text, words


def test_it_prints_on_paper(page: Any, finished: Path, tmp_path: Path) -> None:
    open_report(page, finished)
    page.pdf(path=str(tmp_path / "report.pdf"), format="A4", print_background=True)
    assert (tmp_path / "report.pdf").stat().st_size > 50_000
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(300)
    for plot in page.query_selector_all(".plot .main-svg:first-of-type"):
        assert float(plot.get_attribute("width")) <= 662
