"""Numbers and names as one says them."""

from __future__ import annotations


def duration(total: float) -> str:
    """Seconds in words: ``20 ms``, ``8.2 s``, ``3 min 20 s``, ``2 h 05 min``, ``3 d 4 h``.

    Args:
        total: Seconds, not negative.
    """
    if 0 < total < 0.095:
        return f"{1000 * total:.2g} ms"
    if total < 9.95:
        return f"{total:.1f} s"
    whole = round(total)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        rest = f" {whole % 60:02d} s" if whole < 600 else ""
        return f"{whole // 60} min{rest}"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def count(number: float) -> str:
    """Return a large count in words: ``980``, ``45,200``, ``3.1 million``.

    Args:
        number: The count, not negative.
    """
    if number < 1e6:
        return f"{round(number):,}"
    return f"{number / 1e6:.1f} million" if number < 1e9 else f"{number / 1e9:.1f} billion"


def plural(number: int, noun: str) -> str:
    """Return a count with its noun: ``1 trial``, ``1,200 trials``.

    Args:
        number: How many.
        noun: In the singular, of those that take an s.
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
