"""The gallery: every script in studies/ is short and runs."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from examples import digit_folder, run_script, shrink

CHEAP_CONFIRMATION = (
    r"confirm\(study\.search\(TRIALS\)\)",
    'confirm(study.search(TRIALS), __import__("biotune_optuna").ConfirmPlan('
    "top_k=1, n_runs=1, rates=(1e-2,)))",
)
STUDIES = Path(__file__).parents[1] / "studies"
SCRIPTS = sorted(STUDIES.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_is_short(script: Path) -> None:
    assert len(script.read_text().splitlines()) < 60


def test_every_script_is_run_here() -> None:
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {script.stem for script in SCRIPTS} <= tests


def test_digits(tmp_path: Path) -> None:
    printed = run_script(shrink((STUDIES / "digits.py").read_text()), tmp_path)
    study = optuna.load_study(study_name="digits", storage=f"sqlite:///{tmp_path}/digits.db")
    assert len(study.trials) == 2
    assert {trial.user_attrs["role"] for trial in study.trials} <= {"initial", "immigrant"}
    value, _, recipe = printed.splitlines()[-1].partition(" ")
    assert float(value) == pytest.approx(study.best_value, abs=1e-3)
    assert "base rate" in recipe


def test_custom_objective(tmp_path: Path) -> None:
    source = (STUDIES / "custom_objective.py").read_text()
    run_script(shrink(source, epochs=(r"epochs: int = \d+", "epochs: int = 2")), tmp_path)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert [block["name"] for block in recipe["blocks"]] == ["first", "second", "third", "head"]


def test_resume(tmp_path: Path) -> None:
    source = shrink((STUDIES / "resume.py").read_text(), trials=(r"^TRIALS = \d+", "TRIALS = 8"))
    printed = run_script(source, tmp_path)
    assert printed.count("equal in both studies") == 8


def test_multi_machine(tmp_path: Path) -> None:
    source = (STUDIES / "multi_machine.py").read_text()
    run_script(shrink(source, trials=(r"^TRIALS = \d+", "TRIALS = 5")), tmp_path)
    study = optuna.load_study(study_name="together", storage=f"sqlite:///{tmp_path}/together.db")
    complete = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert 5 <= len(complete) <= 6  # both workers may be at the last one
    assert len({tuple(t.params.values()) for t in complete}) == len(complete)


def test_own_folder(tmp_path: Path) -> None:
    images = digit_folder(tmp_path / "images")
    source = (STUDIES / "own_folder.py").read_text()
    source = shrink(source, size=(r"data=folder", "data=folder, image_size=32"))
    printed = run_script(source, tmp_path, str(images))
    assert "was chosen" in printed
    assert (tmp_path / "own-model" / "model.safetensors").is_file()
    assert (tmp_path / "own-report.html").stat().st_size > 100_000


def test_compare(tmp_path: Path) -> None:
    source = (STUDIES / "compare.py").read_text()
    printed = run_script(shrink(source, seeds=(r"range\(3\)", "range(1)")), tmp_path)
    assert [line.split()[0] for line in printed.splitlines()] == ["biotune", "random", "tpe"]
    assert printed.count("best of 2 trials") == 3


def test_ablation(tmp_path: Path) -> None:
    source = (STUDIES / "ablation.py").read_text()
    two = (r"variants\.items\(\)", "list(variants.items())[3:]")
    printed = run_script(shrink(source, two=two, plan=CHEAP_CONFIRMATION), tmp_path)
    assert len(printed.splitlines()) == 2
    assert "frozen or not" in printed


def test_paper(tmp_path: Path) -> None:
    source = (STUDIES / "paper.py").read_text()
    digits = ('data="flowers102"', 'data="digits", image_size=32, train_size=40, val_size=40')
    run_script(shrink(source, data=digits, plan=CHEAP_CONFIRMATION), tmp_path)
    name = "flowers102-resnet50"
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path}/paper.db")
    assert study.user_attrs["biotune"]["spec"]["preset"] == "paper"
    assert (tmp_path / "paper.html").is_file()
