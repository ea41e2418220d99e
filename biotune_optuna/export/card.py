"""The model card: what the model is, how well it does, and how to use it, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from biotune_optuna._version import __version__
from biotune_optuna.page.parts import (
    Facts,
    Heading,
    Items,
    Markdown,
    Part,
    Table,
    Text,
    markdown,
    plain,
)

if TYPE_CHECKING:
    from biotune_optuna.data.preprocessing import Preprocessing
    from biotune_optuna.recipe import Recipe


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
        facts: Heading -> content, in order. A content is a text (shown as it is; give
            `biotune_optuna.page.parts.Markdown` for Markdown), a mapping (a table of two columns),
            a sequence of mappings (a table with a column per key) or a sequence of other things
            (a list). ``Intended use``, ``Limits`` and ``Recipe`` have a default.

    Returns:
        Markdown with the front matter that model hubs read.
    """
    words = (
        f"{plain(recipe.describe())}, base learning rate {recipe.lr:.3g}, "
        f"weight decay {recipe.weight_decay:.3g}. `recipe.json` holds it block by block."
    )
    settings = {key: value for key, value in preprocessing.to_dict().items() if key != "amp"}
    sections: dict[str, Any] = {
        **facts,
        **{heading: facts.get(heading, text) for heading, text in _DEFAULTS.items()},
        "Recipe": facts.get("Recipe", Markdown(words)),
        "Preprocessing": settings,
        "Classes": _classes(classes),
        "Use": _USAGE,
    }
    parts: list[Part | Markdown] = [
        _FRONT_MATTER,
        Heading(f"{model_name}, fine-tuned for {len(classes)} classes", 1),
        Text(f"Made by evolutionary selective fine-tuning with biotune-optuna {__version__}."),
    ]
    for heading, content in sections.items():
        parts += [Heading(heading), *_parts(content)]
    return markdown(parts)


_FRONT_MATTER = Markdown(
    """---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- biotune-optuna
---"""
)

_USAGE = Markdown(
    """With the preprocessing of training:

```console
$ biotune predict THIS_FOLDER image.jpg --csv predictions.csv
```

With timm alone (run in this folder):

```python
import timm

model = timm.create_model("local-dir:.", pretrained=True)
```"""
)


def _parts(content: Any) -> list[Part | Markdown]:
    """Return a section's content as parts of a page."""
    if isinstance(content, (Part, Markdown)):
        return [content]
    if not content:
        return [Text("None.")]
    if isinstance(content, Mapping):
        return [Facts([(name, _scalar(value)) for name, value in content.items()])]
    if isinstance(content, str):
        return [Text(content)]
    if all(isinstance(item, (Part, Markdown)) for item in content):
        return list(content)
    if all(isinstance(item, Mapping) for item in content):
        columns = list(dict.fromkeys(key for row in content for key in row))
        rows = [[_scalar(row.get(key, "")) for key in columns] for row in content]
        return [Table(columns, rows, words=len(columns))]
    return [Items([_scalar(item) for item in content])]


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


def _classes(classes: Sequence[str]) -> list[Part | Markdown]:
    shown: list[Part | Markdown] = [Items(classes[:_SHOWN_CLASSES], first=0)]
    rest = len(classes) - _SHOWN_CLASSES
    if rest > 0:
        shown.append(Markdown(f"and {rest} more: see `labels.json`."))
    return shown
