from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from biotune_optuna.data import loaders
from biotune_optuna.data.augment import AUGMENTATIONS, augment
from biotune_optuna.data.loaders import DeviceImages, Normalize
from biotune_optuna.data.pixels import PixelStore
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.data.transfer import to_device
from biotune_optuna.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def images(tmp_path: object) -> DeviceImages:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    source = open_images(pixels, labels=np.arange(30) % 3)
    store = PixelStore.build(source, size=16, cache_dir=tmp_path)  # type: ignore[arg-type]
    return DeviceImages(store, source.labels, mean=MEAN, std=STD)


def test_batch_is_normalised_in_the_order_asked_for(images: DeviceImages) -> None:
    idx = torch.tensor([7, 2, 2, 29])
    found = images.batch(idx)
    raw = torch.from_numpy(np.array(images.store.pixels[idx.numpy()])).double() / 255.0
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    assert found.dtype == torch.float32
    assert found.shape == (4, 3, 16, 16)
    torch.testing.assert_close(found.double(), (raw - mean) / std, rtol=0, atol=2e-6)
    assert images.labels(idx).tolist() == [1, 2, 2, 2]
    assert images.labels(idx).dtype == torch.int64


def test_memory_format_is_as_asked_for_and_values_are_the_same(images: DeviceImages) -> None:
    plain = DeviceImages(
        images.store,
        images.labels(torch.arange(30)).numpy(),
        mean=MEAN,
        std=STD,
        channels_last=False,
    )
    idx = np.array([3, 1])
    assert images.batch(idx).is_contiguous(memory_format=torch.channels_last)
    assert plain.batch(idx).is_contiguous()
    assert torch.equal(plain.batch(idx), images.batch(idx))
    assert torch.equal(images.batch(idx), images.batch(torch.from_numpy(idx)))


def test_size_classes_length(images: DeviceImages) -> None:
    assert (len(images), images.size, images.n_classes) == (30, 16, 3)
    more = DeviceImages(images.store, [0] * 30, mean=MEAN, std=STD, n_classes=5)
    assert more.n_classes == 5


def test_labels_must_fit(images: DeviceImages) -> None:
    with pytest.raises(DataError, match="29 labels do not fit 30 images"):
        DeviceImages(images.store, [0] * 29, mean=MEAN, std=STD)
    with pytest.raises(DataError, match="need 3 values"):
        DeviceImages(images.store, [0] * 30, mean=(0.5,), std=STD)


def test_batch_does_not_touch_the_store(images: DeviceImages) -> None:
    before = np.array(images.store.pixels)
    for policy in AUGMENTATIONS:
        images.batch(torch.arange(30), augmentation=policy, generator=torch.Generator())
    assert (images.store.pixels == before).all()


@pytest.mark.parametrize("policy", AUGMENTATIONS)
def test_augmentation_follows_from_its_generator_alone(images: DeviceImages, policy: str) -> None:
    idx = torch.arange(30)

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return images.batch(idx, augmentation=policy, generator=generator)

    state = torch.get_rng_state()
    first = draw(1)
    torch.rand(5)
    assert torch.equal(first, draw(1))
    torch.set_rng_state(state)
    draw(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, draw(2)) == (policy == "none")
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_one_image_many_times_is_augmented_each_time_anew(images: DeviceImages) -> None:
    idx = torch.zeros(64, dtype=torch.int64)
    for policy, least in (("flip", 2), ("crop-flip", 60), ("trivial", 20)):
        batch = images.batch(idx, augmentation=policy, generator=torch.Generator().manual_seed(0))
        assert len(torch.unique(batch.flatten(1), dim=0)) >= least


def test_flip_mirrors_about_half_and_leaves_the_rest() -> None:
    batch = torch.randint(0, 256, (1000, 3, 4, 4), dtype=torch.uint8)
    found = augment(batch, "flip", torch.Generator().manual_seed(0))
    same = (found == batch).flatten(1).all(1)
    mirrored = (found == batch.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 430 < int(mirrored.sum()) < 570  # more than four standard deviations either way


def test_crop_stays_inside_the_image_and_keeps_its_colours() -> None:
    ramp = torch.arange(32, dtype=torch.uint8).view(1, 1, 1, 32).expand(200, 3, 32, 32) * 8
    found = augment(ramp, "crop-flip", torch.Generator().manual_seed(0)).float()
    widths = (found.amax(3) - found.amin(3))[:, 0, 0] / 248.0
    steps = found.diff(dim=3)
    assert (found <= 248).all()
    assert ((steps >= -1).flatten(1).all(1) | (steps <= 1).flatten(1).all(1)).all()
    assert float(widths.min()) > 0.55  # sqrt(0.5 * 3 / 4) = 0.61, less half a pixel on each side
    assert float(widths.max()) > 0.95


def test_unknown_policy_and_missing_generator(images: DeviceImages) -> None:
    with pytest.raises(DataError, match="'spin' is unknown; known are none, flip"):
        images.batch(torch.arange(2), augmentation="spin", generator=torch.Generator())
    with pytest.raises(ValueError, match="generator"):
        images.batch(torch.arange(2), augmentation="flip")


def test_what_torch_keeps_free_on_a_gpu_counts_as_free(
    images: DeviceImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.device = torch.device("cuda", 0)
    takes = 30 * 16 * 16 * 3
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (takes, 10 * takes))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: takes)
    for reserved, fits in ((takes, False), (2 * takes, False), (3 * takes, True)):
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device, r=reserved: r)
        assert images._fits("auto") == fits
    assert images._fits(True)
    assert not images._fits(False)


class _TooLarge(torch.Tensor):
    def to(self, *_args: object, **_options: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_pixels_that_do_not_fit_after_all_stay_on_the_host(
    images: DeviceImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pixels(given: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(given)).as_subclass(_TooLarge)

    monkeypatch.setattr(loaders, "_as_tensor", pixels)
    given = (images.store, [0] * 30)
    assert not DeviceImages(*given, mean=MEAN, std=STD, device="meta").resident
    with pytest.raises(torch.OutOfMemoryError):
        DeviceImages(*given, mean=MEAN, std=STD, device="meta", resident=True)


def test_copies_to_a_gpu_wait_for_nothing() -> None:
    asked = []
    tensor = SimpleNamespace(to=lambda _device, *, non_blocking: asked.append(non_blocking))
    for kind in ("cuda", "mps", "cpu"):
        to_device(tensor, torch.device(kind))  # type: ignore[arg-type]
    assert asked == [True, False, False]


def test_normalize_refuses_zero_std() -> None:
    with pytest.raises(DataError, match="std > 0"):
        Normalize(MEAN, (0.0, 1.0, 1.0))
