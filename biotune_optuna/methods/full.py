"""Full fine-tuning: every block at one rate."""

from __future__ import annotations

from biotune_optuna.methods.base import Method

METHODS = (Method(name="full", words="full fine-tuning", equal_budget=True, in_confirmation=True),)
