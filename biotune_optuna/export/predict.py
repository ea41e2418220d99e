"""Predictions of a tuned model for new images: batched, one bad image never stops the rest."""

from __future__ import annotations

import copy
import csv
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from biotune_optuna.data.decode import (
    DECODE_ERRORS,
    IMAGE_SUFFIXES,
    array_to_image,
    preprocess,
    read_image,
)
from biotune_optuna.data.loaders import DeviceImages
from biotune_optuna.data.pixels import PixelStore
from biotune_optuna.data.sources.scan import worker_count
from biotune_optuna.data.views import shown
from biotune_optuna.errors import BioTuneError, DataError, ModelError
from biotune_optuna.export.cost import PredictionCost
from biotune_optuna.files import csv_cell, replace_text
from biotune_optuna.finetune.calibration import tempered
from biotune_optuna.finetune.device import (
    autocast,
    channels_last,
    full_precision,
    kernels,
    prediction_dtype,
    resolve_device,
)
from biotune_optuna.finetune.feeds import probabilities
from biotune_optuna.finetune.prefix.shared import SharedPrefix, mean_probabilities

if TYPE_CHECKING:
    import torch
    from torch import nn

    from biotune_optuna.data.preprocessing import Preprocessing
    from biotune_optuna.export.evaluate import Evaluation
    from biotune_optuna.finetune.calibration import Calibration
    from biotune_optuna.recipe import Recipe


