"""The main job as a user runs it: real images, SQLite, interrupted and gone on with."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from sklearn.datasets import load_digits

from biotune_optuna.cli import cli
from biotune_optuna.data.decode import preprocess
from biotune_optuna.export import load_exported
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.study import load_study

TRIALS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with real digit images of three classes, as PNG files."""
    from PIL import Image

    root = tmp_path_factory.mktemp("user")
    digits = load_digits()
    for label in range(3):
        folder = root / "images" / f"digit {label}"
        folder.mkdir(parents=True)
        for i, pixels in enumerate(digits.images[digits.target == label][:40]):
            Image.fromarray((pixels * 15.9).astype(np.uint8)).resize((32, 32)).save(
                folder / f"{i}.png"
            )
    return root


@contextlib.contextmanager
def at(place: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("BIOTUNE_CACHE", str(place / "cache"))
        yield


def start(place: Path, *args: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    line = [sys.executable, "-m", "biotune_optuna", *args]
    with at(place):
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(place: Path, *args: str) -> Result:
    """The command in this process, which has everything loaded."""
    with at(place):
        return CliRunner().invoke(cli, args)


TUNE = (
    "tune", "--data", "images", "--model", "test_efficientnet", "--weights", "none",
    "--image-size", "32", "--epochs", "2", "--batch-size", "16", "--study", "digits", "--plain",
    "--device", "cpu", "--trials", str(TRIALS),
)  # fmt: skip


def trials(place: Path) -> list[optuna.trial.FrozenTrial]:
    storage = open_storage(f"sqlite:///{place}/biotune.db", create=False)
    return optuna.load_study(study_name="digits", storage=storage).trials


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """The job, interrupted once in the middle of the search, then typed again."""
    process = start(place, *TUNE)
    assert process.stderr is not None
    for text in process.stderr:
        if text.startswith("trial    1"):
            break
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - asked < 20  # 10 s to hand the trial back, the rest for a slow machine
    assert "The same command goes on" in rest
    before = [t for t in trials(place) if t.state.is_finished() and t.value is not None]
    assert len(before) >= 2
    process = start(place, *TUNE)
    said, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    assert "Training on cpu (CPU, float32)" in log
    after = {t.number: t.value for t in trials(place)}
    assert all(after[t.number] == t.value for t in before)
    (place / "said.txt").write_text(said)
    return place


def test_the_total_counts_finished_trials(finished: Path) -> None:
    states = [t.state for t in trials(finished)]
    good = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    assert sum(state in good for state in states) == TRIALS
    assert not any(state == optuna.trial.TrialState.RUNNING for state in states)


def test_the_outcome_is_told(finished: Path) -> None:
    said = (finished / "said.txt").read_text()
    for words in ("full fine-tuning", "linear probe", "BioTune", "95 %", "<- chosen", "Report"):
        assert words in said
    assert "biotune predict" in said
    page = (finished / "biotune-out/digits/report.html").read_text("utf-8")
    visible = re.sub(r"\s+", " ", page)
    n_test = re.search(r"on (\d+) test images that the search never saw", said)
    assert n_test is not None
    assert f"On {n_test[1]} test images that no choice had seen it reached" in visible
    assert "Each model was tested once, after the choice had been made." in visible
    assert "How the methods compare" in visible


def test_the_same_command_again_changes_nothing(finished: Path) -> None:
    before = [(t.number, t.value) for t in trials(finished)]
    weights = finished / "biotune-out/digits/model/model.safetensors"
    stamp = weights.stat().st_mtime_ns
    done = run(finished, *TUNE)
    assert done.exit_code == 0, done.stderr
    assert [(t.number, t.value) for t in trials(finished)] == before
    assert weights.stat().st_mtime_ns == stamp
    assert done.stdout == (finished / "said.txt").read_text()


def test_an_interrupted_study_equals_an_uninterrupted_one(finished: Path) -> None:
    other = [*TUNE[: TUNE.index("--study")], "--study", "straight", *TUNE[-4:]]
    more = ("--storage", "sqlite:///straight.db", "--timeout", "1h", "--json")
    done = run(finished, *other, *more)
    assert done.exit_code == 0, done.stderr
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert events[0] == "trial_started"
    assert events.count("trial_finished") == TRIALS
    assert {"epoch", "stage"} < set(events)
    storage = open_storage(f"sqlite:///{finished}/straight.db", create=False)
    straight = optuna.load_study(study_name="straight", storage=storage).trials
    good = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)

    def finished_ones(
        of: list[optuna.trial.FrozenTrial],
    ) -> list[tuple[dict[str, object], float | None]]:
        return [(t.params, t.value) for t in of if t.state in good]

    assert finished_ones(trials(finished)) == finished_ones(straight)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (("--seed", "5"), "seed: 0, not 5"),
        (("--image-size", "48"), "image_size: 32, not 48"),
        (("--model", "test_resnet"), "model: 'test_efficientnet', not 'test_resnet'"),
        (("--epochs", "3"), "train.epochs: 2, not 3"),
    ],
)
def test_another_identity_is_refused_by_name(
    finished: Path, changes: tuple[str, ...], field: str
) -> None:
    before = [(t.number, t.value) for t in trials(finished)]
    option, value = changes
    kept = list(TUNE)
    if option in kept:  # a second model would be a second study
        kept[kept.index(option) + 1] = value
    else:
        kept += changes
    done = run(finished, *kept)
    assert done.exit_code == 2
    assert field in done.stderr
    assert [(t.number, t.value) for t in trials(finished)] == before


