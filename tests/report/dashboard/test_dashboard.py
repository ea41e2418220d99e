"""The dashboard's guard, figures, note and tables, against the real optuna-dashboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from biotune_optuna.confirmation.record import Confirmation, Contender, Ledger, Training
from biotune_optuna.report.dashboard import attach
from biotune_optuna.report.dashboard.artifacts import artifact_store
from biotune_optuna.report.dashboard.attach import refresh_study
from biotune_optuna.report.dashboard.serve import dashboard_app
from biotune_optuna.report.dashboard.storage import ShortStorage
from biotune_optuna.storage.urls import default_artifact_dir
from biotune_optuna.study.board import board_of
from tests.kit.dashboard import call, detail


def routes(app: Any) -> list[tuple[str, str]]:
    """Every route of optuna-dashboard, with example values in it."""
    import re

    return [(r.method, re.sub(r"<[^>]*>", "1", r.rule)) for r in app.routes]


def test_read_only_refuses_every_route_that_is_not_a_read(
    study: optuna.Study, tmp_path: Path
) -> None:
    from optuna_dashboard import wsgi

    before = [(t.number, t.state, t.user_attrs, t.system_attrs) for t in study.trials]
    app = dashboard_app(study._storage, artifact_store(tmp_path), read_only=True)
    writing = [(m, p) for m, p in routes(wsgi(study._storage)) if m not in ("GET", "HEAD")]
    assert len(writing) > 10
    for method, path in writing:
        status, body = call(app, method, path)
        assert status == 403, (method, path)
        assert b"read-only" in body
    assert [(t.number, t.state, t.user_attrs, t.system_attrs) for t in study.trials] == before
    assert call(app, "GET", "/api/studies")[0] == 200


def test_without_read_only_a_note_can_be_written(study: optuna.Study, tmp_path: Path) -> None:
    app = dashboard_app(study._storage, artifact_store(tmp_path))
    assert call(app, "PUT", f"/api/studies/{study._study_id}/note")[0] == 400  # reaches the route


@pytest.mark.parametrize("host", ["evil.example:8080", "evil.example", "127.0.0.1.evil.example"])
def test_foreign_names_are_refused_on_localhost(
    study: optuna.Study, tmp_path: Path, host: str
) -> None:
    app = dashboard_app(study._storage, artifact_store(tmp_path))
    assert call(app, "GET", "/api/studies", host=host)[0] == 403
    for own in ("localhost:8080", "127.0.0.1", "[::1]:8080"):
        assert call(app, "GET", "/api/studies", host=own)[0] == 200


def test_other_addresses_answer_any_name(study: optuna.Study, tmp_path: Path) -> None:
    app = dashboard_app(study._storage, artifact_store(tmp_path), host="0.0.0.0")
    assert call(app, "GET", "/api/studies", host="server.lab:8080")[0] == 200


def test_refresh_shows_figures_note_and_metric(study: optuna.Study, tmp_path: Path) -> None:
    assert refresh_study(study)
    page = detail(study, tmp_path)
    shown = {g["id"]: json.loads(g["graph_object"]) for g in page["plotly_graph_objects"]}
    assert sorted(shown) == [
        "1-search-history", "2-freezing", "3-genomes", "4-importance", "5-cost", "6-lineage",
        "7-learning-curves",
    ]  # fmt: skip
    assert all(figure["data"] for figure in shown.values())
    assert "Best macro accuracy so far" in page["note"]["body"]
    assert page["objective_names"] == ["macro_accuracy"]
    columns = {c["key"] for c in page["union_user_attrs"]}
    assert columns >= {
        "generation", "role", "parents", "frozen", "trainable_pct", "seconds", "stderr",
    }  # fmt: skip


def test_refresh_replaces_and_waits_for_growth_and_time(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refresh_study(study)
    size = len(study._storage.get_study_system_attrs(study._study_id))
    assert not refresh_study(study)
    assert refresh_study(study, force=True)
    assert len(study._storage.get_study_system_attrs(study._study_id)) == size
    study.add_trial(optuna.trial.create_trial(value=0.1, params={}))
    assert not refresh_study(study)
    now = attach.time.time() + 3600
    monkeypatch.setattr(attach.time, "time", lambda: now)
    assert refresh_study(study)


def test_note_of_a_person_stays(study: optuna.Study) -> None:
    from optuna_dashboard import get_note, save_note

    refresh_study(study)
    save_note(study, "my own words")
    study.add_trial(optuna.trial.create_trial(value=0.999, params={}))
    assert refresh_study(study, force=True)
    assert get_note(study) == "my own words"


def test_note_of_ours_follows_the_study(study: optuna.Study) -> None:
    from optuna_dashboard import get_note

    refresh_study(study)
    study.add_trial(optuna.trial.create_trial(value=0.999, params={}))
    refresh_study(study, force=True)
    assert "99.9" in get_note(study)


def test_live_figures_stay_small_in_a_long_study() -> None:
    study = optuna.create_study(direction="maximize")
    rng = np.random.default_rng(0)
    blocks = [f"layer{i}.conv" for i in range(16)]
    trials = []
    for number in range(1000):
        rates = 10 ** rng.uniform(-1, 1, 16) * (rng.random(16) < 0.6)
        attrs = {
            "generation": number // 10,
            "role": "offspring",
            "parents": f"{max(0, number - 12)}, {max(0, number - 15)}" if number > 20 else "",
            "recipe": {"lr": 0.1, "multipliers": dict(zip(blocks, rates.tolist(), strict=True))},
            "trainable_pct": float(rng.uniform(1, 100)),
            "seconds": float(rng.uniform(1, 9)),
        }
        steps = {s: float(rng.random()) for s in range(1, 11)}
        trials.append(
            optuna.trial.create_trial(
                value=float(rng.random()), params={}, user_attrs=attrs, intermediate_values=steps
            )
        )
    study.add_trials(trials)
    assert refresh_study(study)
    attrs = study._storage.get_study_system_attrs(study._study_id)
    sizes = {k: len(v) for k, v in attrs.items() if k.startswith("dashboard:plot_data")}
    assert sum(sizes.values()) < 250_000


def test_plain_study_is_refreshed_with_what_it_has(
    plain_study: optuna.Study, tmp_path: Path
) -> None:
    assert refresh_study(plain_study)
    page = detail(plain_study, tmp_path)
    assert {g["id"] for g in page["plotly_graph_objects"]} == {"1-search-history", "5-cost"}


def test_without_the_dashboard_nothing_happens(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach.importlib.util, "find_spec", lambda _: None)
    assert not refresh_study(study)


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("sqlite:///runs/study.db", "runs/study-artifacts"),
        ("journal:///runs/study.log", "runs/study-artifacts"),
        ("postgresql://me@host/db", "biotune-artifacts"),
    ],
)
def test_artifacts_lie_beside_the_storage(url: str, folder: str) -> None:
    assert default_artifact_dir(url) == Path(folder)


def test_tables_are_spared_our_long_records(study: optuna.Study, tmp_path: Path) -> None:
    study.set_user_attr("confirm_trainings", {"a": 1})
    Ledger(study).add("b", Training(seconds=1.0))
    page = detail(study, tmp_path)
    first = {a["key"]: a["value"] for a in page["trials"][0]["user_attrs"]}
    assert "runs" not in first
    rates = study.trials[0].user_attrs["recipe"]["multipliers"].values()
    assert first["recipe"] == " ".join(f"{m:.2g}×" if m > 0 else "·" for m in rates)
    assert {a["key"] for a in page["user_attrs"]} == {"model", "data", "weights"}
    assert study.trials[0].user_attrs["runs"]  # only the view is short


def test_the_board_of_a_studys_trainings_is_not_listed(study: optuna.Study) -> None:
    board = board_of(study).study
    names = [one.study_name for one in ShortStorage(study._storage).get_all_studies()]
    assert study.study_name in names
    assert board.study_name not in names
    assert len(study._storage.get_all_studies()) == len(names) + 1


def test_finished_trials_are_shortened_once_and_running_ones_anew(study: optuna.Study) -> None:
    short = ShortStorage(study._storage)
    before = short.get_all_trials(study._study_id)
    trial = study.ask()
    assert "role" not in short.get_all_trials(study._study_id)[-1].user_attrs
    trial.set_user_attr("role", "offspring")
    trial.set_user_attr("kept_model", {"digest": "0" * 64, "bytes": 1})
    after = short.get_all_trials(study._study_id)
    assert after[-1].user_attrs["role"] == "offspring"
    assert "kept_model" not in after[-1].user_attrs
    assert all(a is b for a, b in zip(before, after, strict=False))


def test_the_best_trial_is_the_one_that_was_chosen(study: optuna.Study) -> None:
    short, study_id = ShortStorage(study._storage), study._study_id
    best = max((t for t in study.trials if t.state.name == "COMPLETE"), key=lambda t: t.value)
    assert short.get_best_trial(study_id).number == best.number
    other = next(
        t.number for t in study.trials if t.state.name == "COMPLETE" and t.value < best.value
    )
    ours = Contender(name=f"trial {other}", method="biotune", trial=other, scores=(0.8, 0.9))
    full = Contender(name="full", method="full", scores=(0.9, 0.9))
    for chosen in (ours.name, "full"):
        Confirmation(candidates=(ours,), rivals=(full,), chosen=chosen).store(study)
        assert short.get_best_trial(study_id).number == other


def test_values_have_three_digits(study: optuna.Study) -> None:
    shown = ShortStorage(study._storage).get_all_trials(study._study_id)
    for trial, kept in zip(shown, study.trials, strict=True):
        if kept.value is not None:
            assert trial.value == round(kept.value, 3)
