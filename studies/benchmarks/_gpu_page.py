"""The page of the check on a GPU: what a reading of the code predicts, beside what was found."""

from __future__ import annotations

from typing import Any

from biotune_optuna.page.parts import Table

HEAD = """---
orphan: true
---

# The training engine on a GPU
"""

NOT_RUN = """**Not run yet**: no GPU was at hand. The command below checks and measures the engine
on one.

The predictions come from a reading of the code: kernels were counted, and their times estimated
from what a card can copy and multiply. No figure on this page was measured.
"""

RAN = """Checked and measured on one GPU by the command below. The predictions come from a reading
of the code before that: kernels were counted, and their times estimated from what a card can copy
and multiply.
"""

HOW = """```console
$ nox -s gpu
```

takes at most 430 seconds. Each part runs in a process of its own within a time of its own, the most
important first. `nox -s gpu -- --parts equal,waits` runs some. Speeds are ratios of candidates that
take turns: the median of the rounds, in brackets the least and the largest.
"""

# (part, figure, prediction, aim)
EXPECTED = (
    ("small images", "64 px, batches of 32: recorded over one by one", "3 to 5", "at least 3"),
    ("small images", "64 px, batches of 32: engine over bare loop", "0.97 to 1.0", ""),
    ("small images", "64 px, batches of 32: float32 over bf16", "1.2 to 1.5", ""),
    (
        "small images",
        "64 px, batches of 32: out-of-place activations over in-place ones",
        "1.05 to 1.07",
        "",
    ),
    ("small images", "64 px, batches of 32: share of time the GPU computes", "0.15 to 0.25", ""),
    ("throughput", "224 px, batches of 32: engine over bare loop", "0.97 to 1.0", "at least 0.95"),
    ("throughput", "224 px, batches of 32: recorded over one by one", "1.3 to 2", ""),
    ("throughput", "224 px, batches of 128: recorded, images/s", "about 4,000", ""),
    ("workers", "4 workers over one", "1.5 to 2.5", "at least 1.8"),
    ("workers", "8 workers over one, under MPS", "3 to 6", ""),
    ("prefix", "resnet50, 224 px, 4 of 6 frozen: gain of the cache", "2 to 4", ""),
    ("study", "demo study: CPU core over device, a trial", "", "at least 10"),
    ("cuDNN", "resnet50, 224 px, tried out: first epoch, later ones, s", "3 to 10 at first", ""),
    ("augmentation", "time with trivial over none", "1.2, before its waits were taken out", ""),
)


def page(everything: dict[str, dict[str, Any]]) -> str:
    """Return the page in Markdown.

    Args:
        everything: What was found, by part; empty where nothing was run.
    """
    ran = any(part.get("figures") for part in everything.values())
    parts = [HEAD, RAN if ran else NOT_RUN, HOW, _predictions(everything)]
    if ran:
        parts += [_checks(everything), _figures(everything)]
    return "\n".join(parts)


def _predictions(everything: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            f"{part}: {figure}",
            predicted or "–",
            aim or "–",
            _words(everything.get(part, {}).get("figures", {}).get(figure)),
        ]
        for part, figure, predicted, aim in EXPECTED
    ]
    rows.append(["waits: waits a step, each augmentation", "0", "0", _waits(everything)])
    return f"## Predictions\n\n{Table(['figure', 'predicted', 'aim', 'found'], rows)}"


def _waits(everything: dict[str, dict[str, Any]]) -> str:
    found = [c["value"] for c in everything.get("waits", {}).get("checks", [])]
    known = [value for value in found if value is not None]
    return f"{max(known):g} at most" if known else ""


def _checks(everything: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            f"{name}: {check['name']}",
            _words(check["value"]),
            check.get("bound", ""),
            "holds" if check["ok"] else f"**does not hold** {check.get('error', '')}",
        ]
        for name, part in everything.items()
        for check in part.get("checks", [])
    ]
    told = [
        f"- {name}: {part.get('error') or part.get('skipped')}"
        for name, part in everything.items()
        if part.get("error") or part.get("skipped")
    ]
    text = f"\n## Checks\n\n{Table(['check', 'found', 'bound', ''], rows)}"
    return text + ("\nNot finished:\n\n" + "\n".join(told) + "\n" if told else "")


def _figures(everything: dict[str, dict[str, Any]]) -> str:
    rows = [
        [f"{name}: {figure}", _words(value)]
        for name, part in everything.items()
        for figure, value in part.get("figures", {}).items()
    ]
    return f"\n## Figures\n\n{Table(['figure', 'found'], rows)}"


def _words(value: Any) -> str:
    """Return a value for a cell; of three numbers a middle with its range."""
    if value is None:
        return ""
    if isinstance(value, list) and len(value) == 3:
        return f"{value[0]:.3g} ({value[1]:.3g} to {value[2]:.3g})"
    if isinstance(value, list):
        return ", ".join(_words(one) for one in value)
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_words(one)}" for key, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
