"""Each operation against torchvision's own, applied image by image."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as v2

from biotune_optuna.data.trivial import OPERATIONS, apply_operations, trivial_augment

S = 32
BATCH = torch.randint(
    0, 256, (62, 3, S, S), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
BATCH = (BATCH // 2 + torch.arange(S).view(1, 1, 1, S).to(torch.uint8) * 3).to(torch.uint8)
STRENGTHS = (torch.arange(31) / 30).repeat_interleave(2)
SIGNS = torch.tensor([1.0, -1.0]).repeat(31)


def affine(
    image: torch.Tensor,
    *,
    angle: float = 0,
    move: tuple[float, float] = (0, 0),
    shear: tuple[float, float] = (0, 0),
    corner: bool = False,
) -> torch.Tensor:
    return v2.affine(
        image,
        angle=angle,
        translate=list(move),
        scale=1.0,
        shear=list(shear),
        center=[0.0, 0.0] if corner else None,
    )


def theirs(name: str, image: torch.Tensor, strength: float, sign: float) -> torch.Tensor:
    amount = strength * sign
    degrees = math.degrees(math.atan(0.99 * amount))
    pixels = amount * 32 / 224 * S
    return {
        "identity": lambda: image,
        "shear_x": lambda: affine(image, shear=(degrees, 0), corner=True),
        "shear_y": lambda: affine(image, shear=(0, degrees), corner=True),
        "translate_x": lambda: affine(image, move=(pixels, 0)),
        "translate_y": lambda: affine(image, move=(0, pixels)),
        "rotate": lambda: v2.rotate(image, angle=135 * amount),
        "brightness": lambda: v2.adjust_brightness(image, 1 + 0.99 * amount),
        "color": lambda: v2.adjust_saturation(image, 1 + 0.99 * amount),
        "contrast": lambda: v2.adjust_contrast(image, 1 + 0.99 * amount),
        "sharpness": lambda: v2.adjust_sharpness(image, 1 + 0.99 * amount),
        "posterize": lambda: v2.posterize(image, 8 - round(strength * 6)),
        "solarize": lambda: v2.solarize(image, 255 * (1 - strength)),
        "autocontrast": lambda: v2.autocontrast(image),
        "equalize": lambda: v2.equalize(image),
    }[name]()


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_torchvisions(name: str) -> None:
    number = OPERATIONS.index(name)
    found = apply_operations(BATCH, torch.full((62,), number), STRENGTHS, SIGNS)
    signs = -SIGNS if name in {"translate_x", "translate_y"} else SIGNS
    expected = torch.stack(
        [
            theirs(name, image, strength, sign)
            for image, strength, sign in zip(BATCH, STRENGTHS.tolist(), signs.tolist(), strict=True)
        ]
    )
    off = (found.int() - expected.int()).abs()
    if name in OPERATIONS[1:6]:  # nearest neighbour: rounding may choose the next pixel
        assert float((off > 0).float().mean()) < 0.02
    else:
        assert int(off.max()) <= 1
        assert float((off > 0).float().mean()) < 0.01


def test_operations_do_not_mix_between_images() -> None:
    operations = torch.arange(62) % len(OPERATIONS)
    together = apply_operations(BATCH, operations, STRENGTHS, SIGNS)
    for i in range(62):
        alone = apply_operations(
            BATCH[i : i + 1], operations[i : i + 1], STRENGTHS[i : i + 1], SIGNS[i : i + 1]
        )
        assert torch.equal(alone[0], together[i])


def test_all_operations_are_drawn() -> None:
    found = trivial_augment(BATCH, torch.Generator().manual_seed(0))
    assert found.dtype == torch.uint8
    assert found.shape == BATCH.shape
    assert not torch.equal(found, BATCH)
