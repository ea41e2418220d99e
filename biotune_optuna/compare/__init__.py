"""BioTune against its rivals on many tasks: a resumable matrix, its statistics and its report."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
