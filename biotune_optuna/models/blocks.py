"""Any timm classification model as an ordered list of blocks.

A block is what one gene freezes or trains: a named set of parameters and buffers. The blocks of a
model are a partition of all its tensors, ordered from input to output: the stem first, the head
last and on its own, and no layer is cut in two.

The rule follows timm's own ``group_matcher`` and refines it where needed so that the lists of the
BioTune paper come out (ResNet-50: 6, DenseNet-121: 9, VGG-19: 6, Inception-v3: 14):

1. tensors are grouped by the model's matcher, coarse if it has one, else fine; a model without a
   matcher, or whose matcher leaves fewer than four blocks, gives one group per child, with
   containers opened one level;
2. the head is everything under the classifier's top-level module;
3. a group that joins neighbours of different kinds (a dense block and its transition) is split;
4. a group of nothing but norms, biases or scales joins the block before it;
5. a chain of single convolutions is merged into the stages that the model declares;
6. above ``max_blocks``, neighbours between stem and head are merged in equal chunks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

from torch import Tensor, nn

from biotune_optuna.errors import ModelError
from biotune_optuna.models import DEFAULT_MAX_BLOCKS, MIN_MAX_BLOCKS

MIN_BLOCKS = 4

Group = list[str]


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a model: what a gene freezes or trains as a whole.

    Attributes:
        name: Short name, unique in the model: ``stem``, ``head`` or the module's path; a range
            such as ``blocks.2-4`` when several modules form the block.
        parameter_names: Names as in ``model.named_parameters()``, in the model's order.
        buffer_names: Names as in ``model.named_buffers()``, in the model's order.
        n_parameters: Number of scalar parameters, buffers not counted.
    """

    name: str
    parameter_names: tuple[str, ...]
    buffer_names: tuple[str, ...]
    n_parameters: int


def model_blocks(
    model: nn.Module,
    max_blocks: int = DEFAULT_MAX_BLOCKS,
    *,
    patterns: Mapping[str, str] | None = None,
) -> list[Block]:
    """Divide a model into blocks, input side first, head last.

    Args:
        model: A timm model with a classifier, or, with ``patterns``, any ``nn.Module``. Tensors may
            live on the meta device: only names and shapes are read.
        max_blocks: Upper bound on the number of blocks, at least 3. Up to 16 the model's coarse
            groups (stages, transformer layers) are merged where they are more; above 16 its fine
            groups (single residual blocks) are taken, so that ``max_blocks=64`` gives the finest
            list there is. Ignored with ``patterns``.
        patterns: For models that timm did not build: block name -> regular expression, matched
            from the start of the tensor's name (``re.match``), in the order of the blocks. The
            first pattern that matches takes the tensor; the last one is the head.

    Returns:
        The blocks in order: a partition of ``named_parameters()`` and ``named_buffers()``.

    Raises:
        ModelError: If the model has no classifier, if a plain module comes without ``patterns``,
            or if the patterns miss a tensor, match nothing, or cut a layer in two.

    Example:
        >>> import timm
        >>> [block.name for block in model_blocks(timm.create_model("resnet18"))]
        ['stem', 'layer1', 'layer2', 'layer3', 'layer4', 'head']
    """
    layout = _Layout(model)
    if patterns is not None:
        return _blocks_from_patterns(layout, patterns)
    if max_blocks < MIN_MAX_BLOCKS:
        raise ModelError(f"max_blocks={max_blocks} is too small: give {MIN_MAX_BLOCKS} or more")
    groups, head = _refined_groups(layout, fine=max_blocks > DEFAULT_MAX_BLOCKS)
    groups = [*_merge_trunk(groups, max_blocks), head]
    return layout.name_blocks([layout.sort(group) for group in groups])


