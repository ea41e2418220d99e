"""Labelled images in, splits, and batches on the device."""
