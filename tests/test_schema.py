"""What a study and a trial store: every key in one file, and read with care."""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import create_trial

import biotune_optuna
from biotune_optuna import schema
from biotune_optuna.schema import RecipeSummary, RunRecord, TrialRecord

PACKAGE = Path(biotune_optuna.__file__).parent


def _holds_attributes(node: ast.expr) -> bool:
    """Whether an expression is the attributes of a study or a trial, by what it is called."""
    if isinstance(node, ast.Call):
        node = node.func
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return bool(name.endswith(("attrs", "attributes")))


def _keys(node: ast.AST) -> list[ast.expr | None]:
    """The expressions by which a statement or expression names attributes."""
    found: list[ast.expr | None] = []
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called.endswith(("user_attr", "system_attr")):
            found += node.args[:3]
        elif called.endswith((".get", ".pop")) and isinstance(node.func, ast.Attribute):
            found += node.args[:1] if _holds_attributes(node.func.value) else []
        given = [one.value for one in node.keywords if (one.arg or "").endswith("_attrs")]
        found += [key for value in given if isinstance(value, ast.Dict) for key in value.keys]
    elif isinstance(node, ast.Subscript):
        found += [node.slice] if _holds_attributes(node.value) else []
    elif isinstance(node, ast.Compare):
        found += [node.left] if _holds_attributes(node.comparators[0]) else []
    elif isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Dict):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        found += node.value.keys if any(map(_holds_attributes, targets)) else []
    return found


def _spelled(text: str) -> Iterator[str]:
    """Yield the keys that a file spells as literals."""
    own = ("biotune:", "artifacts:", "dashboard:artifacts:")
    for node in ast.walk(ast.parse(text)):
        named = [key.value for key in _keys(node) if isinstance(key, ast.Constant)]
        literal = [node.value] if isinstance(node, ast.Constant) else []
        yield from (one for one in named if isinstance(one, str))
        yield from (one for one in literal if isinstance(one, str) and one.startswith(own))


def test_no_other_file_spells_a_key() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {key}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "schema.py"
        for key in _spelled(path.read_text())
    }
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        'trial.set_user_attr("seconds", 1.0)',
        'storage.set_trial_system_attr(trial_id, "seconds", 1.0)',
        'keep_user_attr(study, "seconds", 1.0)',
        'trial.user_attrs.get("seconds")',
        'storage.get_study_user_attrs(1).get("seconds")',
        'trial.user_attrs["seconds"]',
        '"seconds" in trial.system_attrs',
        'create_trial(value=1.0, user_attrs={"seconds": 1.0})',
        'attributes: dict[str, float] = {"seconds": 1.0}',
        'KEY = "biotune:seconds"',
    ],
)
def test_a_spelled_key_is_found(line: str) -> None:
    assert list(_spelled(line)) in (["seconds"], ["biotune:seconds"])


def test_keys_are_different_and_explained() -> None:
    body = ast.parse((PACKAGE / "schema.py").read_text()).body
    keys: dict[str, str] = {}
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "Final":
            name = ast.unparse(node.target)
            keys[name] = getattr(schema, name)
            assert isinstance(after, ast.Expr), f"{name} needs a line that says what it is"
            assert isinstance(after.value, ast.Constant), name
            typed = "``" in str(after.value.value).partition(": ")[0]
            assert typed or name.endswith("_PREFIX"), f"{name} needs its type"
    assert len(keys) > 30
    assert len(set(keys.values())) == len(keys)


def test_what_a_trial_stores_reads_as_it_was_written() -> None:
    recipe = RecipeSummary(0.01, 0.0, {"stem": 0.0, "fc": 1.5})
    run = RunRecord(fold=None, seed=3, score=0.5, best_epoch=2, epochs=4, stopped="patience")
    trial = create_trial(
        value=0.5,
        user_attrs={
            schema.RECIPE_KEY: recipe.to_dict(),
            schema.RUNS_KEY: [run.to_dict()],
            schema.FROZEN_KEY: "1 of 2",
            schema.TRAINABLE_KEY: 12.5,
            schema.SECONDS_KEY: 2.5,
            schema.FORWARD_KEY: 40,
            schema.BACKWARD_KEY: 20,
            schema.STDERR_KEY: 0.1,
            schema.DIVERGED_KEY: True,
            schema.GENERATION_KEY: 2,
            schema.ROLE_KEY: "offspring",
            schema.PARENTS_KEY: "3, 14",
        },
    )
    stored = TrialRecord(trial)
    assert stored.recipe == recipe
    assert stored.runs == (run,)
    assert (stored.frozen, stored.trainable_pct, stored.seconds) == ("1 of 2", 12.5, 2.5)
    assert (stored.forward, stored.backward, stored.passes) == (40, 20, 60)
    assert (stored.stderr, stored.diverged) == (0.1, True)
    assert (stored.generation, stored.role, stored.parents) == (2, "offspring", [3, 14])


@pytest.mark.parametrize("odd", [None, "text", [1, "x"], {"a": 1}, math.nan, True])
def test_whatever_a_stranger_stored_reads_as_absent(odd: object) -> None:
    study = optuna.create_study()
    keys = [value for name, value in vars(schema).items() if name.endswith("_KEY")]
    study.add_trial(create_trial(value=0.5, user_attrs=dict.fromkeys(keys, odd)))
    stored = TrialRecord(study.trials[0])
    assert stored.recipe.multipliers == {}
    assert stored.runs == ()
    assert stored.generation is None
    assert stored.passes in (0, 2)
    assert stored.seconds in (None, 1)
