"""What of the data is not used, in few words: said wherever the data are spoken of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

_KINDS = 6


def summary(skipped: Sequence[str]) -> dict[str, Any]:
    """Return what a study keeps about the files that were left out.

    Args:
        skipped: One line for each, as of `ImageSource.skipped`.

    Returns:
        ``{"count": int, "kinds": {ending: int}, "first": str}``; empty where nothing was.
    """
    if not skipped:
        return {}
    endings = Counter(_ending(line) for line in skipped)
    return {
        "count": len(skipped),
        "kinds": dict(endings.most_common(_KINDS)),
        "first": skipped[0][:300],
    }


def sentence(facts: Mapping[str, Any]) -> str:
    """Say it: ``60 files were left out (60 .heic), first: ...``; "" where nothing was.

    Args:
        facts: As `summary` gave it; or as somebody else stored it.
    """
    number, kinds = facts.get("count"), facts.get("kinds")
    if not isinstance(number, int) or number < 1:
        return ""
    said = ""
    if isinstance(kinds, Mapping) and kinds:
        said = f" ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})"
    first = f", first: {facts['first']}" if facts.get("first") else ""
    return f"{number:,} file{' was' if number == 1 else 's were'} left out{said}{first}"


def _ending(line: str) -> str:
    """Return the ending of the file that a line is about: its first name in quotes."""
    name = re.search(r"'([^']*)'|\"([^\"]*)\"", line)
    ending = PurePath(name[1] or name[2] or "").suffix if name else ""
    return ending.lower()[:20] or "other"
