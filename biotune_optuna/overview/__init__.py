"""A look at labelled images before anything is trained."""

from biotune_optuna.overview.check import ImageCheck, check_images

__all__ = ["ImageCheck", "check_images"]
