"""The sampler loads through OptunaHub."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from biotune_optuna.sampler.sampler import BioTuneSampler

ROOT = Path(__file__).parents[2] / "package"


def test_package_loads_and_searches():
    optunahub = pytest.importorskip("optunahub")
    module = optunahub.load_local_module("samplers/biotune", registry_root=str(ROOT))
    assert module.BioTuneSampler is BioTuneSampler
    space = module.GenomeSpace([module.BlockRecipe(name, 1.0) for name in ("stem", "head")])
    study = optuna.create_study(
        direction="maximize", sampler=module.BioTuneSampler(space=space, seed=0)
    )
    study.optimize(lambda t: -space.suggest(t).decode().lr, n_trials=12)
    assert len(module.rank_finished(study, space)) >= 10


def test_files_and_front_matter_are_those_of_a_registry():
    folder = ROOT / "samplers" / "biotune"
    assert {path.name for path in folder.iterdir()} >= {
        "LICENSE",
        "README.md",
        "__init__.py",
        "example.py",
    }
    text = (folder / "README.md").read_text()
    front = text.split("---")[1]
    keys = {line.split(":")[0] for line in front.strip().splitlines()}
    assert keys == {"author", "title", "description", "tags", "optuna_versions", "license"}
    assert "## Abstract" in text
    assert "## APIs" in text
