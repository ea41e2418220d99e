"""A real browser, and a real study that was searched, confirmed, exported and attached."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api

NAME = "digits-e2e"
N_TRIALS = 14
# Chromium as root, offline: no sandbox, nothing that calls home.
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = os.environ.get("BIOTUNE_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.fail(
            "no chromium on this machine; apt-get install chromium, or set BIOTUNE_CHROMIUM"
        )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``study.db``, its artifacts, ``model/`` and ``report.html``."""
    from biotune_optuna.confirmation.confirm import confirm
    from biotune_optuna.confirmation.plan import ConfirmPlan
    from biotune_optuna.confirmation.winner import export_winner
    from biotune_optuna.finetune.settings import TrainSettings
    from biotune_optuna.report.dashboard.attach import Attachments
    from biotune_optuna.report.html import write_report
    from biotune_optuna.study.spec import StudySpec
    from biotune_optuna.study.study import create_study

    folder = tmp_path_factory.mktemp("e2e")
    url = f"sqlite:///{folder / 'study.db'}"
    spec = StudySpec(
        model="test_resnet",
        data="digits",
        weights="none",
        image_size=32,
        crop_pct=1.0,
        train_size=200,
        val_size=100,
        test_fraction=0.3,
        population_size=6,
        n_seeds=2,
        train=TrainSettings(epochs=3, batch_size=32),
    )
    study = create_study(spec, storage=url, name=NAME, device="cpu", cache_dir=folder / "cache")
    attachments = Attachments(url, study.setup.classes)
    study.search(
        N_TRIALS, callbacks=[attachments.trial_finished], on_evaluated=attachments.evaluated
    )
    result = confirm(study, ConfirmPlan(top_k=1, n_runs=2, rates=(1e-3, 1e-2)))
    model = export_winner(study, folder / "model")
    attachments.finished(study.study, model, result.winner.trial)
    write_report(study.study, folder / "report.html")
    return folder


@pytest.fixture(scope="session")
def dashboard(finished: Path) -> str:
    """Address of the study in the dashboard, without the tab that is opened first."""
    from biotune_optuna.report.dashboard.serve import run_dashboard

    address: list[str] = []
    ready = threading.Event()

    def announce(where: str) -> None:
        address.append(where)
        ready.set()

    threading.Thread(
        target=run_dashboard,
        args=(f"sqlite:///{finished / 'study.db'}", NAME),
        kwargs={"port": 0, "read_only": True, "ready": announce},
        daemon=True,
    ).start()
    assert ready.wait(60)
    return address[0].removesuffix("/note")


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, browser: Any) -> Iterator[Any]:
    """A page of that size; any console error or failed request fails the test."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    trouble: list[str] = []
    page.on("console", lambda m: trouble.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("requestfailed", lambda r: trouble.append(f"{r.url} {r.failure}"))
    page.set_default_timeout(60_000)
    yield page
    folder = os.environ.get("BIOTUNE_SCREENSHOTS")
    if folder:
        name = request.node.name.replace("[", "-").replace("]", "")
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)
    context.close()
    assert trouble == []
