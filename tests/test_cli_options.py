"""Options: what they mean, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from biotune_optuna.cli import cli
from biotune_optuna.cli.options import DURATION, Rates
from biotune_optuna.cli.spec import make_spec
from biotune_optuna.cli.tune import tune as tune_command
from biotune_optuna.confirmation.plan import MEMBERS, ConfirmPlan
from tests.kit.cli import TINY, fails, tree, tune


def test_training_settings_are_read_or_refused(home: Path) -> None:
    spec = make_spec(
        preset="default",
        settings=(
            "label_smoothing=0.1",
            "class_weights=balanced",
            "patience=None",
            "augment=none",
            "deterministic=False",
        ),
        data="digits",
        model="resnet18",
        epochs=7,
        seeds=None,
        folds=3,
    )
    assert (spec.train.label_smoothing, spec.train.class_weights) == (0.1, "balanced")
    assert (spec.train.patience, spec.train.epochs) == (None, 7)
    assert (spec.train.deterministic, spec.train.augment) == (False, "none")
    assert (spec.n_seeds, spec.n_folds) == (1, 3)
    data = tree(home / "data", {"cat": 9, "dog": 9})
    assert "'colour'" in tune(data, "--set", "colour=red")
    assert "batch_size -3" in tune(data, "--set", "batch_size=-3")
    assert "NAME=VALUE" in tune(data, "--set", "epochs")
    assert "compile 'no' is neither true nor false" in tune(data, "--set", "compile=no")
    assert "'beauty'" in tune(data, "--metric", "beauty")


def test_the_papers_protocol_is_a_preset_that_options_change() -> None:
    from biotune_optuna import StudySpec

    given = {"data": "digits", "model": "resnet18", "folds": None}
    spec = make_spec(preset="paper", settings=(), **given, seeds=None, epochs=None)
    assert spec == StudySpec.paper(data="digits", model="resnet18")
    spec = make_spec(preset="paper", settings=("grad_clip=1.0",), **given, seeds=2, epochs=7)
    assert (spec.preset, spec.n_folds, spec.n_seeds) == ("paper", 2, 2)
    paper = StudySpec.paper(data="d", model="m").train
    assert spec.train == dataclasses.replace(paper, epochs=7, grad_clip=1.0)


def test_one_study_to_begin_like_or_none(home: Path) -> None:
    said = tune("digits", "--like", "earlier", "--no-like")
    assert "--like names a study to begin with and --no-like none; give one" in said


def test_nothing_is_said_twice() -> None:
    message = tune("digits", "--set", "epochs=5")
    assert "epochs is given twice, as 1 and with --set as 5" in message
    assert "augment is given twice" in tune("digits", "--augment", "flip", "--set", "augment=none")
    twice = ("--set", "patience=2", "--set", "patience=3")
    assert "patience is given twice, as 2 and with --set as 3" in tune("digits", *twice)
    message = tune("digits", "--val-size", "20", "--val-fraction", "0.1")
    assert "--val-size 20 and --val-fraction 0.1 both say how many images" in message


def test_times_are_read_or_refused() -> None:

    assert DURATION.convert("20m", None, None) == 1200
    assert DURATION.convert("1h30m", None, None) == 5400
    assert "soon" in fails("tune", "--data", "x", *TINY, "--timeout", "soon")
    assert "0s" in fails("tune", "--data", "x", *TINY, "--timeout", "0s")


def test_the_fewest_blocks_are_the_same_everywhere() -> None:
    assert "2 is not in the range x>=3" in fails("blocks", "resnet18", "--max-blocks", "2")
    assert "2 is not in the range x>=3" in tune("digits", "--max-blocks", "2")
    assert CliRunner().invoke(cli, ["blocks", "resnet18", "--max-blocks", "3"]).exit_code == 0


def test_the_usual_number_of_trials_is_told() -> None:
    assert "[default: 24;" in CliRunner().invoke(cli, ["tune", "--help"]).output


def test_rates_are_read_or_refused() -> None:
    given: dict[str, Any] = {
        "data": "digits",
        "model": "resnet18",
        "preset": "default",
        "settings": (),
    }
    rates, decays = Rates(), Rates(zero=True)
    spec = make_spec(**given, lr=rates.convert("1e-4,3e-3", None, None), weight_decay=0.0)
    assert (spec.lr, spec.weight_decay) == ((1e-4, 3e-3), 0.0)
    assert make_spec(**given, lr=rates.convert("2e-4", None, None)).lr == 2e-4
    assert make_spec(**given, lr=Rates(auto=True).convert("auto", None, None)).lr == "auto"
    assert "'auto' is neither" in tune("digits", "--weight-decay", "auto")
    assert decays.convert("0", None, None) == 0
    for bad in ("0", "-1", "fast", "1e-4,", "1e-4,1e-3,1e-2", "0,1e-3", "nan", "inf", "1e-4,inf"):
        message = f"{bad!r} is neither a rate above 0 nor two bounds above 0; write 1e-3, or 1e-4,"
        assert message in tune("digits", "--lr", bad)
    for bad in ("-1", "0,0.01"):
        assert f"{bad!r} is neither a rate of at" in tune("digits", "--weight-decay", bad)
    for bad in ("1e-2,1e-3", "1e-3,1e-3"):
        assert f"{bad!r} has no low and high bound" in tune("digits", "--lr", bad)


def test_numbers_of_members_that_are_none_are_refused(home: Path) -> None:
    data = tree(home / "data", {"cat": 9, "dog": 9})
    for members in ("0", "1000"):
        message = tune(data, "--members", members)
        assert message == f"members {members} is no whole number from 1 to 50"
    assert "'1.5' is not a valid integer" in tune(data, "--members", "1.5")
    assert "good" in tune(data, "--prefer", "good")
    usual = {option.name: option.default for option in tune_command.params}
    assert (usual["members"], usual["prefer"]) == (MEMBERS, ConfirmPlan().prefer)
