"""A network cut in two behind its frozen prefix, without knowing its code.

One traced forward pass finds F, the first module entered that holds only tensors of the suffix. The
prefix is everything up to F's input. The suffix is the network's own ``forward`` again, in which
modules that had finished before F return dummies of the right shape at no cost and F gets its
cached input, so whatever code stands between modules after F runs as it always does.

That is exact where the suffix sees the prefix through F's input alone. Networks whose suffix looks
further back give other logits, or other gradients, and are found out by `PrefixCut.agrees`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from biotune_optuna.finetune.device import is_lost, out_of_memory

if TYPE_CHECKING:
    from torch import nn

    Features = tuple[torch.Tensor, ...]


EXACT = 1e-4
"""Largest difference, relative to the largest value, between the same sums in another order; these
stay far below."""

ALIKE = 1e-2
"""The same between what only rounding may tell apart; dropout, batch statistics and an adapter that
is merged wrongly move values by far more."""

_NOTHING = 1e-3
"""Gradients that are so much smaller than the largest of all are compared with this share of it."""

CHECKED_IMAGES = 4
"""Images on which two networks are compared: enough for batch statistics, and quickly done."""


class _Reached(Exception):  # noqa: N818 - unwinds the forward pass at F
    pass


@dataclass
class _Trace:
    """What one forward pass did up to F."""

    finished: list[tuple[nn.Module, Any]] = field(default_factory=list)
    inputs: Any = None
    entries: int = 0
    f_output: Any = None
    output: Any = None


def find_cut(
    model: nn.Module, suffix: set[str], sample: Callable[[int], torch.Tensor]
) -> PrefixCut | None:
    """Find where a network's suffix begins.

    Args:
        model: The network, in eval mode.
        suffix: Names of the parameters and buffers behind the cut.
        sample: Gives that many images, (n, 3, H, W).

    Returns:
        The cut; None where there is no module to cut at, or what crosses the cut is not made of
        one row an image.
    """
    candidates = _candidates(model, suffix)
    # two batch sizes tell what has one row an image from what only looks so
    first, second = (_trace(model, candidates, sample(n)) for n in (2, 3))
    if first is None or second is None:
        return None
    module, a = first
    other, b = second
    if module is not other or len(a.finished) != len(b.finished):
        return None
    stubs: dict[nn.Module, list[_Template]] = {}
    for (m, out_a), (n, out_b) in zip(a.finished, b.finished, strict=True):
        template = _template(out_a, out_b)
        if m is not n or template is None:
            return None
        stubs.setdefault(m, []).append(template)
    inputs = _template(a.inputs, b.inputs)
    if inputs is None or not any(inputs.per_image):
        return None
    direct = a.entries == b.entries == 1 and a.output is a.f_output and b.output is b.f_output
    shape = sample(2).shape[1:]
    return PrefixCut(model, module, stubs, inputs, image_shape=shape, direct=direct)


@dataclass(eq=False)
class PrefixCut:
    """A network cut before one of its modules; made by `find_cut`.

    Attributes:
        model: The network.
        module: F, the first module of the suffix.
        stubs: Modules that finish before F, with the outputs of each of their calls.
        inputs: F's inputs.
        image_shape: (3, H, W).
        direct: Whether F's output is the network's own, so that F alone is the suffix.
    """

    model: nn.Module
    module: nn.Module
    stubs: dict[nn.Module, list[_Template]]
    inputs: _Template
    image_shape: tuple[int, ...]
    direct: bool

    def __post_init__(self) -> None:
        self._features: Features | None = None
        self._calls: dict[nn.Module, int] = {}
        self._rows = 0
        args, kwargs = self.inputs.fill(self.inputs.rows)
        self._one_input = len(args) == len(self.inputs.leaves) == 1 and not kwargs

    @property
    def bytes_per_image(self) -> int:
        """Memory of what crosses the cut, for one image."""
        return sum(leaf.numel() * leaf.element_size() for leaf in self.inputs.rows)

    def prefix(self, images: torch.Tensor) -> Features:
        """Run the network up to the cut, in the modes it is in.

        Args:
            images: (n, 3, H, W).

        Returns:
            What crosses the cut: tensors of n rows.
        """
        caught: list[Any] = []

        def stop(_module: nn.Module, args: Any, kwargs: Any) -> None:
            caught.append((args, kwargs))
            raise _Reached

        handle = self.module.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with contextlib.suppress(_Reached):
                self.model(images)
        finally:
            handle.remove()
        leaves = pytree.tree_leaves(caught[0])
        return tuple(leaf for leaf, rows in zip(leaves, self.inputs.per_image, strict=True) if rows)

    @contextlib.contextmanager
    def installed(self) -> Iterator[Callable[[Features], torch.Tensor]]:
        """Turn the network into its suffix, and back afterwards.

        Yields:
            Maps what crosses the cut to logits (n, C).
        """
        if self.direct:
            yield self._run_module
            return
        before = {m: m.__dict__.get("forward") for m in self.stubs}
        handle = self.module.register_forward_pre_hook(self._inject, with_kwargs=True)
        try:
            for module in self.stubs:
                module.__dict__["forward"] = self._stub(module)
            yield self._run_network
        finally:
            handle.remove()
            for module, forward in before.items():
                del module.__dict__["forward"]
                if forward is not None:
                    module.__dict__["forward"] = forward

    def agrees(self, images: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> bool:
        """Whether the cut network gives the whole one's logits and gradients.

        Args:
            images: (n, 3, H, W).
            parameters: The suffix's parameters; they must require a gradient.
        """
        whole = _probe(lambda: self.model(images), parameters)
        with torch.no_grad():
            features = tuple(f.clone() for f in self.prefix(images))
        try:
            with self.installed() as suffix:
                cut = _probe(lambda: suffix(features), parameters)
        except RuntimeError as error:
            if out_of_memory(error) or is_lost(error):
                raise
            return False  # code between modules that cannot work on dummies
        (logits, *gradients), (cut_logits, *cut_gradients) = whole, cut
        # some gradients are zero but for rounding, as those of an attention's key biases
        least = _NOTHING * max((float(g.abs().max()) for g in gradients if g.numel()), default=0.0)
        return close(logits, cut_logits) and all(
            close(a, b, least=least) for a, b in zip(gradients, cut_gradients, strict=True)
        )

    # -- the suffix ------------------------------------------------------------------------------

    def _run_module(self, features: Features) -> torch.Tensor:
        if self._one_input:  # most networks, and worth sparing the unpacking
            args, kwargs = features, {}
        else:
            args, kwargs = self.inputs.fill(features)
        logits: torch.Tensor = self.module(*args, **kwargs)
        return logits

    def _run_network(self, features: Features) -> torch.Tensor:
        self._features = features
        self._rows = len(features[0])
        self._calls.clear()
        images = features[0].new_zeros(1, dtype=torch.float32)
        try:
            logits: torch.Tensor = self.model(images.expand(self._rows, *self.image_shape))
        finally:
            self._features = None
        return logits

    def _inject(self, _module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self._features is None:
            return None
        leaves, spec = pytree.tree_flatten((args, kwargs))
        filled = replace(self.inputs, leaves=leaves, spec=spec).fill(self._features)
        self._features = None  # from here on the network runs as it is
        return filled

    def _stub(self, module: nn.Module) -> Callable[..., Any]:
        templates = self.stubs[module]
        real = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = self._calls.get(module, 0)
            if self._features is None or call >= len(templates):
                return real(*args, **kwargs)
            self._calls[module] = call + 1
            return templates[call].dummy(self._rows)

        return forward


def _probe(
    forward: Callable[[], torch.Tensor], parameters: Sequence[torch.nn.Parameter]
) -> list[torch.Tensor]:
    """Logits, and their gradients in a random direction; a missing gradient counts as 0."""
    with torch.enable_grad():
        logits = forward()
        generator = torch.Generator().manual_seed(0)
        along = (logits * torch.randn(logits.shape, generator=generator).to(logits)).sum()
        found = torch.autograd.grad(along, list(parameters), allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return [logits.detach(), *(torch.zeros_like(p) if g is None else g for g, p in pairs)]


@dataclass
class _Template:
    """A nest of values of which some tensors have one row an image.

    Attributes:
        leaves: The values of one call; zeros of one row, which take no memory, in place of what
            has one row an image.
        per_image: Which leaves those are.
        spec: The nest.
    """

    leaves: list[Any]
    per_image: list[bool]
    spec: Any

    @property
    def rows(self) -> list[torch.Tensor]:
        """The tensors with one row an image."""
        return [leaf for leaf, rows in zip(self.leaves, self.per_image, strict=True) if rows]

    def dummy(self, n: int) -> Any:
        """Return the nest for n images, with zeros in place of what has rows."""
        return self.fill([leaf.expand(n, *leaf.shape[1:]) for leaf in self.rows])

    def fill(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Return the nest with these tensors in place of what has rows."""
        given = iter(tensors)
        pairs = zip(self.leaves, self.per_image, strict=True)
        return pytree.tree_unflatten(
            [next(given) if is_row else leaf for leaf, is_row in pairs], self.spec
        )


