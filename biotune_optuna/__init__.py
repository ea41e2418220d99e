"""BioTune on Optuna: evolutionary selective fine-tuning of vision models."""
