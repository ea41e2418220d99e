"""Effort: three levels that set what costs, together; what is given alone overrides them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
from click.testing import CliRunner

from biotune_optuna.cli import cli
from biotune_optuna.cli.tune import Job
from biotune_optuna.clock import evidence_up_to
from biotune_optuna.compare import Comparison
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.planning import plan_study, plan_within, with_effort
from biotune_optuna.effort import EFFORTS, NORMAL, QUICK, THOROUGH, effort_of
from biotune_optuna.errors import StudyError
from biotune_optuna.estimator.classifier import BioTuneClassifier
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.spec import StudySpec
from biotune_optuna.study.study import create_study
from tests.kit.cli import tune
from tests.kit.studies import tiny_spec


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What ``tune`` would have run."""
    found: list[Job] = []
    monkeypatch.setattr("biotune_optuna.cli.tune.run", found.append)
    return found


def typed(jobs: list[Job], *options: str) -> Job:
    result = CliRunner().invoke(cli, ["tune", "--data", "digits", "--model", "resnet18", *options])
    assert result.exit_code == 0, result.output
    return jobs[-1]


def test_the_normal_effort_is_the_default_of_everything() -> None:
    plan = ConfirmPlan()
    assert effort_of(None) == NORMAL
    assert (NORMAL.top_k, NORMAL.n_runs, NORMAL.members) == (plan.top_k, plan.n_runs, plan.members)
    assert NORMAL.epochs == TrainSettings().epochs
    for less, more in zip(list(EFFORTS.values()), list(EFFORTS.values())[1:], strict=False):
        assert less.epochs <= more.epochs
        for name in ("trials", "top_k", "n_runs", "members"):
            assert getattr(less, name) < getattr(more, name)
    with pytest.raises(StudyError, match="'some' is unknown; choose quick, normal, thorough"):
        effort_of("some")


def test_the_help_tells_what_each_takes() -> None:
    said = " ".join(CliRunner().invoke(cli, ["tune", "--help"]).output.split())
    for effort in EFFORTS.values():
        assert f"{effort.name}: {effort.words}." in said


def test_options_override_an_effort(jobs: list[Job]) -> None:
    usual = typed(jobs)
    assert (usual.trials, usual.members, usual.effort) == (24, 5, NORMAL)
    quick = typed(jobs, "--effort", "quick")
    assert (quick.trials, quick.members, quick.effort) == (QUICK.trials, QUICK.members, QUICK)
    assert quick.given["epochs"] is None
    chosen = ("--trials", "5", "--members", "5", "--set", "epochs=4", "--image-size", "48")
    given = typed(jobs, "--effort", "quick", *chosen)
    assert (given.trials, given.members) == (5, 5)
    assert (given.given["epochs"], given.given["image_size"]) == (4, 48)
    assert typed(jobs, "--effort", "quick", "--within", "9m").trials is None


def test_the_papers_protocol_has_no_effort() -> None:
    message = tune("digits", "--preset", "paper", "--effort", "quick")
    assert message == "--effort quick and --preset paper both say what is done; give one of them"


def test_a_study_gets_epochs_and_a_largest_image() -> None:
    spec = tiny_spec(image_size=None)
    nothing = {"image_size": None, "epochs": None}
    assert with_effort(spec, NORMAL, given=nothing) == spec
    small = with_effort(spec, QUICK, given=nothing)
    assert (small.train.epochs, small.image_size) == (10, 64), "digits are 8 pixels wide"
    assert with_effort(spec, THOROUGH, given=nothing).image_size is None
    given = {"image_size": 40, "epochs": 2}
    assert with_effort(spec, QUICK, given=given) == spec
    unknown = StudySpec(model="auto", data="digits")
    assert with_effort(unknown, QUICK, given=nothing).image_size is None


