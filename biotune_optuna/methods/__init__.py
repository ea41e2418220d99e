"""Ways to fine-tune, one file a paper: BioTune's rivals."""

from biotune_optuna.finetune.hooks import Hooks
from biotune_optuna.methods.base import Method, Setting
from biotune_optuna.methods.registry import get_method, methods, register

__all__ = ["Hooks", "Method", "Setting", "get_method", "methods", "register"]
