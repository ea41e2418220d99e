"""Networks ranked by a probe, and chosen for a study."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from biotune_optuna.cli import cli
from biotune_optuna.errors import ModelError, StudyError
from biotune_optuna.models.candidates import Candidate
from biotune_optuna.report.html import page
from biotune_optuna.report.view import as_view
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study import auto as auto_module
from biotune_optuna.study import ranking as ranking_module
from biotune_optuna.study.auto import choose_model
from biotune_optuna.study.choice import Choice, Ranked, front, is_auto
from biotune_optuna.study.probe import linear_probe
from biotune_optuna.study.ranking import rank_models
from biotune_optuna.study.setup import prepare
from biotune_optuna.study.study import create_study, load_study
from tests.kit.studies import tiny_spec

NAMES = ("test_efficientnet", "test_vit")
CANDIDATES = [Candidate(name, 1_000_000) for name in NAMES]


def test_the_score_is_the_probes_in_folds_of_the_training_images(cache_dir: Path) -> None:
    spec = tiny_spec(weights="none")
    told: list[Ranked] = []
    ranked = rank_models(spec, CANDIDATES, device="cpu", cache_dir=cache_dir, tell=told.append)
    assert [one.name for one in told] == list(NAMES)
    assert ranked == sorted(told, key=lambda one: -one.score)
    for one in ranked:
        setup = prepare(
            dataclasses.replace(spec, model=one.name), device="cpu", cache_dir=cache_dir
        )
        probe = linear_probe(setup)
        assert (one.score, one.low, one.high) == probe.folds
        assert one.parameters == sum(p.numel() for p in setup.trainer.model.parameters())
        assert one.ms > 0
        assert one.forward >= probe.cost.forward


def test_what_cannot_be_ranked_is_named_and_passed_over(cache_dir: Path) -> None:
    wrong = Candidate("vit_tiny_patch16_224", 1)  # images of 8 pixels hold no patch
    spec = tiny_spec(weights="none", image_size=8)
    both = [wrong, CANDIDATES[0]]
    ranked = rank_models(spec, both, device="cpu", cache_dir=cache_dir)
    assert [one.name for one in ranked] == ["test_efficientnet", "vit_tiny_patch16_224"]
    assert not ranked[0].why_not
    assert ranked[1].why_not
    with pytest.raises(ModelError, match="none of 1 networks can be ranked; the first, vit_tiny"):
        rank_models(spec, [wrong], device="cpu", cache_dir=cache_dir)


def test_without_a_hub_only_what_is_at_hand_is_looked_at(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def no_hub(spec: Any, **options: Any) -> Any:
        tried.append(spec.model)
        if spec.model.startswith("resnet"):
            raise ModelError("cannot get the weights (no answer); without the hub give a file")
        return prepare(dataclasses.replace(spec, weights="none"), **options)

    monkeypatch.setattr(ranking_module, "prepare", no_hub)
    monkeypatch.setattr(ranking_module, "is_at_hand", lambda name, _: not name.startswith("res"))
    names = ("resnet18", "test_efficientnet", "resnet34", "resnet50", "test_vit")
    every = [Candidate(name, 1) for name in names]
    ranked = rank_models(tiny_spec(), every, device="cpu", cache_dir=cache_dir)
    assert tried == ["resnet18", "test_efficientnet", "resnet34", "test_vit"]
    why = {one.name: one.why_not for one in ranked}
    assert why["resnet18"] == "cannot get the weights (no answer)"
    assert "cannot be reached" in why["resnet50"]


def test_a_limit_of_time_and_what_is_known_are_kept_to(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(ranking_module, "prepare", refuse)
    known = {
        "test_vit": Ranked(name="test_vit", score=0.9, ms=8.0),
        "test_efficientnet": Ranked(name="test_efficientnet", score=0.5, ms=2.0),
    }
    ranked = rank_models(tiny_spec(), CANDIDATES, max_ms=5, known=known, cache_dir=cache_dir)
    assert [one.why_not for one in ranked] == ["", "slower than 5 ms an image"]


def test_the_front_holds_what_no_other_beats_in_as_little_time() -> None:
    found = [
        Ranked(name=name, score=score, ms=ms)
        for name, score, ms in (("a", 0.5, 1), ("b", 0.4, 2), ("c", 0.7, 3), ("d", 0.7, 4))
    ]
    found.append(Ranked(name="e", why_not="gone"))
    assert [one.name for one in front(found)] == ["c", "a"]


# -- auto ----------------------------------------------------------------------------------------


@pytest.fixture
def two_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_module, "select", lambda _among, _limits: CANDIDATES)


def auto_spec(**changes: Any) -> Any:
    return tiny_spec(**({"model": "auto", "weights": "none"} | changes))


@pytest.mark.usefixtures("two_networks")
def test_the_network_with_the_best_mean_of_two_trainings_is_chosen(cache_dir: Path) -> None:
    told: list[str] = []
    choice = choose_model(auto_spec(), device="cpu", cache_dir=cache_dir, tell=told.append)
    assert {one.name for one in choice.tried} == set(NAMES)
    best = max(choice.tried, key=lambda one: one.value)
    assert choice.chosen == best.name
    for one in choice.tried:
        assert one.value == pytest.approx((max(one.half, one.full) + one.again) / 2)
        assert one.backward > 0
    assert choice.cost.forward == sum(o.forward for o in (*choice.ranked, *choice.tried))
    assert told[-1].startswith(f"Model: {choice.chosen}; ")
    stored = json.loads(json.dumps(choice.to_dict(), allow_nan=False))
    assert Choice.of(stored).to_dict() == choice.to_dict()
    failed = Ranked(name="x", why_not="gone")
    kept = Choice.of(Choice(asked="auto", ranked=(failed,)).to_dict())
    assert math.isnan(kept.ranked[0].score)


@pytest.mark.usefixtures("two_networks")
def test_a_study_goes_on_with_the_network_it_has(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/auto.db")
    options: dict[str, Any] = {"storage": storage, "device": "cpu", "cache_dir": cache_dir}
    study = create_study(auto_spec(), name="s", **options)
    chosen = study.spec.model
    assert chosen in NAMES
    view = as_view(study.study)
    assert view.model_choice.chosen == chosen
    assert view.passes[1] == view.model_choice.cost.backward > 0
    html = page(view)
    assert "Why this network" in html
    assert all(name in html for name in NAMES)

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("chosen again")

    monkeypatch.setattr("biotune_optuna.study.study.choose_model", refuse)
    assert create_study(auto_spec(), name="s", **options).spec == study.spec
    assert load_study("s", **options).spec == study.spec, "a worker needs neither list nor network"
    assert create_study(auto_spec(model=chosen), name="s", **options).spec == study.spec
    with pytest.raises(StudyError, match=f"model: '{chosen}', not 'auto:5M'"):
        create_study(auto_spec(model="auto:5M"), name="s", **options)


def test_limits_that_exclude_all_are_told_before_anything_is_loaded() -> None:
    with pytest.raises(ModelError, match="all 17 networks have more than 1,000 parameters"):
        choose_model(auto_spec(model="auto:1k"))
    with pytest.raises(ModelError, match="limit 'fast' is neither"):
        choose_model(auto_spec(model="auto:fast"))
    assert is_auto("auto:30M")
    assert not is_auto("autoencoder")


# -- the command ---------------------------------------------------------------------------------


def test_the_command_ranks_keeps_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIOTUNE_CACHE", str(tmp_path / "cache"))
    small = ("--train-size", "30", "--val-size", "20", "--image-size", "32", "--weights", "none")
    line = ["models", "--data", "digits", "--among", ",".join(NAMES), *small]
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "biotune-out" / "digits-models"
    table = (folder / "report.md").read_text().replace("\\", "")
    assert all(name in result.stdout and name in table for name in NAMES)
    assert "Which network?" in (folder / "report.html").read_text()
    assert len((folder / "ranking.jsonl").read_text().splitlines()) == 2

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as again:
        again.setattr(ranking_module, "prepare", refuse)
        result = CliRunner().invoke(cli, [*line, "--json"])
        assert result.exit_code == 0, result.output
        events = [json.loads(text) for text in result.stdout.splitlines()]
        assert [one["event"] for one in events] == ["model", "model", "result"]
        assert events[-1]["best"] in NAMES
        other = CliRunner().invoke(cli, [*line, "--seed", "1"])
        assert isinstance(other.exception, AssertionError), "other splits are another ranking"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--among", "resnet5"), "unknown model 'resnet5'; the nearest names are"),
        (("--max-params", "many"), "limit 'many' is neither"),
        (("--max-params", "1k"), "the smallest, tf_efficientnet_lite0.in1k, has 4,652,008"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["models", "--data", "digits", *options])
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "biotune-out").exists()


@pytest.mark.parametrize("command", [("probe",), ("baseline", "full"), ("tune", "--within", "9m")])
def test_where_a_network_must_be_named_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, [*command, "--data", "digits", "--model", "auto:20ms"])
    assert result.exit_code == 2
    assert "model 'auto:20ms'" in result.stderr
    assert "`biotune models` ranks" in result.stderr
