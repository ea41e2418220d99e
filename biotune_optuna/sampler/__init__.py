"""Slots of the evolution kept in an Optuna study: claims, history, and the choice of a slot."""
