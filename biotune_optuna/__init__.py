"""BioTune on Optuna: evolutionary selective fine-tuning of vision models.

The public interface is the names in ``__init__.pyi``; everything else may change without notice.
They are imported when first used, so ``import biotune_optuna`` loads neither Optuna nor PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
