"""The evolutionary strategy: pure functions, no Optuna, no clock, no global random state."""