def _candidates(model: nn.Module, suffix: set[str]) -> set[nn.Module]:
    """Modules that hold tensors, all of them in the suffix."""
    named = (*model.named_parameters(), *model.named_buffers())
    behind = {id(tensor) for name, tensor in named if name in suffix}
    found = set()
    for module in model.modules():
        held = [id(t) for t in (*module.parameters(), *module.buffers())]
        if held and all(t in behind for t in held):
            found.add(module)
    return found


def _trace(
    model: nn.Module, candidates: set[nn.Module], images: torch.Tensor
) -> tuple[nn.Module, _Trace] | None:
    """One forward pass, watched; None if it enters no candidate."""
    trace = _Trace()
    reached: list[nn.Module] = []
    open_calls: list[int] = []  # how many calls had finished when each open one began

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        if reached:
            trace.entries += module is reached[0]
        elif module in candidates:
            reached.append(module)
            trace.entries, trace.inputs = 1, (args, kwargs)
        else:
            open_calls.append(len(trace.finished))

    def leave(module: nn.Module, _args: Any, output: Any) -> None:
        if not reached:
            # a finished call stands for all calls inside it
            del trace.finished[open_calls.pop() :]
            trace.finished.append((module, output))
        elif module is reached[0] and trace.f_output is None:
            trace.f_output = output

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        with torch.no_grad():
            trace.output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return (reached[0], trace) if reached else None


