"""A confirmation's result, as large as a database's row can be."""

from __future__ import annotations

import copy
import json
from typing import Any

__all__ = ["fitting"]

_MOST_STORED = 60_000  # bytes; an attribute of a study holds 64 KB on MySQL


def fitting(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result without those of its details that a row has no room for.

    First those by class of all tests but the winner's go, then the thumbnails, then the winner's.

    Args:
        result: What `biotune_optuna.confirmation.confirm.confirm` returns; left as it is.
    """
    result = copy.deepcopy(result)
    steps = [test["metrics"] for test in result["tests"] if test["name"] != result["winner"]]
    steps += [*result["mistakes"]]
    steps += [test["metrics"] for test in result["tests"] if test["name"] == result["winner"]]
    for details in steps:
        if len(json.dumps(result)) <= _MOST_STORED:
            break
        for name in ("recall", "precision", "support", "thumbnail"):
            details.pop(name, None)
    return result