def classifier_paths(model: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that timm calls the model's classifier, those with tensors only.

    The pre-trained configuration and ``get_classifier()`` disagree for some models: the union is
    taken, without paths inside one another.

    Args:
        model: A timm model.

    Returns:
        Module paths such as ``("head.fc",)``, empty for a model without a head.
    """
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    named = config.get("classifier") or ()
    paths = [named] if isinstance(named, str) else list(named)
    getter = getattr(model, "get_classifier", None)
    found = getter() if callable(getter) else None
    heads = found if isinstance(found, list | tuple) else [found]  # or None
    modules = dict(model.named_modules())
    paths += [path for path, module in modules.items() if any(module is h for h in heads)]
    real = {p for p in paths if p in modules and _has_tensors(modules[p])}
    return tuple(p for p in dict.fromkeys(paths) if p in real and not _has_ancestor(p, real))


def output_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers that compute the class scores: path -> module."""
    layers = {
        f"{path}.{inner}".rstrip("."): layer
        for path in classifier_paths(model)
        for inner, layer in model.get_submodule(path).named_modules()
        if getattr(getattr(layer, "weight", None), "ndim", 0) >= 2
    }
    classes = getattr(model, "num_classes", None)
    sized = {path: layer for path, layer in layers.items() if len(layer.weight) == classes}
    return sized or layers


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in chain(module.parameters(), module.buffers()))


def _has_ancestor(path: str, others: Iterable[str]) -> bool:
    return any(path.startswith(other + ".") for other in others)


def _prefixes(name: str) -> Iterator[str]:
    """Yield module paths that hold a tensor, outermost first: ``a.b.weight`` -> ``a``, ``a.b``."""
    parts = name.split(".")[:-1]
    for end in range(1, len(parts) + 1):
        yield ".".join(parts[:end])


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


class _Layout:
    """Names, shapes and order of a model's tensors, and the questions that the rule asks of them.

    Args:
        model: The model. Shared tensors are known by their first name only.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.buffers: dict[str, Tensor] = dict(model.named_buffers())
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self.module_order = {path: index for index, path in enumerate(self.modules)}
        self.names = sorted(
            [*self.parameters, *self.buffers],
            key=lambda name: self.module_order.get(_parent(name), 0),
        )
        self._position = {name: index for index, name in enumerate(self.names)}
        self._totals = Counter(path for name in self.names for path in _prefixes(name))

    def sort(self, names: Iterable[str]) -> Group:
        """Names in the order of the modules that own them, parameters before buffers."""
        return sorted(names, key=self._position.__getitem__)

    def has_weight(self, names: Iterable[str]) -> bool:
        """Whether any of the tensors is a parameter of two or more dimensions."""
        return any(name in self.parameters and self.parameters[name].ndim >= 2 for name in names)

    def units(self, group: Sequence[str]) -> dict[str, Group]:
        """Return a group as its largest whole modules: path -> tensors, in order.

        A tensor whose module is not wholly in the group stands for itself.
        """
        counts = Counter(path for name in group for path in _prefixes(name))
        units: dict[str, Group] = {}
        for name in group:
            whole = (path for path in _prefixes(name) if counts[path] == self._totals[path])
            units.setdefault(next(whole, name), []).append(name)
        return units

    def split_by_class(self, group: Group) -> list[Group]:
        """Cut a group between neighbours of one parent that are of different classes."""
        units = self.units(self.sort(group))
        parts = [list(next(iter(units.values())))]
        for before, here in pairwise(units):
            siblings = _parent(before) == _parent(here)
            both = before in self.modules and here in self.modules
            if siblings and both and type(self.modules[before]) is not type(self.modules[here]):
                parts.append([])
            parts[-1] += units[here]
        return parts

    def partitions(self, groups: Sequence[Group]) -> bool:
        """Whether the groups hold each tensor once and cut no layer in two."""
        owners: dict[str, int] = {}
        for index, group in enumerate(groups):
            for owner in {_parent(name) for name in group} - {""}:
                if owners.setdefault(owner, index) != index:
                    return False
        return sorted(name for group in groups for name in group) == sorted(self.names)

    def name_blocks(self, groups: Sequence[Group]) -> list[Block]:
        """Turn the final groups into blocks with unique names."""
        names = ["stem"]
        for index, group in enumerate(groups[1:-1], 1):
            name = self._name(group)
            names.append(f"{name}.{index}" if name in {*names, "head"} else name)
        return [self.block(*one) for one in zip([*names, "head"], groups, strict=True)]

    def block(self, name: str, group: Sequence[str]) -> Block:
        """Return a block of the given tensors."""
        parameters = tuple(tensor for tensor in group if tensor in self.parameters)
        return Block(
            name=name,
            parameter_names=parameters,
            buffer_names=tuple(tensor for tensor in group if tensor in self.buffers),
            n_parameters=sum(self.parameters[tensor].numel() for tensor in parameters),
        )

    def _name(self, group: Sequence[str]) -> str:
        """Return the path of the block's module, or of its first and last one."""
        units = self.units(group)
        main = [path for path, names in units.items() if self.has_weight(names)] or list(units)
        first, last = main[0], main[-1]
        if first == last:
            return first
        same_parent = _parent(first) == _parent(last) and _parent(first)
        return f"{first}-{last.rpartition('.')[2] if same_parent else last}"