def _template(first: Any, second: Any) -> _Template | None:
    """Return what calls with 2 and with 3 images have in common; None if they do not match."""
    leaves, spec = pytree.tree_flatten(first)
    others, other_spec = pytree.tree_flatten(second)
    if spec != other_spec:
        return None
    kept, per_image = [], []
    for a, b in zip(leaves, others, strict=True):
        if _has_rows(a, b):
            kept.append(a.new_zeros(()).expand(1, *a.shape[1:]))
            per_image.append(True)
        elif _same(a, b):
            kept.append(a.detach().clone() if isinstance(a, torch.Tensor) else a)
            per_image.append(False)
        else:
            return None
    return _Template(kept, per_image, spec)


def _has_rows(a: Any, b: Any) -> bool:
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.dtype == b.dtype):
        return False
    one_image = a.shape[1:]
    return a.shape == (2, *one_image) and b.shape == (3, *one_image)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def close(
    a: torch.Tensor, b: torch.Tensor, tolerance: float = EXACT, *, least: float = 0.0
) -> bool:
    """Whether b is finite and nowhere further from a than a share of a's largest value.

    Args:
        a: Values.
        b: Others of that shape.
        tolerance: The share.
        least: Take the largest value for at least that.
    """
    scale = max(float(a.abs().max()), least, 1e-6)
    return bool(torch.isfinite(b).all()) and float((a - b).abs().max()) <= tolerance * scale