_TIMED_IMAGES, _TIMES = 8, 3
_FEWEST_TO_ADAPT = 16  # images: fewer say little of what the network sees


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What the model says about one image.

    Attributes:
        image: The path as given, or ``image N`` (from 0) for a picture in memory.
        label: Most probable class; None if the image could not be read.
        probability: Its probability; 0 if the image could not be read.
        top: The most probable classes with their probabilities, best first.
        probabilities: Probability of every class, (C,) float32, in the order of the classes; empty
            if the image could not be read.
        disagreement: Share of the members, as far as they count, whose own most probable class is
            another; None where the
            model has one member, or the image could not be read.
        error: One line if the image could not be read, else None.
    """

    image: str
    label: str | None
    probability: float
    top: tuple[tuple[str, float], ...]
    probabilities: NDArray[np.float32]
    disagreement: float | None = None
    error: str | None = None


class Predictor:
    """A tuned model with all that it takes to use it on new images.

    ::

        exported = load_exported("model/")
        for prediction in exported.predict(["a.jpg", "b.png", "folder/"]):
            print(prediction.image, prediction.label, prediction.probability)

    Args:
        model: The network; it is moved to the device and put into eval mode.
        members: Further networks of the same make. All together predict: the mean of their
            probabilities. The leading blocks in which they do not differ run once.
        weights: How much ``model`` and each further member count in that mean; none where all count
            alike.
        calibration: What the probabilities are tempered by; None leaves them as they are.
        name: timm's model name.
        classes: Class names in the order of the outputs.
        preprocessing: What happens to a picture before the network sees it.
        recipe: How the model was trained, if known.
        device: ``auto``, ``cpu``, ``cuda:N`` or ``mps``.
        trained_on: `ImageSource.fingerprint` of the images it was made of, if known.

    Attributes:
        model: As given.
        members: As given, a tuple.
        weights: As given, a tuple.
        calibration: As given.
        name: As given.
        classes: As given, a tuple.
        preprocessing: As given.
        recipe: As given.
        trained_on: As given.
        device: Where the model is.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        members: Sequence[nn.Module] = (),
        weights: Sequence[float] = (),
        calibration: Calibration | None = None,
        name: str,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        recipe: Recipe | None = None,
        device: str | torch.device = "auto",
        trained_on: str | None = None,
    ) -> None:
        self.device = resolve_device(device)
        networks = [network.to(self.device).eval() for network in (model, *members)]
        if preprocessing.channels_last:
            networks = [channels_last(network) for network in networks]
        self.model, *others = networks
        self.members = tuple(others)
        self.weights = tuple(weights) if others else ()
        self.calibration = calibration
        self._shared: SharedPrefix | None = None
        self.name = name
        self.classes = tuple(classes)
        self.preprocessing = preprocessing
        self.recipe = recipe
        self.trained_on = trained_on

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: weights on the CPU, to be read where there is no such device."""
        networks = (self.model, *self.members)
        if self.device.type != "cpu":
            networks = tuple(network.cpu() for network in copy.deepcopy(networks))
        model, *members = networks
        own = {"model": model, "members": tuple(members), "_shared": None}
        return self.__dict__ | own | {"device": str(self.device)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        try:
            device = resolve_device(state["device"])
        except BioTuneError:
            device = resolve_device("auto")
        model, *members = (one.to(device) for one in (state["model"], *state["members"]))
        self.__dict__.update(state, device=device, model=model, members=tuple(members))

    @property
    def shared(self) -> SharedPrefix:
        """The networks as one that runs in common what they have in common."""
        if self._shared is None:
            networks = (self.model, *self.members)
            blocks = self.recipe.blocks if self.recipe is not None and self.members else ()
            with full_precision(self.device):
                self._shared = SharedPrefix.find(networks, blocks, self._sample)
        return self._shared

    def _sample(self, n: int) -> torch.Tensor:
        import torch

        side = self.preprocessing.size
        images = torch.randn((n, 3, side, side), generator=torch.Generator().manual_seed(0))
        if self.preprocessing.channels_last:
            images = images.to(memory_format=torch.channels_last)
        return images.to(self.device)

    def predict(
        self, images: Any, *, batch_size: int | None = None, top_k: int = 5
    ) -> list[Prediction]:
        """Classifies images.

        With the default batch size and all images readable, the probabilities of the same images in
        the same order are, on a CPU with the same number of threads, equal to the bit to those of
        `Trainer.predict` with the model in memory. Another order or batch size may change their
        last bits. Those of several members are the mean of theirs, to rounding, and so are those of
        several views of an image; where the model has a calibration they are tempered by it.

        Args:
            images: Paths of image files or of folders (all images below it, by name, but hidden
                ones), pictures (``PIL.Image``) or uint8 arrays (H, W) or (H, W, C); one of these or
                many.
            batch_size: Images at once; None takes that of training.
            top_k: Length of `Prediction.top`, at most the number of classes.

        Returns:
            One prediction per image, in order; unreadable images have `Prediction.error` set.

        Raises:
            DataError: If there are no images, or ``batch_size`` or ``top_k`` is below 1.
        """
        found = list(self.iter_predict(images, batch_size=batch_size, top_k=top_k))
        if not found:
            raise DataError("there are no images to predict; give image files or folders with some")
        return found

    def iter_predict(
        self, images: Any, *, batch_size: int | None = None, top_k: int = 5
    ) -> Iterator[Prediction]:
        """As `predict`, but gives predictions batch by batch, in constant memory.

        Args:
            images: As in `predict`.
            batch_size: Images at a time; None is what the export recommends.
            top_k: How many classes each prediction names, best first.

        Raises:
            DataError: If ``batch_size`` or ``top_k`` is below 1, or ``images`` is nothing to read.
        """
        size = self.preprocessing.batch_size if batch_size is None else batch_size
        if size < 1 or top_k < 1:
            raise DataError(f"batch_size={size} and top_k={top_k}: both must be at least 1")
        waiting: list[tuple[str, NDArray[np.uint8] | str]] = []
        readable = 0
        for name, content in self._decoded(images, size):
            waiting.append((name, content))
            readable += not isinstance(content, str)
            if readable == size:
                yield from self._predict_batch(waiting, top_k)
                waiting, readable = [], 0
        yield from self._predict_batch(waiting, top_k)

    def adapted(self, images: Any, *, batch_size: int | None = None) -> Predictor:
        """Return a predictor whose BatchNorm layers know these images instead of the training's.

        For images of another source, as of another camera. No labels are needed. Each layer's
        statistics become the mean over all images, which pass through the network once (one that
        is alone in its batch is left out). The calibration stays that of the images that it was
        fitted on.

        Args:
            images: As in `predict`: many, of all classes, for their statistics rule every answer.
            batch_size: Images at a time; None is what the export recommends.

        Raises:
            DataError: If fewer than 16 images can be read.
            ModelError: If the network has no BatchNorm layers.
        """
        import torch
        from torch.nn.modules.batchnorm import _NormBase

        size = max(2, self.preprocessing.batch_size if batch_size is None else batch_size)
        other = copy.copy(self)
        # One by one: layers that members share would be told of every batch several times.
        other.model, *members = (copy.deepcopy(one) for one in (self.model, *self.members))
        other.members, other._shared = tuple(members), None
        networks = (other.model, *members)
        norms = [m for one in networks for m in one.modules() if isinstance(m, _NormBase)]
        if not norms:
            raise ModelError(
                f"{self.name} has no BatchNorm layers, so it cannot be adapted to images"
            )
        momenta = [norm.momentum for norm in norms]
        amp = prediction_dtype(self.preprocessing.amp, self.device)  # type: ignore[arg-type]
        seen, decoded = 0, self._decoded(images, size)
        while chunk := list(islice(decoded, size)):
            pixels = [content for _, content in chunk if not isinstance(content, str)]
            if len(pixels) < 2:  # a single image has no variance
                continue
            seen += len(pixels)
            batch = self._device_images(pixels).batch(np.arange(len(pixels)))
            for norm in norms:
                norm.train()
                norm.momentum = len(pixels) / seen
            with (
                kernels(self.device, deterministic=False),
                torch.no_grad(),
                autocast(self.device, amp),
            ):
                for network in networks:
                    network(batch)
        if seen < _FEWEST_TO_ADAPT:
            raise DataError(
                f"{seen} images are too few to adapt to; give at least {_FEWEST_TO_ADAPT}"
            )
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
        return other

    def cost(self) -> PredictionCost:
        """Measure what it costs to predict with all members and views, on a few images of noise."""
        import torch

        images = self._sample(min(_TIMED_IMAGES, self.preprocessing.batch_size))
        shared = self.shared if self.members else self.model
        settings = self.preprocessing
        views = ("", *settings.views)

        def together(batch: torch.Tensor) -> torch.Tensor:
            return torch.stack([shared(shown(batch, view)) for view in views])

        def milliseconds(forward: Callable[[torch.Tensor], torch.Tensor]) -> float:
            took = []
            for _ in range(_TIMES + 1):
                started = time.perf_counter()
                forward(images).cpu()
                took.append(time.perf_counter() - started)
            return 1000 * float(np.median(took[1:])) / len(images)  # the first one warms up

        amp = prediction_dtype(settings.amp, self.device)  # type: ignore[arg-type]
        with (
            kernels(self.device, deterministic=False),
            torch.inference_mode(),
            autocast(self.device, amp),
        ):
            single_ms, members_ms = milliseconds(self.model), milliseconds(together)
        return PredictionCost(
            members=1 + len(self.members),
            shared_blocks=self.shared.blocks if self.members else 0,
            blocks=len(self.recipe.blocks) if self.recipe is not None else 0,
            passes=len(views) * (self.shared.passes(images[:1]) if self.members else 1.0),
            single_ms=single_ms,
            members_ms=members_ms,
            views=len(views),
        )

    def confidence_for(self, accuracy: float) -> float:
        """Return the least probability from which on answers have an accuracy.

        Args:
            accuracy: Share of right answers that is wanted, as 0.95.

        Returns:
            What the validation images say is needed, see `Calibration.needed`.

        Raises:
            BioTuneError: If the accuracy is none, no confidence reached it, or the model does not
                know what its confidences are worth.
        """
        if self.calibration is None:
            raise BioTuneError(
                "the model does not know what its confidences are worth: it was exported without "
                "predictions of validation images; confirm its study again, and export it"
            )
        return self.calibration.needed(accuracy)

    def evaluate(
        self,
        data: Any,
        labels: Any = None,
        *,
        part: str | None = None,
        batch_size: int | None = None,
        n_worst: int = 24,
    ) -> Evaluation:
        """Compare the predictions for labelled images with their labels.

        Images that cannot be read are left out and listed in `Evaluation.skipped`.

        Args:
            data: Folder with one folder per class, CSV file, or anything else that
                `biotune_optuna.open_images` takes.
            labels: One per image, for images in memory or a list of files.
            part: ``"train"``, ``"val"``, ``"test"`` or ``"all"``; None takes the test part of data
                that come divided, and all images of others.
            batch_size: Images at a time; None is what the export recommends.
            n_worst: How many wrong images are kept with a thumbnail.

        Raises:
            DataError: If the data cannot be opened, or have a class that the model does not know.
        """
        from biotune_optuna.export.evaluate import evaluate

        return evaluate(self, data, labels, part=part, batch_size=batch_size, n_worst=n_worst)

    def predict_pixels(self, pixels: NDArray[np.uint8], *, top_k: int = 5) -> list[Prediction]:
        """Classify images that are of the network's size already, all at once.

        Args:
            pixels: (n, 3, H, W) uint8.
            top_k: Length of `Prediction.top`.
        """
        named = [(f"image {i}", image) for i, image in enumerate(pixels)]
        return list(self._predict_batch(named, top_k))

    def _decoded(self, images: Any, ahead: int) -> Iterator[tuple[str, NDArray[np.uint8] | str]]:
        """Names with pixels, or with what is wrong; several images are decoded at a time."""
        named = _named(images)
        with ThreadPoolExecutor(worker_count()) as pool:
            while chunk := list(islice(named, ahead)):
                names, items = zip(*chunk, strict=True)
                yield from zip(names, pool.map(self._pixels, names, items), strict=True)

    def _pixels(self, name: str, item: Any) -> NDArray[np.uint8] | str:
        try:
            if isinstance(item, str | os.PathLike):
                picture = read_image(Path(item), name=name)
            elif isinstance(item, Image.Image):
                picture = item
            elif callable(item):
                picture = item()
            elif isinstance(item, np.ndarray) and item.dtype == np.uint8:
                picture = array_to_image(item)
            else:
                return f"{name} is a {type(item).__name__}, not a path, picture or uint8 array"
            settings = self.preprocessing
            return preprocess(
                picture,
                size=settings.size,
                crop_pct=settings.crop_pct,
                interpolation=settings.interpolation,
            )
        except (BioTuneError, *DECODE_ERRORS) as error:
            return " ".join(str(error).split()) or type(error).__name__

    def _predict_batch(
        self, items: Sequence[tuple[str, NDArray[np.uint8] | str]], top_k: int
    ) -> Iterator[Prediction]:
        pixels = [content for _, content in items if not isinstance(content, str)]
        scores = iter(self._probabilities(pixels)) if pixels else iter(())
        nothing = np.empty(0, dtype=np.float32)
        for name, content in items:
            if isinstance(content, str):
                yield Prediction(name, None, 0.0, (), nothing, error=content)
                continue
            members: NDArray[np.float32] = next(scores)
            several, weights = len(members) > 1, self.weights
            row = mean_probabilities(members, weights) if several else members[0]
            if self.calibration is not None:
                row = tempered(row, self.calibration.temperature)
            best = np.argsort(-row, kind="stable")[:top_k]
            top = tuple((self.classes[index], float(row[index])) for index in best)
            others = members.argmax(1) != best[0]
            apart = float(np.average(others, weights=weights or None)) if several else None
            yield Prediction(name, top[0][0], top[0][1], top, row, apart)

    def _probabilities(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Through the same normalisation, memory format and loop as in training, (n, k, C).

        Of several views of an image the mean.
        """
        import torch

        images = self._device_images(pixels)
        amp = prediction_dtype(self.preprocessing.amp, self.device)  # type: ignore[arg-type]
        forward = self.shared if self.members else self.model
        views = ("", *self.preprocessing.views)

        def logits(idx: NDArray[np.int64]) -> torch.Tensor:
            batch = images.batch(idx)
            return torch.stack([forward(shown(batch, view)) for view in views], dim=1)

        with kernels(self.device, deterministic=False):
            found = probabilities(
                logits,
                np.arange(len(pixels)),
                len(pixels),
                self.device,
                amp,
            )[0]
        found = mean_probabilities(found.swapaxes(0, 1)) if len(views) > 1 else found[:, 0]
        return found if self.members else found[:, None]

    def _device_images(self, pixels: Sequence[NDArray[np.uint8]]) -> DeviceImages:
        settings = self.preprocessing
        # stacked channels last, as the pixel cache has them
        stacked = np.stack([image.transpose(1, 2, 0) for image in pixels]).transpose(0, 3, 1, 2)
        return DeviceImages(
            PixelStore(stacked),
            np.zeros(len(pixels), dtype=np.int64),
            mean=settings.mean,
            std=settings.std,
            device=self.device,
            channels_last=settings.channels_last,
            n_classes=len(self.classes),
        )


