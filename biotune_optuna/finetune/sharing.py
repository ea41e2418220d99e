"""How many workers share a device; ``biotune launch`` says so in the environment. No torch here."""

from __future__ import annotations

import os
from typing import Final

SHARING: Final = "BIOTUNE_WORKERS_PER_DEVICE"
"""Environment variable: workers on this worker's device."""


def sharers() -> int:
    """Return how many workers share this process's device; 1 where nobody says."""
    said = os.environ.get(SHARING, "")
    return max(1, int(said)) if said.isdecimal() else 1
