"""From a spec to everything that a trial needs in memory."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch

from biotune_optuna.clock import side_for
from biotune_optuna.data.loaders import DeviceImages
from biotune_optuna.data.pixels import PixelStore
from biotune_optuna.data.preprocessing import Preprocessing
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.data.splits import Splits, make_splits
from biotune_optuna.errors import DataError, ModelError
from biotune_optuna.finetune import metrics
from biotune_optuna.finetune.device import isolated_randomness, out_of_memory, resolve_device
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.models.blocks import Block, model_blocks
from biotune_optuna.models.states import one_line
from biotune_optuna.models.weights import LoadedModel, create_model, current_name
from biotune_optuna.recipe import BlockRecipe, Recipe
from biotune_optuna.study.choice import is_auto

if TYPE_CHECKING:
    from biotune_optuna.data.sources.image_source import ImageSource
    from biotune_optuna.genome import GenomeSpace
    from biotune_optuna.study.spec import StudySpec


_log = logging.getLogger("biotune_optuna.data")

_LOOKED_AT = 64  # images
_DARK = 64
_SKEWED = 2.0  # so many times as many images of one class as of another: balance may matter
_MEASURED = 16  # images whose size is looked at
_SHAPE_ERRORS = (RuntimeError, ValueError, AssertionError, LookupError, TypeError, ArithmeticError)


@dataclass(frozen=True)
class Setup:
    """What a worker holds while it works on a study.

    Attributes:
        spec: The spec, with the fingerprints of what was found; where it leaves the range of rates
            open, that is settled with the study.
        source: The images and labels.
        splits: Training, validation and test parts.
        images: The images as the trainer sees them.
        loaded: The pre-trained model and where its weights came from.
        blocks: The model's blocks in execution order, head last.
        space: The genome space over the blocks.
        trainer: Fine-tunes by recipe.
        image_size: Side of the training images in pixels.
        crop_pct: Share of the shorter side kept by the centre crop.
    """

    spec: StudySpec
    source: ImageSource
    splits: Splits
    images: DeviceImages
    loaded: LoadedModel
    blocks: tuple[Block, ...]
    space: GenomeSpace
    trainer: Trainer
    image_size: int
    crop_pct: float

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the model's outputs."""
        return self.source.classes


def prepare(
    spec: StudySpec,
    *,
    source: ImageSource | None = None,
    device: str = "auto",
    cache_dir: str | Path | None = None,
) -> Setup:
    """Open data and model, check them, and ready the trainer.

    Args:
        spec: What the study is.
        source: Images that are in memory already; None opens ``spec.data``.
        device: ``"auto"``, ``"cpu"``, ``"cuda:N"`` or ``"mps"``.
        cache_dir: Folder of decoded images; None is
            `biotune_optuna.data.default_cache_dir`.

    Raises:
        DataError: If the images cannot be used.
        ModelError: If the model or its weights cannot be used, or its images cannot be of that
            size.
    """
    if is_auto(spec.model):
        raise ModelError(
            f"model {spec.model!r} is chosen by `biotune tune` and `BioTuneClassifier`; name one "
            "here, which `biotune models` ranks"
        )
    if source is None:
        source = open_images(
            spec.data, group_regex=spec.group_regex, skip_bad_images=spec.skip_bad_images
        )
    elif spec.group_regex is not None and source.groups is None:
        source = source.with_groups(spec.group_regex)
    splits = split(spec, source)
    _check_metric(spec, source, splits)
    loaded = _load_model(spec, len(source.classes))
    config = loaded.data_config
    size = spec.image_size or spec.size_found or _own_size(spec, loaded, source)
    crop_pct = float(config["crop_pct"] if spec.crop_pct is None else spec.crop_pct)
    _check_image_size(loaded, size)
    store = PixelStore.build(
        source,
        size=size,
        crop_pct=crop_pct,
        interpolation=config["interpolation"],
        cache_dir=cache_dir,
    )
    _warn_of_darkness(store, splits)
    trainer, images, blocks = _trainer(spec, source, store, loaded, device)
    spec = dataclasses.replace(spec, genes=_genes_that_act(spec, source, splits))
    space = spec.space(blocks)
    _check_modes(space, loaded)
    found = {
        "data": source.fingerprint,
        "splits": splits.fingerprint,
        "weights": loaded.weights_fingerprint,
    }
    return Setup(
        spec=dataclasses.replace(
            spec,
            fingerprints=found,
            lr_found=None,
            size_found=None if spec.image_size is not None else size,
        ),
        source=source,
        splits=splits,
        images=images,
        loaded=loaded,
        blocks=tuple(blocks),
        space=space,
        trainer=trainer,
        image_size=size,
        crop_pct=crop_pct,
    )


def preprocessing_of(setup: Setup, views: Sequence[str] = ()) -> Preprocessing:
    """Return what the study's models expect of images.

    Args:
        setup: The study's images and model.
        views: How each image is shown besides.
    """
    config = setup.loaded.data_config
    return Preprocessing(
        size=setup.image_size,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_pct=setup.crop_pct,
        interpolation=config["interpolation"],
        batch_size=2 * setup.spec.train.batch_size,
        amp=setup.spec.train.amp,
        views=tuple(views),
    )


