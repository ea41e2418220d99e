"""What takes part, and what is refused before anything is trained."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest

from biotune_optuna.compare.ablation import BASES, FACTORS, ablations, references
from biotune_optuna.compare.plan import (
    SEARCHERS,
    Comparison,
    Contender,
    contender,
    data_name,
    default_methods,
)
from biotune_optuna.compare.search import searcher
from biotune_optuna.errors import StudyError
from biotune_optuna.evolution.settings import SearchSettings
from biotune_optuna.genome import GenomeSpace
from biotune_optuna.methods.registry import methods
from biotune_optuna.recipe import BlockRecipe
from biotune_optuna.sampler.sampler import BioTuneSampler
from tests.kit.studies import tiny_spec


def test_by_default_everybody_takes_part() -> None:
    plan = Comparison(tasks=(tiny_spec(),), repeats=2)
    names = [one.name for one in plan.everyone]
    assert names[0] == "biotune"
    assert set(methods()) <= set(names)
    assert names[-4:] == ["full@budget", "layer-decay@budget", "lora@budget", "lp-ft@budget"] or (
        "lora" not in default_methods()
    )
    cells = plan.cells()
    assert len(cells) == 2 * len(names)
    assert (cells[0].key, cells[len(names)].key) == ("0/biotune", "1/biotune")
    assert cells[0].task == "digits-test_efficientnet"


def test_every_task_has_had_a_repeat_before_the_next_begins() -> None:
    tasks = (tiny_spec(), tiny_spec(data="else"))
    cells = Comparison(tasks=tasks, contenders=("biotune", "full"), repeats=2).cells()
    order = [(cell.repeat, cell.task.partition("-")[0]) for cell in cells[::3]]
    assert order == [(0, "digits"), (0, "else"), (1, "digits"), (1, "else")]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("digits", "digits"),
        ("/some/where/my-flowers/", "my-flowers"),
        ("images.csv", "images"),
        ("flowers102:/data/of/mine", "flowers102"),
        ("torch/cifar10", "cifar10"),
    ],
)
def test_tables_name_data_without_their_place(data: str, name: str) -> None:
    assert data_name(data) == name


def test_budgets_follow_biotune() -> None:
    names = [
        one.name for one in Comparison(tasks=(tiny_spec(),), contenders=("full", "lora")).everyone
    ]
    assert names == ["full", "lora"], "without BioTune there is no budget to share"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contenders": ("full", "prayer")}, "method 'prayer' is not one of biotune, full"),
        ({"contenders": ("full", "full")}, "method 'full' is named twice"),
        ({"contenders": ("full@budget",)}, "an equal budget is that of biotune"),
        ({"repeats": 0}, "repeats 0 is too small"),
        ({"tasks": ()}, "needs a task"),
        ({"contenders": ()}, "needs a method, such as biotune or full"),
        ({"tasks": (tiny_spec(), tiny_spec(seed=9))}, "named twice"),
        ({"name": "a/b"}, "without '/'"),
    ],
)
def test_mistakes_are_named(changes: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        Comparison(**{"tasks": (tiny_spec(),), **changes}).cells()


def test_methods_differ_in_their_search_alone() -> None:
    with pytest.raises(StudyError, match="image_size cannot differ between methods of a task"):
        Contender(name="larger", kind="search", method="biotune", spec={"image_size": 96})


def test_cma_es_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(StudyError, match="pip install cmaes"):
        contender("cma-es")


def test_searchers_are_optunas_own() -> None:
    for name in SEARCHERS:
        assert contender(name).kind == "search"
        assert type(searcher(name, seed=0)).__module__.startswith("optuna.")


@pytest.mark.parametrize("name", FACTORS)
def test_each_factor_changes_what_it_names_and_fits(name: str) -> None:
    base, spec, sampler, share = FACTORS[name]
    assert base in BASES
    assert bool(spec) + bool(sampler) + (share != 1) == 1, "one factor at a time"
    usually = {"n_seeds": 1, **BASES[base]}
    changed = tiny_spec(**{**usually, **spec})
    assert not spec or changed.differences(tiny_spec(**usually))
    blocks = [BlockRecipe(block, 1.0) for block in ("stem", "body", "head")]
    space = changed.space(blocks)
    assert isinstance(space, GenomeSpace)
    usual = SearchSettings.of(changed.preset)
    for switch, value in sampler.items():
        assert getattr(usual, switch) != value
    BioTuneSampler(space=space, seed=0, strategy=replace(usual, **sampler))


def test_ablations_come_with_their_bases() -> None:
    made = ablations(40, ["half the trials", "paper, no mutation"])
    assert [one.name for one in made] == [
        "biotune",
        "paper",
        "half the trials",
        "paper, no mutation",
    ]
    assert made[2].trials == 20
    assert made[3].spec["preset"] == "paper"
    assert references(["half the trials", "paper, no mutation"]) == {
        "paper": "biotune",
        "half the trials": "biotune",
        "paper, no mutation": "paper",
    }
    assert references(["two seeds"]) == {"two seeds": "biotune"}
    assert {one.name for one in ablations(10)} == {*FACTORS, *BASES}


def test_numbers_of_numpy_can_be_stored() -> None:
    plan = Comparison(tasks=(tiny_spec(),), trials=np.int64(3), repeats=np.int64(2))
    assert json.loads(json.dumps(plan.identity(plan.tasks[0])))["trials"] == 3
