"""A real training and its export, made once for all tests of the folder."""

import shutil

import numpy as np
import pytest

from biotune_optuna.data.loaders import DeviceImages
from biotune_optuna.data.pixels import PixelStore
from biotune_optuna.data.preprocessing import Preprocessing
from biotune_optuna.data.sources.open import open_images
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


def make_trainer(folder, cache_dir):
    """A trainer of the images, and what a network of them expects."""
    loaded = create_model(NAME, num_classes=3, weights="none", seed=0)
    source = open_images(folder)
    store = PixelStore.build(source, size=SIZE, crop_pct=0.9, cache_dir=cache_dir)
    normalisation = {key: loaded.data_config[key] for key in ("mean", "std")}
    images = DeviceImages(store, source.labels, **normalisation)
    settings = TrainSettings(epochs=2, batch_size=4)
    trainer = Trainer(loaded.model, model_blocks(loaded.model), images, settings, device="cpu")
    return trainer, {
        "preprocessing": Preprocessing(
            size=SIZE, crop_pct=0.9, batch_size=2 * settings.batch_size, **normalisation
        ),
        "paths": [folder / name for name in source.ids],
    }


@pytest.fixture(scope="session")
def tuned(folder, tmp_path_factory):
    """A real training, and the probabilities that the trainer gives at its end."""
    trainer, facts = make_trainer(folder, tmp_path_factory.mktemp("cache"))
    recipe = Recipe.layer_decay(trainer.blocks, lr=1e-2, decay=0.7)
    everything = np.arange(len(trainer.images))
    trainer.fit(recipe, everything, None, seed=0)
    probabilities = trainer.predict(everything)
    return facts | {"model": trainer.model, "recipe": recipe, "probabilities": probabilities}


@pytest.fixture(scope="session")
def members(folder, tmp_path_factory):
    """Three trainings of one recipe, and what each of them predicts."""
    trainer, facts = make_trainer(folder, tmp_path_factory.mktemp("cache"))
    half = len(trainer.blocks) // 2
    rates = [0.0] * half + [1.0] * (len(trainer.blocks) - half)
    recipe = Recipe.from_multipliers(trainer.blocks, rates, lr=1e-2)
    everything = np.arange(len(trainer.images))
    changed, apart = [], []
    for seed in range(3):
        trainer.fit(recipe, everything, None, seed=seed)
        changed.append(trainer.changed())
        apart.append(trainer.predict(everything))
    model, *others = trainer.networks(changed)
    return facts | {"model": model, "members": others, "recipe": recipe, "apart": apart}


@pytest.fixture(scope="session")
def exported(tuned, tmp_path_factory):
    return export(tuned, tmp_path_factory.mktemp("out") / "deep" / "model")


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")
