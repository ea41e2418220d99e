"""What predicting costs; a report reads it without loading PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class PredictionCost(NamedTuple):
    """What it costs to predict with all members of a model.

    Attributes:
        members: How many there are.
        shared_blocks: Leading blocks that run once for all of them.
        blocks: Blocks in all; 0 where they are not known.
        passes: Cost of one image, in passes of it through one network: counted multiplications.
        single_ms: Milliseconds an image takes through the first member alone, measured.
        members_ms: The same through all members.
    """

    members: int
    shared_blocks: int
    blocks: int
    passes: float
    single_ms: float
    members_ms: float

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> PredictionCost | None:
        """Read what a study stores; None where something is missing or no number.

        Args:
            stored: The stored mapping.
        """
        values = [stored.get(name) for name in cls._fields]
        known = all(isinstance(one, (int, float)) for one in values)
        return cls(*values) if known else None  # type: ignore[arg-type]

    @property
    def words(self) -> str:
        """The cost in a sentence."""
        once = (
            f"the first {self.shared_blocks} of {self.blocks} blocks run once, the rest"
            if self.shared_blocks
            else "each image runs"
        )
        return (
            f"With its {self.members} members {once} {self.members} times: {self.passes:.2f} passes"
            f" an image instead of 1, here {self.members_ms:.2f} ms instead of"
            f" {self.single_ms:.2f} ms."
        )
