"""A study in optuna-dashboard: what serves it, and what is attached to it."""
