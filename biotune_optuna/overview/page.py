"""A look at images as one HTML page: a contact sheet, and everything that was found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from biotune_optuna.overview.words import headline, problems, sizes
from biotune_optuna.page.html import document
from biotune_optuna.page.parts import Items, Part, Pictures, Section, Table, Text
from biotune_optuna.page.text import plural

if TYPE_CHECKING:
    from biotune_optuna.overview.check import ImageCheck, Pair

_MOST = 60  # cases of a kind


def page(check: ImageCheck) -> str:
    """Return the page's HTML.

    Args:
        check: What was found.
    """
    return document(
        check.name,
        list(_parts(check)),
        eyebrow="Images",
        title=f"{check.name} · images",
        below=f"{headline(check)} · {sizes(check)}",
    )


def _parts(check: ImageCheck) -> Iterator[Part]:
    head = ("Class", "Images", *(part.capitalize() for part in check.parts))
    rows = [
        (name, f"{n:,}", *(f"{counts[name]:,}" for counts in check.parts.values()))
        for name, n in check.classes.items()
    ]
    yield Table(head, rows)
    for number, (title, cases) in enumerate(problems(check)):
        shown: list[Part] = [Items(cases[:_MOST])]
        if len(cases) > _MOST:
            shown.append(Text(f"and {len(cases) - _MOST:,} more", "soft"))
        yield Section(f"found-{number}", title.rstrip(":"), shown)
    if check.pairs:
        yield Section("pairs", "Equal and similar pairs", [Pictures(_pictures(check))])
    if check.odd:
        pictures = [
            (check.thumbnails.get(one.id, ""), (f"{one.what}: {one.label}", one.id))
            for one in check.odd[:_MOST]
        ]
        yield Section("odd", "Blank, dark or bright", [Pictures(pictures)])
    yield Section("sheet", "Contact sheet", list(_sheet(check)))


def _pictures(check: ImageCheck) -> list[tuple[str, tuple[str, str]]]:
    """Show both images of each pair, one after the other."""
    return [
        (check.thumbnails.get(name, ""), (f"{number}: {_words(pair)}{pair.labels[k]}", name))
        for number, pair in enumerate(check.pairs[: _MOST // 2], 1)
        for k, name in enumerate((pair.first, pair.second))
    ]


def _words(pair: Pair) -> str:
    return "equal, " if pair.exact else "similar, "


def _sheet(check: ImageCheck) -> Iterator[Part]:
    """Show some images of each class."""
    for name, ids in check.samples.items():
        yield Text(f"{name}: {plural(check.classes[name], 'image')}")
        yield Pictures([(check.thumbnails.get(one, ""), (one,)) for one in ids])