def test_other_images_are_another_identity(finished: Path) -> None:
    image = finished / "images" / "digit 0" / "0.png"
    pixels = image.read_bytes()
    image.unlink()
    try:
        done = run(finished, *TUNE)
    finally:
        image.write_bytes(pixels)
    assert done.exit_code == 2
    assert "fingerprints.data" in done.stderr


def test_status_and_report_from_the_database_alone(finished: Path) -> None:
    done = run(finished, "status", "--study", "digits", "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["trials"]["complete"] + facts["trials"]["pruned"] == TRIALS
    confirmed = facts["confirmed"]
    assert confirmed in ("full", "linear-probe") or confirmed.startswith("trial ")
    assert facts["test_looks"] == 3, "full fine-tuning, the linear probe and the best recipe"
    text = run(finished, "status")
    assert text.exit_code == 0, text.stderr
    assert "digits" in text.stdout
    assert "device      CPU, float32" in text.stdout.splitlines()
    done = run(finished, "report", "--to", "again.html")
    assert done.exit_code == 0, done.stderr
    assert (finished / "again.html").is_file()


def test_exported_model_predicts_what_the_model_in_memory_does(finished: Path) -> None:
    study = load_study(
        "digits",
        storage=f"sqlite:///{finished}/biotune.db",
        data=str(finished / "images"),
        device="cpu",
        cache_dir=finished / "cache",
    )
    from biotune_optuna.confirmation.confirm import train_winner
    from biotune_optuna.confirmation.record import Confirmation
    from biotune_optuna.finetune.calibration import tempered
    from biotune_optuna.finetune.prefix.shared import mean_probabilities

    trainer, index = study.setup.trainer, study.setup.splits.test
    members = []
    for member in train_winner(study).members:
        trainer.put(member)
        members.append(trainer.predict(index))
    found = Confirmation.of(study.study.user_attrs)
    assert len(members) == (1 if found.chosen == "linear-probe" else 5), "a probe has no seeds"
    exported = load_exported(finished / "biotune-out/digits/model", device="cpu")
    warmth = exported.calibration.temperature if exported.calibration else 1.0
    memory = tempered(mean_probabilities(members), warmth)
    images = [study.setup.source.load(int(i)) for i in index]
    probabilities = np.stack([p.probabilities for p in exported.predict(images)])
    np.testing.assert_allclose(probabilities, memory, atol=1e-6)
    one = load_exported(finished / "biotune-out/digits/model", device="cpu", single=True)
    warmth = one.calibration.temperature if one.calibration else 1.0
    alone = np.stack([p.probabilities for p in one.predict(images)])
    expected = tempered(members[0], warmth)
    np.testing.assert_allclose(alone, expected, atol=1e-6)


def test_the_weights_load_into_plain_timm(finished: Path) -> None:
    folder = finished / "biotune-out/digits/model"
    model = timm.create_model(
        "test_efficientnet", num_classes=3, checkpoint_path=str(folder / "model.safetensors")
    ).eval()
    exported = load_exported(folder, device="cpu")
    image = exported.classes, finished / "images" / "digit 1" / "5.png"
    from PIL import Image

    pre = exported.preprocessing
    pixels = preprocess(
        Image.open(image[1]), size=pre.size, crop_pct=pre.crop_pct, interpolation=pre.interpolation
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (pre.mean, pre.std))
    with torch.inference_mode():
        logits = model(((torch.from_numpy(pixels) / 255 - mean) / std)[None])
    (ours,) = exported.predict([image[1]])
    assert logits.softmax(1)[0].numpy() == pytest.approx(ours.probabilities, abs=1e-5)


def test_predict_from_the_command_line(finished: Path) -> None:
    (finished / "broken.png").write_bytes(b"not an image")
    done = run(
        finished, "predict", "biotune-out/digits/model", "images/digit 1/5.png", "broken.png",
        "--csv", "out.csv",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "broken.png" in done.stderr
    rows = (finished / "out.csv").read_text().splitlines()
    assert len(rows) == 3
    assert "digit" in rows[1]


def test_predict_without_a_readable_image_ends_with_1(finished: Path) -> None:
    (finished / "broken.png").write_bytes(b"not an image")
    done = run(finished, "predict", "biotune-out/digits/model", "broken.png", "--device", "cpu")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "broken.png" in done.stderr


def test_export_elsewhere_gives_the_same_weights(finished: Path) -> None:
    done = run(finished, "export", "--study", "digits", "--to", "copy", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    one = (finished / "biotune-out/digits/model/model.safetensors").read_bytes()
    assert (finished / "copy/model.safetensors").read_bytes() == one
    (finished / "mine").mkdir()
    (finished / "mine" / "thesis.txt").write_text("years of work")
    done = run(finished, "export", "--study", "digits", "--to", "mine", "--device", "cpu")
    assert done.exit_code == 2
    assert (finished / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_larger_total_goes_on(finished: Path) -> None:
    more = [*TUNE[:-1], str(TRIALS + 2)]
    before = {t.number: t.value for t in trials(finished)}
    done = run(finished, *more)
    assert done.exit_code == 0, done.stderr
    after = {t.number: t.value for t in trials(finished)}
    assert before.items() <= after.items()
    good = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    assert sum(t.state in good for t in trials(finished)) == TRIALS + 2


def test_launched_workers_share_what_is_missing(finished: Path) -> None:
    before = {t.number: t.value for t in trials(finished)}
    total = TRIALS + 6
    process = start(finished, "launch", "--devices", "cpu,cpu", "--trials", str(total))
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    assert log.count("Study digits has its trials; biotune tune confirms the winner.") == 2
    after = trials(finished)
    assert before.items() <= {t.number: t.value for t in after}.items()
    good = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    assert sum(t.state in good for t in after) == total
    assert not any(t.state == optuna.trial.TrialState.RUNNING for t in after)
