"""Models: any timm network as blocks, with pre-trained weights from wherever they can be had."""

DEFAULT_MAX_BLOCKS = 16
MIN_MAX_BLOCKS = 3
"""Bounds of ``max_blocks``, here for those who need not load PyTorch to know them."""
