"""Batches of normalised images on the device, gathered from decoded pixels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biotune_optuna.data.augment import augment
from biotune_optuna.data.transfer import to_device
from biotune_optuna.errors import DataError

if TYPE_CHECKING:
    from biotune_optuna.data.pixels import PixelStore

# Share of a device's free memory that images may take up when resident="auto": the rest is for
# weights, activations and cached prefixes.
_RESIDENT_SHARE = 0.4


class Normalize:
    """``(pixel / 255 - mean) / std``, as one multiplication and one addition.

    Training and prediction both normalise through this class, so they get the same numbers.

    Args:
        mean: Per channel, on the scale 0 to 1.
        std: Per channel, on the scale 0 to 1.
        device: Where the batches are.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
    ) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise DataError(f"mean {tuple(mean)!r} and std {tuple(std)!r} need 3 values, std > 0")
        wide_mean = torch.tensor(mean, dtype=torch.float64)
        wide_std = torch.tensor(std, dtype=torch.float64)
        self._scale = (1.0 / (255.0 * wide_std)).float().to(device).view(1, 3, 1, 1)
        self._shift = (-wide_mean / wide_std).float().to(device).view(1, 3, 1, 1)
        self._spread: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise a uint8 batch of shape (B, 3, H, W), keeping its memory format."""
        floats = images.to(torch.float32)
        scale, shift = self._scale, self._shift
        if floats.device.type == "cpu":
            scale, shift = self._spread_over(floats.shape[2], floats.shape[3])
        return floats.mul_(scale).add_(shift)

    def _spread_over(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the factors written out per pixel, channels last: on a CPU 3 to 5 times as fast.

        An innermost dimension of three defeats vectorisation; one of three times the width does
        not. The numbers are the same.
        """
        if (height, width) not in self._spread:
            self._spread[height, width] = tuple(  # type: ignore[assignment]
                factor.expand(1, 3, height, width).contiguous(memory_format=torch.channels_last)
                for factor in (self._scale, self._shift)
            )
        return self._spread[height, width]


class DeviceImages:
    """A data set as the trainer sees it: index in, normalised batch on the device out.

    Args:
        store: Decoded pixels.
        labels: Class index per image, shape (N,).
        mean: Per channel, on the scale 0 to 1.
        std: Per channel, on the scale 0 to 1.
        device: Where batches are wanted.
        channels_last: Memory format of the batches.
        resident: Keep all pixels on the device: True, False, or ``"auto"`` for "if they fit". On a
            CPU the pixels stay in the memory-mapped file, whose pages the system shares between
            processes and takes back when it needs the room.
        n_classes: Number of classes; default the largest label plus one.

    Raises:
        DataError: Labels do not fit the pixels, or mean and std are no three values each.
    """

    def __init__(
        self,
        store: PixelStore,
        labels: NDArray[np.int64] | Sequence[int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        channels_last: bool = True,
        resident: bool | str = "auto",
        n_classes: int | None = None,
    ) -> None:
        self.store = store
        self.device = torch.device(device)
        self._channels_last = channels_last
        self._normalize = Normalize(mean, std, self.device)
        numbers = torch.as_tensor(np.array(labels, dtype=np.int64))
        if len(numbers) != len(store):
            raise DataError(f"{len(numbers)} labels do not fit {len(store)} images")
        self._labels = numbers.to(self.device)
        self.n_classes = int(numbers.max()) + 1 if n_classes is None else n_classes
        # (N, H, W, 3): what is gathered from it is channels last without another copy.
        self._pixels = _as_tensor(store.pixels.transpose(0, 2, 3, 1))
        self.resident = self.device.type == "cpu" or self._fits(resident)
        if self.resident:
            try:
                self._pixels = self._pixels.to(self.device)
            except torch.OutOfMemoryError:  # others took it since
                if resident != "auto":
                    raise
                self.resident = False

    def _fits(self, resident: bool | str) -> bool:
        if resident != "auto":
            return bool(resident)
        if self.device.type != "cuda":
            return True
        free = torch.cuda.mem_get_info(self.device)[0]
        # torch keeps what this process has given back, so the driver counts it as taken
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return self._pixels.numel() <= _RESIDENT_SHARE * (free + kept)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def size(self) -> int:
        """Side of the images, in pixels."""
        return int(self._pixels.shape[1])

    def batch(
        self,
        idx: Tensor | NDArray[np.int64],
        *,
        augmentation: str = "none",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Normalised images.

        Args:
            idx: Image numbers, int64, shape (B,).
            augmentation: One of :data:`AUGMENTATIONS`.
            generator: CPU generator of the augmentation's draws; needed unless it is ``"none"``.

        Returns:
            float32 tensor of shape (B, 3, H, W) on the device.

        Raises:
            DataError: The augmentation is unknown.
        """
        images = self.raw(idx)
        if augmentation != "none":
            if generator is None:
                raise ValueError("augmentation needs a generator")
            images = augment(images, augmentation, generator)
        memory_format = torch.channels_last if self._channels_last else torch.contiguous_format
        # Rearranged while still bytes: a quarter of the memory traffic.
        return self._normalize(images.contiguous(memory_format=memory_format))

    def raw(self, idx: Tensor | NDArray[np.int64]) -> Tensor:
        """Return the stored pixels, uint8 of shape (B, 3, H, W) on the device, channels last."""
        where = torch.as_tensor(idx)
        if self.resident:
            found = self._pixels.index_select(0, to_device(where, self.device))
        else:
            found = to_device(self._pixels.index_select(0, where.cpu()).pin_memory(), self.device)
        return found.permute(0, 3, 1, 2)

    def labels(self, idx: Tensor | NDArray[np.int64]) -> Tensor:
        """Class indices, int64 of shape (B,), on the device."""
        return self._labels[to_device(torch.as_tensor(idx), self.device)]


def _as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Return a tensor over the same memory, which for a memory map is read only."""
    with warnings.catch_warnings():
        # torch cannot mark a tensor read only and says so; nothing here writes to it.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(pixels)
