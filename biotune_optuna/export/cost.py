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
        members_ms: The same through all members, in all views.
        views: How often each image is shown.
    """

    members: int
    shared_blocks: int
    blocks: int
    passes: float
    single_ms: float
    members_ms: float
    views: int = 1

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> PredictionCost | None:
        """Read what a study stores; None where something is missing or no number.

        Args:
            stored: The stored mapping.
        """
        values = [stored.get(name, cls._field_defaults.get(name)) for name in cls._fields]
        known = all(isinstance(one, (int, float)) for one in values)
        return cls(*values) if known else None

    @property
    def words(self) -> str:
        """The cost in a sentence."""
        once = (
            f"the first {self.shared_blocks} of {self.blocks} blocks run once, the rest"
            if self.shared_blocks
            else "each image runs"
        )
        cost = (
            f"{self.passes:.2f} passes an image instead of 1, here {self.members_ms:.2f} ms instead"
            f" of {self.single_ms:.2f} ms."
        )
        if self.members == 1:
            return f"Each image is shown {self.views} times: {cost}"
        shown = f" and each image is shown {self.views} times" * (self.views > 1)
        return f"With its {self.members} members {once} {self.members} times{shown}: {cost}"
