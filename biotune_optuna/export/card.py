"""The model card: what the model is, how well it does, and how to use it, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from biotune_optuna._version import __version__

if TYPE_CHECKING:
    from biotune_optuna.data.preprocessing import Preprocessing
    from biotune_optuna.recipe import Recipe

__all__ = ["render_card"]

_SHOWN_CLASSES = 50
_DEFAULTS: dict[str, str] = {
    "Intended use": (
        "Classification of images like those it was trained on, into the classes below."
    ),
    "Limits": (
        "Every image is put into one of the classes, also one that shows none of them. Images "
        "from other sources than the training data may be classified less well than the "
        "metrics say; check on your own before you rely on it."
    ),
}


def render_card(
    *,
    model_name: str,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    recipe: Recipe,
    facts: Mapping[str, Any],
) -> str:
    """Render a model card.

    Args:
        model_name: timm's model name.
        classes: Class names in the order of the outputs.
        preprocessing: What the network expects of images.
        recipe: How it was trained.
        facts: Heading -> content, in order. A content is a text, a mapping (a table of two
            columns), a sequence of mappings (a table with a column per key) or a sequence of
            other things (a list). ``Intended use``, ``Limits`` and ``Recipe`` have a default.

    Returns:
        Markdown with the front matter that model hubs read.
    """
    settings = {key: value for key, value in preprocessing.to_dict().items() if key != "amp"}
    sections: dict[str, Any] = {
        **facts,
        **{heading: facts.get(heading, text) for heading, text in _DEFAULTS.items()},
        "Recipe": facts.get("Recipe", _recipe(recipe)),
        "Preprocessing": settings,
        "Classes": _classes(classes),
        "Use": _USAGE,
    }
    parts = [
        _FRONT_MATTER,
        f"# {model_name}, fine-tuned for {len(classes)} classes",
        f"Made by evolutionary selective fine-tuning with biotune-optuna {__version__}.",
        *(f"## {_text(heading)}\n\n{_render(content)}" for heading, content in sections.items()),
    ]
    return "\n\n".join(parts) + "\n"


_FRONT_MATTER = """---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- biotune-optuna
---"""

_USAGE = """With the preprocessing of training:

```console
$ biotune predict THIS_FOLDER image.jpg --csv predictions.csv
```

With timm alone (run in this folder):

```python
import timm

model = timm.create_model("local-dir:.", pretrained=True)
```"""


def _recipe(recipe: Recipe) -> str:
    return (
        f"{_text(recipe.describe())}, base learning rate {recipe.lr:.3g}, "
        f"weight decay {recipe.weight_decay:.3g}. `recipe.json` holds it block by block."
    )


def _render(content: Any) -> str:
    if isinstance(content, Mapping):
        rows = [{"": key, "value": value} for key, value in content.items()]
        return _table(rows) if rows else "None."
    if isinstance(content, Sequence) and not isinstance(content, str):
        if content and all(isinstance(item, Mapping) for item in content):
            return _table(content)
        return "\n".join(f"- {_text(_scalar(item))}" for item in content) or "None."
    return _scalar(content)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_text(_scalar(row.get(key, ""))) for key in columns] for row in rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def _scalar(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_scalar(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_scalar(inner) for inner in value)
    return str(value)


def _text(value: str) -> str:
    """One line without Markdown or HTML of its own: names come from folders and files."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(value.split()))


def _classes(classes: Sequence[str]) -> str:
    shown = "\n".join(
        f"{number}. {_text(name)}" for number, name in enumerate(classes[:_SHOWN_CLASSES])
    )
    rest = len(classes) - _SHOWN_CLASSES
    return shown + (f"\n\nand {rest} more: see `labels.json`." if rest > 0 else "")
