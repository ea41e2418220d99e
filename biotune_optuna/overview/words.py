"""A look at images in plain sentences, worst first, with what to do about each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from biotune_optuna.page.text import plural

if TYPE_CHECKING:
    from biotune_optuna.overview.check import ImageCheck, Pair

SMALL_CLASS = 10
SMALLEST = 32  # pixels: a perceptual hash looks at 32 x 32
SKEWED = 3.0
_MOST = 8  # lines of a kind


def lines(check: ImageCheck) -> Iterator[str]:
    """Yield all that a terminal shows.

    Args:
        check: What was found.
    """
    yield f"{check.name}: {headline(check)}"
    yield f"  {sizes(check)}"
    yield ""
    yield from table(check)
    for title, found in problems(check):
        yield ""
        yield title
        yield from (f"  {line}" for line in found[:_MOST])
        if len(found) > _MOST:
            yield f"  and {len(found) - _MOST:,} more"
    if not problems(check):
        yield ""
        yield "No bad files, duplicates or odd images were found."
    if check.sides[1] < SMALLEST:
        yield ""
        yield f"Similar images are not looked for among those below {SMALLEST} pixels."


def headline(check: ImageCheck) -> str:
    """Say how many images of how many classes there are.

    Args:
        check: What was found.
    """
    low, high = min(check.classes.values()), max(check.classes.values())
    each = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
    text = f"{plural(check.n, 'image')} of {len(check.classes)} classes, {each}"
    return text + (f"; {plural(len(check.skipped), 'file')} left out" if check.skipped else "")


def sizes(check: ImageCheck) -> str:
    """Say how large the images are.

    Args:
        check: What was found.
    """
    (w1, w2, w3), (h1, h2, h3) = check.widths, check.heights
    if (w1, h1) == (w3, h3):
        return f"all of {w1} x {h1} pixels"
    wide = f"{w1} pixels wide" if w1 == w3 else f"{w1} to {w3} pixels wide (median {w2})"
    return f"{wide}, {h1} high" if h1 == h3 else f"{wide}, {h1} to {h3} high (median {h2})"


def table(check: ImageCheck) -> Iterator[str]:
    """Yield one line a class, with a column for each part.

    Args:
        check: What was found.
    """
    wide = min(40, max(map(len, check.classes)))
    parts = list(check.parts)
    if parts:
        yield f"  {'':{wide}}  {'images':>6}  " + "  ".join(f"{part:>6}" for part in parts)
    for name, n in check.classes.items():
        inside = "".join(f"  {check.parts[part][name]:6,}" for part in parts)
        yield f"  {name:{wide}}  {n:6,}{inside}"


def problems(check: ImageCheck) -> list[tuple[str, list[str]]]:
    """Return each kind of trouble, with what to do, and its cases.

    Args:
        check: What was found.
    """
    exact, near = check.duplicates, check.near_duplicates
    by_oddness = {
        what: [f"{one.id} ({one.label})" for one in check.odd if one.what == what]
        for what in dict.fromkeys(one.what for one in check.odd)
    }
    small = [
        f"{name}: {plural(n, 'image')}" for name, n in check.classes.items() if n < SMALL_CLASS
    ]
    kinds: list[tuple[str, str, list[str]]] = [
        (
            "file",
            "cannot be used. Mend or remove them, or train with --skip-bad-images:",
            list(check.skipped),
        ),
        (
            "pair",
            "of equal images with different labels. One of the two is wrong:",
            [_pair(pair) for pair in exact if pair.conflicts],
        ),
        (
            "pair",
            "of equal images in different parts. The test is too easy by them:",
            [_pair(pair) for pair in exact if pair.leaks and not pair.conflicts],
        ),
        (
            "pair",
            "of equal images within a class. They are kept in one part:",
            [_pair(pair) for pair in exact if not pair.leaks and not pair.conflicts],
        ),
        (
            "pair",
            "of similar images with different labels. Look at them:",
            [_pair(pair) for pair in near if pair.conflicts],
        ),
        (
            "pair",
            "of similar images in different parts. Are they of one scene?",
            [_pair(pair) for pair in near if pair.leaks and not pair.conflicts],
        ),
        (
            "pair",
            "of similar images. Keep those of one scene together by --group-regex:",
            [_pair(pair) for pair in near if not pair.leaks and not pair.conflicts],
        ),
    ]
    found = [
        (f"{plural(len(cases), noun)} {title}", cases) for noun, title, cases in kinds if cases
    ]
    for what, cases in by_oddness.items():
        if cases:
            found.append((f"{plural(len(cases), f'{what} image')}:", cases))
    if small:
        found.append((f"Classes with fewer than {SMALL_CLASS} images. Add some:", small))
    if check.skew >= SKEWED:
        found.append(
            (
                f"The largest class has {check.skew:.3g} times the images of the smallest. "
                "The default metric weighs all",
                ["classes alike. For a loss that does too: --set class_weights=balanced"],
            )
        )
    return found


def _pair(pair: Pair) -> str:
    """Name the two images of a pair, with label and part where these differ."""
    notes = []
    for k in (0, 1):
        facts = [pair.labels[k]] if pair.conflicts else []
        facts += [pair.parts[k] or "no part"] if pair.leaks else []
        notes.append(f" ({', '.join(facts)})" if facts else "")
    sign = "=" if pair.exact else "~"
    return f"{pair.first}{notes[0]} {sign} {pair.second}{notes[1]}"