def write_csv(predictions: Iterable[Prediction], path: str | Path) -> Path:
    """Write predictions as a table: one line per image, the file whole or not at all.

    The columns are ``image``, ``label``, ``probability``, then ``label_2``, ``probability_2`` and
    so on for the other classes in `Prediction.top`, ``disagreement`` of a model of several members,
    and ``error``.

    Args:
        predictions: Predictions.
        path: The CSV file; an existing one is replaced.

    Returns:
        The path.

    Raises:
        BioTuneError: If the file cannot be written.
    """
    rows = list(predictions)
    path = Path(path)
    ranks = max((len(row.top) for row in rows), default=1) or 1
    extra = [f"{what}_{rank}" for rank in range(2, ranks + 1) for what in ("label", "probability")]
    table = io.StringIO()
    writer = csv.writer(table)
    several = any(row.disagreement is not None for row in rows)
    extra += ["disagreement"] * several
    writer.writerow(["image", "label", "probability", *extra, "error"])
    for row in rows:
        cells = [cell for label, p in row.top for cell in (csv_cell(label), f"{p:.4f}")]
        cells += [""] * (2 * ranks - len(cells))
        apart = "" if row.disagreement is None else f"{row.disagreement:.4g}"
        error = csv_cell(row.error or "")
        writer.writerow([csv_cell(row.image), *cells, *[apart] * several, error])
    try:
        replace_text(path, table.getvalue())
    except OSError as error:
        raise BioTuneError(
            f"cannot write {str(path)!r}: {error.strerror or error}; give another file"
        ) from error
    return path


def _named(images: Any) -> Iterator[tuple[str, Any]]:
    """One item per image, with what to call it; folders are listed."""
    if isinstance(images, str | os.PathLike | Image.Image) or (
        isinstance(images, np.ndarray) and images.ndim in (2, 3)
    ):
        images = [images]
    if not isinstance(images, Iterable):
        raise DataError(f"images {images!r} are no path, picture, array or list of these")
    number = 0
    for item in images:
        if isinstance(item, str | os.PathLike):
            # Path("") is the working directory, which nobody means who gives an empty name.
            for path in _files(Path(item)) if os.fspath(item) else [Path()]:
                yield str(path), path
                number += 1
        else:
            yield f"image {number}", item
            number += 1


def _files(path: Path) -> Iterator[Path]:
    """Yield the path, or the images below it; follow no links and leave out hidden files."""
    if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a name is too long
        yield path
        return
    for found in sorted(path.rglob("*")):
        if any(part.startswith(".") for part in found.relative_to(path).parts):
            continue
        if found.suffix.lower() in IMAGE_SUFFIXES and found.is_file() and not found.is_symlink():
            yield found
