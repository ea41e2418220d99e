"""Rivals from outside: what a user has to write, and where it then stands."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from biotune_optuna.cli import cli
from biotune_optuna.compare import Comparison, read_csv, run_comparison, write_comparison
from biotune_optuna.errors import BioTuneError, ModelError
from biotune_optuna.methods import Hooks, Method, registry
from biotune_optuna.methods.registry import contender_words, get_method, methods, register
from biotune_optuna.storage.open import open_storage
from tests.kit.networks import make_trainer, state_of
from tests.kit.studies import tiny_spec

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "compare.md").read_text()
(RIVAL,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(ENTRY_POINT,) = re.findall(r"^```toml\n.*?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def forgotten(monkeypatch):
    """Rivals added by a test are forgotten after it."""
    methods()
    monkeypatch.setattr(registry, "_found", methods())


@pytest.fixture
def packaged(tmp_path):
    """A folder as pip makes one: a module with a rival, and the entry point that names it."""
    (tmp_path / "my_rival.py").write_text(RIVAL)
    facts = tmp_path / "my_rival-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: my-rival\nVersion: 1.0\n")
    named = ENTRY_POINT.replace('"', "")
    (facts / "entry_points.txt").write_text(f"[biotune_optuna.methods]\n{named}")
    return tmp_path


@pytest.fixture
def norms(packaged, monkeypatch, forgotten):
    monkeypatch.syspath_prepend(packaged)
    importlib.invalidate_caches()
    registry._load_installed()
    yield get_method("norms")
    del sys.modules["my_rival"]


def test_a_rival_from_outside_trains_as_it_says(images, split, norms):
    trainer = make_trainer(images)
    trainer.reset(0)
    before = state_of(trainer)
    result = norms.run(trainer, *split, setting={"lr": 1e-2}, seed=0)
    after = state_of(trainer)
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(before[n], after[n])}
    assert moved == {n for n, p in trainer.model.named_parameters() if p.ndim == 1 or "fc" in n}
    assert 0 < result.trainable_fraction < 0.5


@pytest.mark.parametrize("command", ["baseline", "compare"])
def test_a_rival_from_outside_stands_in_the_help(norms, command):
    assert (
        "  norms                the norms alone\n"
        in CliRunner().invoke(cli, [command, "--help"]).output
    )


def test_a_rival_from_outside_takes_part_in_a_comparison(norms, tmp_path, cache_dir):
    plan = Comparison(
        tasks=(tiny_spec(),), contenders=("full", "norms"), repeats=1, runs=1, equal_budget=False
    )
    storage = open_storage(f"sqlite:///{tmp_path}/c.db")
    rows = run_comparison(plan, storage=storage, cache_dir=cache_dir)
    assert {row.method for row in rows} == {"full", "norms"}
    page = write_comparison(rows, tmp_path / "out", title="outside", plan=plan)
    assert "norms" in page.read_text()
    assert "norms" in (tmp_path / "out" / "report.md").read_text()
    trained = {row.method: row.trainable for row in read_csv(tmp_path / "out" / "results.csv")}
    assert 0 < trained["norms"] < trained["full"] == 100


def test_a_process_of_its_own_finds_an_installed_rival_and_help_needs_no_pytorch(packaged):
    code = (
        f"import sys; sys.path.insert(0, {str(packaged)!r})\n"
        "from biotune_optuna.cli import cli\n"
        "try: cli(['baseline', '--help'])\n"
        "finally: print(sorted({'torch', 'timm', 'optuna', 'numpy'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the norms alone" in ran.stdout
    assert ran.stdout.endswith("[]\n")


def test_one_that_cannot_be_loaded_is_left_out_and_named(packaged, monkeypatch, caplog, forgotten):
    (packaged / "my_rival.py").write_text("raise RuntimeError('too old')")
    monkeypatch.syspath_prepend(packaged)
    importlib.invalidate_caches()
    registry._load_installed()
    assert "norms" not in methods()
    assert "'norms' of another package is left out: too old" in caplog.text


@pytest.mark.parametrize(
    ("name", "words"),
    [("full", "there is a method 'full' already"), ("a,b", "'a,b' is none"), ("biotune", "none")],
)
def test_a_name_that_would_confuse_is_refused(name, words, forgotten):
    with pytest.raises(BioTuneError, match=words):
        register(Method(name=name, words=""))


def test_a_missing_package_is_named_before_anything_is_trained(images, split, forgotten):
    method = register(Method(name="far", words="", package="no_such_thing", install="far-package"))
    with pytest.raises(ModelError, match="'far' needs the package no_such_thing: pip install far"):
        method.run(make_trainer(images), *split, setting={"lr": 1e-3}, seed=0)
    assert "far" not in {one.method for one in Comparison(tasks=(tiny_spec(),)).everyone}


def test_a_confirmation_may_choose_what_is_a_recipe_tuned_by_its_rate(images):
    blocks = make_trainer(images).blocks
    chosen = [method for method in methods().values() if method.in_confirmation]
    assert [method.name for method in chosen] == ["full", "linear-probe", "linear-probe-sgd"]
    for method in chosen:
        recipe = method.recipe(blocks, {"lr": 1e-3, "weight_decay": 0.1})
        assert recipe.weight_decay == 0.1
        assert recipe.fitted or recipe.lr == 1e-3
        assert type(method.hooks(None, {})) is Hooks
        tuned_by = {"lr"} if method.is_tuned else set()
        assert all(set(setting) == tuned_by for setting in method.settings())


def test_the_page_on_comparisons_names_every_rival():
    table = PAGE.partition("### The rivals")[2].partition("## ")[0]
    assert [f"`{name}`" in table for name in methods()] == [True] * len(methods())


def test_contenders_are_called_by_one_name() -> None:
    assert contender_words("full") == "full fine-tuning"
    assert contender_words("linear-probe") == "linear probe"
    assert contender_words("trial 3") == "trial 3"
