"""Parts of docs/benchmarks/study_cost.md, each made by a script of its own."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "study_cost.md"


def put(name: str, text: str, page: Path = PAGE) -> None:
    """Replaces a part of the page, or adds it at the end.

    Args:
        name: Its name, which the page keeps in a comment.
        text: Markdown, beginning with a heading of the second level.
        page: The page.
    """
    before, _, after = _parted(page.read_text(encoding="utf-8"), name)
    whole = f"{before.rstrip()}\n\n{_begin(name)}\n{text.strip()}\n{_end(name)}\n{after}"
    page.write_text(whole.rstrip() + "\n", encoding="utf-8")


def kept(page: Path = PAGE) -> str:
    """All parts of the page that other scripts have put there, as they stand."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    at = text.find("<!-- begin ")
    return "" if at < 0 else text[at:]


def _begin(name: str) -> str:
    return f"<!-- begin {name} -->"


def _end(name: str) -> str:
    return f"<!-- end {name} -->"


def _parted(text: str, name: str) -> tuple[str, str, str]:
    """What stands before a part, the part, and what stands after it."""
    if _begin(name) not in text:
        return text, "", ""
    before, _, rest = text.partition(_begin(name))
    inside, _, after = rest.partition(_end(name))
    return before, inside, after.lstrip("\n") and f"\n{after.lstrip(chr(10))}"
