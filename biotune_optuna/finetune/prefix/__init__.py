"""Outputs of the frozen prefix, computed once: where to cut, what to keep, when it pays."""