def _refined_groups(layout: _Layout, *, fine: bool) -> tuple[list[Group], Group]:
    """Rules 1 to 5: the trunk's groups and the head, of the first grouping with enough blocks."""
    best: tuple[list[Group], Group] = ([], [])
    for initial in _initial_groupings(layout, fine=fine):
        groups, head = _carve_head(layout, initial)
        parts = [part for group in groups[1:] for part in layout.split_by_class(group)]
        groups = _absorb_weightless(layout, [groups[0], *parts])
        groups = _merge_single_convolutions(layout, groups)
        if len(groups) > len(best[0]):
            best = groups, head
        if len(groups) + 1 >= MIN_BLOCKS:
            break
    return best


def _initial_groupings(layout: _Layout, *, fine: bool) -> Iterator[list[Group]]:
    """Rule 1: groups of the model's own matcher, then of its children."""
    matcher = getattr(layout.model, "group_matcher", None)
    if callable(matcher):
        for coarse in (False, True) if fine else (True, False):
            groups = _groups_of_matcher(layout, matcher, coarse=coarse)
            if groups is not None:
                yield groups
    elif not hasattr(layout.model, "get_classifier"):
        raise _no_classifier(layout.model)
    yield _groups_of_children(layout)


def _groups_of_matcher(
    layout: _Layout, matcher: Callable[..., Any], *, coarse: bool
) -> list[Group] | None:
    """Group by timm's matcher; None where it refuses or does not give a partition."""
    from timm.models._manipulate import group_with_matcher

    try:
        grouped = group_with_matcher(((n, n) for n in layout.names), matcher(coarse=coarse))
    except (AssertionError, NotImplementedError, TypeError):
        return None
    groups = [list(names) for _, names in sorted(grouped.items())]
    return groups if layout.partitions(groups) else None


def _groups_of_children(layout: _Layout) -> list[Group]:
    """One group per top-level child; a Sequential or ModuleList gives one per member."""
    groups: dict[str, Group] = {}
    for name in layout.names:
        path = name.split(".")[0]
        container = isinstance(layout.modules.get(path), nn.Sequential | nn.ModuleList)
        groups.setdefault(".".join(name.split(".")[:2]) if container else path, []).append(name)
    # Tensors of the model itself (class token, position embedding) belong to the stem.
    loose = [name for name in layout.names if "." not in name]
    rest = [group for path, group in groups.items() if path not in loose]
    return [loose + rest[0], *rest[1:]]


