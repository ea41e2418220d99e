"""The further members of an exported model: their files beside that of the first."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from biotune_optuna.errors import ModelError
from biotune_optuna.finetune.prefix.shared import differing
from biotune_optuna.models.states import read_state_dict, with_values

if TYPE_CHECKING:
    from torch import Tensor, nn


MEMBERS: Final = "members.safetensors"
"""Tensors of all members but the first: ``2/NAME``, ``3/NAME``, …"""

MEMBERS_CONFIG: Final = "members.json"
"""How the members are made of both files of weights."""

SCHEMA_VERSION: Final = 1

_MOST = 1000  # members of a folder from elsewhere


def describe(
    networks: Sequence[nn.Module], weights: Path, shares: Sequence[float] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `MEMBERS_CONFIG` and `MEMBERS` hold.

    Args:
        networks: The members, two at least.
        weights: The written weights of the first.
        shares: How much each counts; none where all count alike.

    Returns:
        The configuration, JSON-ready, and the tensors.
    """
    states = [network.state_dict() for network in networks]
    names = [name for name in states[0] if name in differing(networks)]
    config = {
        "schema_version": SCHEMA_VERSION,
        "members": len(networks),
        "prediction": "mean of the members' probabilities" + ", weighted" * bool(shares),
        **({"weights": list(shares)} if shares else {}),
        "first": {"file": weights.name, "sha256": digest(weights)},
        "others": {
            "file": MEMBERS,
            "names": "number of the member, from 2, a slash, name of the tensor",
            "tensors": names,
        },
    }
    tensors = {
        f"{number}/{name}": state[name].detach().cpu().contiguous().clone()
        for number, state in enumerate(states[1:], 2)
        for name in names
    }
    return config, tensors


def read(
    folder: Path, config: Mapping[str, Any], model: nn.Module, weights: str
) -> list[nn.Module]:
    """Return all members of an exported model.

    Args:
        folder: The folder.
        config: What its `MEMBERS_CONFIG` holds.
        model: The first member.
        weights: Name of the file of its weights.

    Returns:
        The first and the others, which share with it what no training has changed.

    Raises:
        ModelError: If the files do not fit one another or are damaged.
    """
    where = f"{MEMBERS_CONFIG} in {str(folder)!r}"
    count, others = config.get("members"), config.get("others")
    names = others.get("tensors") if isinstance(others, Mapping) else None
    if config.get("schema_version") != SCHEMA_VERSION:
        raise ModelError(
            f"{where} has the schema version {config.get('schema_version')!r}; this version reads "
            f"{SCHEMA_VERSION}"
        )
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        names, count = [], None
    if not isinstance(count, int) or not 2 <= count <= _MOST:
        raise ModelError(f"{where} does not say which members there are; export the model again")
    first = config.get("first")
    if not isinstance(first, Mapping) or first.get("sha256") != digest(folder / weights):
        raise ModelError(
            f"{where} belongs to other weights than those in {weights}; export the model again, or "
            "use it with --single"
        )
    stored = read_state_dict(folder / MEMBERS)
    own = model.state_dict()
    states = {n: {name: stored.get(f"{n}/{name}") for name in names} for n in range(2, count + 1)}
    for number, state in states.items():
        for name, tensor in state.items():
            _check(f"{number}/{name}", tensor, own.get(name), folder)
    if extra := sorted(stored.keys() - {f"{n}/{name}" for n in states for name in names}):
        raise ModelError(f"{MEMBERS} in {str(folder)!r} has {extra[0]!r}, which is no member's")
    return [model, *(with_values(model, state) for state in states.values())]  # type: ignore[arg-type]


def shares_of(config: Mapping[str, Any], count: int, folder: Path) -> tuple[float, ...]:
    """Return how much each member counts, none where all count alike.

    Args:
        config: What `MEMBERS_CONFIG` holds.
        count: How many members there are.
        folder: The folder.

    Raises:
        ModelError: If it does not say so of each.
    """
    shares = config.get("weights", [])
    known = isinstance(shares, list) and all(
        isinstance(one, (int, float)) and not isinstance(one, bool) and 0 < one < math.inf
        for one in shares
    )
    if not known or len(shares) not in (0, count):
        raise ModelError(
            f"{MEMBERS_CONFIG} in {str(folder)!r} does not say how much each member counts; export "
            "the model again, or use it with --single"
        )
    return tuple(shares)


def digest(file: Path) -> str | None:
    """SHA-256 of a file's content, None where there is none to read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def _check(key: str, tensor: Tensor | None, own: Tensor | None, folder: Path) -> None:
    """Refuse a tensor that is missing or is none of the model's."""
    where = f"{MEMBERS} in {str(folder)!r}"
    if tensor is None:
        raise ModelError(f"{where} lacks {key!r}; export the model again, or use it with --single")
    if own is None or tensor.shape != own.shape or tensor.dtype != own.dtype:
        raise ModelError(
            f"{where} has {key!r}, which does not fit the model; export the model again, or use it "
            "with --single"
        )
