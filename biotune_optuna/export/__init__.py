"""The tuned model as a folder that stands on its own, and predictions from such a folder.

The folder has timm's hub layout, so using it elsewhere needs nothing of this package::

    timm.create_model("local-dir:DIR", pretrained=True)
    timm.create_model(NAME, num_classes=N, checkpoint_path="DIR/model.safetensors")

Beside the weights lie the class names, the exact preprocessing, the recipe and a model card.

Its names are imported when they are first used, so that a report loads no PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