def _carve_head(layout: _Layout, groups: Sequence[Group]) -> tuple[list[Group], Group]:
    """Rule 2: take the head out of the groups."""
    paths = classifier_paths(layout.model)
    # VGG keeps two of the paper's three classifier layers apart from timm's classifier.
    tops = {path.split(".")[0] for path in paths} | ({"pre_logits"} if paths else set())
    head = {name for name in layout.names if _has_ancestor(name, tops)}
    if len(head) > len(layout.names) / 2:
        head = {name for name in layout.names if _has_ancestor(name, paths)}
    rest = [[name for name in group if name not in head] for group in groups]
    rest = [group for group in rest if group]
    if not head or not rest:
        raise _no_classifier(layout.model)
    return rest, layout.sort(head)


def _no_classifier(model: nn.Module) -> ModelError:
    return ModelError(
        f"{type(model).__name__} has no classifier as timm's models have one: create it with "
        "num_classes=N, choose another model, or give its blocks as "
        "patterns={'stem': REGEX, ..., 'head': REGEX}"
    )


def _absorb_weightless(layout: _Layout, groups: Sequence[Group]) -> list[Group]:
    """Rule 4: a group without any matrix or kernel joins the block before it."""
    merged: list[Group] = []
    for group in groups:
        if merged and (not layout.has_weight(group) or not layout.has_weight(merged[-1])):
            merged[-1] = merged[-1] + group
        else:
            merged.append(group)
    return merged


def _merge_single_convolutions(layout: _Layout, groups: list[Group]) -> list[Group]:
    """Rule 5: where most groups are one bare convolution, merge them into declared stages."""

    def kernels(group: Group) -> list[Tensor]:
        found = (layout.parameters.get(name) for name in group)
        return [tensor for tensor in found if tensor is not None and tensor.ndim >= 2]

    single = sum(len(found) == 1 and found[0].ndim == 4 for found in map(kernels, groups))
    ends = [
        layout.module_order[info["module"]]
        for info in getattr(layout.model, "feature_info", None) or ()
        if isinstance(info, Mapping) and info.get("module") in layout.module_order
    ]
    if single <= len(groups) / 2 or not ends:
        return groups
    stages: dict[int, Group] = {}
    for group in groups:
        position = max(layout.module_order.get(_parent(name), 0) for name in group)
        stages.setdefault(sum(end < position for end in ends), []).extend(group)
    return [stages[stage] for stage in sorted(stages)]


def _merge_trunk(groups: list[Group], max_blocks: int) -> list[Group]:
    """Rule 6: merge neighbours after the stem in equal chunks; leave room for the head."""
    stem, trunk = groups[0], groups[1:]
    wanted = max_blocks - 2
    if len(trunk) <= wanted:
        return groups
    bounds = [round(index * len(trunk) / wanted) for index in range(wanted + 1)]
    chunks = [chain.from_iterable(trunk[start:end]) for start, end in pairwise(bounds)]
    return [stem, *map(list, chunks)]


def _blocks_from_patterns(layout: _Layout, patterns: Mapping[str, str]) -> list[Block]:
    """Blocks of any module from regular expressions over tensor names."""
    try:
        compiled = {name: re.compile(pattern) for name, pattern in patterns.items()}
    except re.error as error:
        raise ModelError(f"a block pattern is no regular expression: {error}") from error
    groups: dict[str, Group] = {name: [] for name in compiled}
    missed: Group = []
    for tensor in layout.names:
        found = (name for name, pattern in compiled.items() if pattern.match(tensor))
        groups.get(next(found, ""), missed).append(tensor)
    if missed:
        raise ModelError(f"no block pattern matches {_shown(missed)}")
    empty = [name for name, group in groups.items() if not group]
    if empty or not groups:
        raise ModelError(f"the pattern of block {_shown(empty or ['(none)'])} matches no tensor")
    if not layout.partitions(list(groups.values())):
        raise ModelError(
            "the block patterns cut a layer in two: match whole modules, such as 'layer1'"
        )
    return [layout.block(name, group) for name, group in groups.items()]


def _shown(names: Sequence[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + rest
