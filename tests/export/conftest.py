"""A real training and its export, made once for all tests of the folder."""

import shutil

import numpy as np
import pytest

from biotune_optuna.data.loaders import DeviceImages
from biotune_optuna.data.pixels import PixelStore
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.export import Preprocessing
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.models.blocks import model_blocks
from biotune_optuna.models.weights import create_model
from biotune_optuna.recipe import Recipe
from tests.kit.export import NAME, SIZE, export, picture


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for kind, name in enumerate(("a", "b", "c")):
        (root / name).mkdir()
        for seed in range(9):
            picture(kind, seed).save(root / name / f"{seed}.png")
    return root


@pytest.fixture(scope="session")
def tuned(folder, tmp_path_factory):
    """A real training, and the probabilities that the trainer gives at its end."""
    loaded = create_model(NAME, num_classes=3, weights="none", seed=0)
    source = open_images(folder)
    store = PixelStore.build(
        source, size=SIZE, crop_pct=0.9, cache_dir=tmp_path_factory.mktemp("cache")
    )
    normalisation = {key: loaded.data_config[key] for key in ("mean", "std")}
    images = DeviceImages(store, source.labels, **normalisation)
    blocks = model_blocks(loaded.model)
    settings = TrainSettings(epochs=2, batch_size=4)
    trainer = Trainer(loaded.model, blocks, images, settings, device="cpu")
    recipe = Recipe.layer_decay(blocks, lr=1e-2, decay=0.7)
    everything = np.arange(len(source))
    trainer.fit(recipe, everything, None, seed=0)
    return {
        "model": trainer.model,
        "recipe": recipe,
        "preprocessing": Preprocessing(
            size=SIZE, crop_pct=0.9, batch_size=2 * settings.batch_size, **normalisation
        ),
        "paths": [folder / name for name in source.ids],
        "probabilities": trainer.predict(everything),
    }


@pytest.fixture(scope="session")
def exported(tuned, tmp_path_factory):
    return export(tuned, tmp_path_factory.mktemp("out") / "deep" / "model")


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")