def _genes_that_act(spec: StudySpec, source: ImageSource, splits: Splits) -> tuple[str, ...]:
    """Return the spec's genes; ``"balance"`` only where the classes are skewed."""
    counts = np.bincount(source.labels[splits.train])
    skewed = counts.max() > _SKEWED * counts[counts > 0].min()
    return tuple(name for name in spec.genes if skewed or name != "balance")


def _check_modes(space: GenomeSpace, loaded: LoadedModel) -> None:
    """Refuse to search modes where a block has neither norms nor biases.

    Raises:
        ModelError: If one has none.
    """
    if space.modes:
        blocks = tuple(
            BlockRecipe(b.name, 1.0, b.parameter_names, b.buffer_names, "norms")
            for b in space.blocks
        )
        Recipe(blocks, lr=1.0).apply(loaded.model)


def _check_metric(spec: StudySpec, source: ImageSource, splits: Splits) -> None:
    """Refuse a metric that some part to be scored does not define, before anything is trained."""
    parts = {"validation": splits.val, "test": splits.test}
    if splits.scheme == "kfold":
        parts |= {f"fold {k + 1}": part for k, part in enumerate(splits.folds)}
    for name, part in parts.items():
        if not len(part):
            continue
        try:
            metrics.check(spec.train.metric, source.labels[part], len(source.classes))
        except DataError as error:
            raise DataError(f"the {name} images: {error}") from None


def _warn_of_darkness(store: PixelStore, splits: Splits) -> None:
    """Say so where all pixels are dark, as 12-bit values in files of 16 bits are."""
    brightest = max(int(store.pixels[at].max()) for at in splits.train[:_LOOKED_AT])
    if brightest < _DARK:
        _log.warning(
            "the images are dark: no value of the first %d to train on is above %d of 255;"
            " stretch values that use a part of their range, such as 12 bits of 16, over all of it",
            min(len(splits.train), _LOOKED_AT),
            brightest,
        )


def split(spec: StudySpec, source: ImageSource) -> Splits:
    """Return the training, validation and test parts that a spec asks for.

    Raises:
        DataError: If the images cannot be divided so.
    """
    return make_splits(
        source,
        seed=spec.seed,
        n_folds=spec.n_folds,
        scheme=spec.scheme,
        val_fraction=spec.val_fraction,
        test_fraction=spec.test_fraction,
        train_size=spec.train_size,
        val_size=spec.val_size,
        strict=spec.strict,
    )


def _load_model(spec: StudySpec, num_classes: int) -> LoadedModel:
    """Return the pre-trained model of a spec, made for the spec's image size where that matters."""
    options: dict[str, Any] = {}
    if spec.image_size is not None and timm.is_model(spec.model):  # else create_model says so
        config = timm.get_pretrained_cfg(current_name(spec.model), allow_unregistered=True)
        if config and config.fixed_input_size:
            options["img_size"] = spec.image_size
    return create_model(
        spec.model, num_classes=num_classes, weights=spec.weights, seed=spec.seed, **options
    )


def _own_size(spec: StudySpec, loaded: LoadedModel, source: ImageSource) -> int:
    """Return the size for a spec that gives none."""
    own = int(loaded.data_config["input_size"][-1])
    config = timm.get_pretrained_cfg(spec.model, allow_unregistered=True)
    if spec.size_found == 0 or (config is not None and config.fixed_input_size):
        return own
    return own_side(own, source)


def own_side(own: int, source: ImageSource) -> int:
    """Return the size to train at that suits a model and images.

    Args:
        own: The side that the model was pre-trained with, in pixels.
        source: The images; some of them are read.
    """
    step = max(1, len(source) // _MEASURED)
    sides = [min(source.load(i).size) for i in range(0, len(source), step)[:_MEASURED]]
    return side_for(own, int(np.median(sides)))


def _check_image_size(loaded: LoadedModel, size: int) -> None:
    """Send two blank images through the network, on the CPU; leave it as it was.

    Raises:
        ModelError: If the network cannot take images of that size.
    """
    # Shares the parameters, but neither buffers nor what some networks keep from an evaluation.
    model = copy.deepcopy(loaded.model, {id(p): p for p in loaded.model.parameters()}).eval()
    try:
        with isolated_randomness(0, torch.device("cpu")), torch.no_grad():
            model(torch.zeros(2, 3, size, size))
    except _SHAPE_ERRORS as error:
        if out_of_memory(error):
            raise
        own = loaded.data_config["input_size"][-1]
        raise ModelError(
            f"image size {size} does not fit {loaded.name}: {one_line(error)}; the model's own "
            f"is {own}"
        ) from error


def _trainer(
    spec: StudySpec,
    source: ImageSource,
    store: PixelStore,
    loaded: LoadedModel,
    device: str,
) -> tuple[Trainer, DeviceImages, Sequence[Block]]:
    config = loaded.data_config
    target = resolve_device(device)
    images = DeviceImages(
        store,
        source.labels,
        mean=config["mean"],
        std=config["std"],
        device=target,
        n_classes=len(source.classes),
    )
    blocks = model_blocks(loaded.model, max_blocks=spec.max_blocks)
    return Trainer(loaded.model, blocks, images, spec.train, device=target), images, blocks