def test_large_images_are_made_smaller(tmp_path: Path) -> None:
    from biotune_optuna.data.sources.open import open_images

    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (20, 200, 200, 3), dtype=np.uint8)
    source = open_images(images, labels=np.arange(20) % 2)
    spec = StudySpec(model="test_resnet", data="noise", weights="none")
    found = with_effort(spec, QUICK, given={}, source=source)
    assert found.image_size == 128
    assert with_effort(spec, NORMAL, given={}, source=source).image_size is None


def test_a_study_that_was_begun_keeps_its_size_and_epochs() -> None:
    storage, spec = open_storage("memory://"), tiny_spec(image_size=None)
    nothing = {"image_size": None, "epochs": None}
    begun, _ = plan_study(None, spec, storage=storage, name="s", given=nothing, effort=QUICK)
    create_study(begun, storage=storage, name="s")
    again, plan = plan_study(None, spec, storage=storage, name="s", given=nothing, effort=QUICK)
    assert plan is None
    create_study(again, storage=storage, name="s")


def test_a_time_limit_chooses_no_more_than_the_effort() -> None:
    spec = tiny_spec()
    made, plan = plan_within(1e9, spec, given={"image_size": 32}, device="cpu", effort=QUICK)
    assert (plan.trials, plan.members, made.train.epochs) == (QUICK.trials, QUICK.members, 10)
    assert (plan.top_k, plan.n_runs) == (QUICK.top_k, QUICK.n_runs)
    _, plan = plan_within(1e9, spec, given={"image_size": 32}, device="cpu", effort=THOROUGH)
    assert (plan.trials, plan.top_k, plan.n_runs) == (120, 5, 5)
    assert evidence_up_to(3, 3) == [
        (3, 3, 5),
        (3, 2, 5),
        (2, 2, 4),
        (2, 2, 3),
        (1, 2, 3),
        (1, 1, 2),
    ]


def test_a_comparison_takes_an_effort(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    plans: list[Comparison] = []

    def noted(plan: Comparison, *_: object, **__: object) -> tuple[list[object], None]:
        plans.append(plan)
        return [], None

    monkeypatch.setattr("biotune_optuna.cli.compare._run", noted)
    asked = ["compare", "--data", "digits", "--model", "test_resnet", "--weights", "none"]
    asked += ["--methods", "biotune,full"]
    for more in ((), ("--effort", "quick"), ("--effort", "quick", "--runs", "3", "--epochs", "4")):
        result = CliRunner().invoke(cli, [*asked, *more])
        assert result.exit_code == 0, result.output
    usual, quick, given = plans
    assert (usual.trials, usual.top_k, usual.runs, usual.members) == (24, 3, 3, 1)
    assert (quick.trials, quick.top_k, quick.runs, quick.members) == (12, 2, 2, 3)
    assert (quick.tasks[0].train.epochs, quick.tasks[0].image_size) == (10, 64)
    assert (given.runs, given.tasks[0].train.epochs) == (3, 4)


def test_a_classifier_takes_an_effort() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    quick = BioTuneClassifier("resnet18", effort="quick")
    assert (quick._most_trials(), quick._members()) == (QUICK.trials, QUICK.members)
    plan = quick._plan()
    assert plan is not None
    assert (plan.top_k, plan.n_runs, plan.members) == (2, 2, 3)
    own = BioTuneClassifier("resnet18", effort="quick", n_trials=7, members=2, epochs=3)
    assert (own._most_trials(), own._members(), own._given()["epochs"]) == (7, 2, 3)
    with pytest.raises(StudyError, match="'some' is unknown"):
        BioTuneClassifier(effort="some").fit(np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1])


def test_the_documentation_has_the_levels_as_they_are() -> None:
    page = (Path(__file__).parents[1] / "docs" / "faq.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    told = {row[1].split("`")[1]: [int(cell) for cell in row[2:7]] for row in rows}
    assert told == {
        one.name: [one.trials, one.epochs, one.top_k, one.n_runs, one.members]
        for one in EFFORTS.values()
    }
