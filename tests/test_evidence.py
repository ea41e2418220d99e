"""The second evidence: its protocol, its runner, its peers and its pages."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from biotune_optuna import TrainSettings
from biotune_optuna.compare import read_csv, write_csv
from biotune_optuna.errors import StudyError
from biotune_optuna.study.setup import prepare
from tests.kit.images import digit_folder
from tests.kit.rows import make_row

if TYPE_CHECKING:
    from types import ModuleType

    from biotune_optuna.compare import Row

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "studies"


def load(monkeypatch: pytest.MonkeyPatch, name: str, *others: str) -> ModuleType:
    """A script as a module, and anew those beside it that it imports."""
    monkeypatch.syspath_prepend(str((STUDIES / name).parent))
    for one in (*others, Path(name).stem):
        monkeypatch.delitem(sys.modules, one, raising=False)
    return importlib.import_module(Path(name).stem)


def test_the_sample_size_is_that_of_the_earlier_results(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load(monkeypatch, "benchmarks/sample_size.py", "_parts")
    rows = [row for table in script.TABLES for row in read_csv(table)]
    page = (ROOT / "docs" / "benchmarks" / "protocol.md").read_text()
    assert script.part(rows).strip() in page


def test_the_short_tables_are_what_the_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load(monkeypatch, "benchmarks/evidence.py", "_parts")
    measured = script.groups()
    results, readme = ((ROOT / name).read_text() for name in ("docs/results.md", "README.md"))
    assert script.summary(measured, deep="benchmarks/").strip() in results
    assert script.summary(measured, deep="docs/benchmarks/", brief=True).strip() in readme
    assert script.page(measured) == script.PAGE.read_text()


def measured_rows() -> list[Row]:
    rows = []
    for task, lead in (("birds", 0.02), ("cells", 0.04), ("coins", -0.01)):
        for method, ahead in (("biotune", lead), ("full@budget", 0.0), ("fastai", -0.1)):
            scores = [0.5 + ahead, 0.6 + ahead]
            rows += [
                make_row(
                    *(method, repeat, score - 0.05),
                    task=task,
                    data=task,
                    members=3,
                    together=score,
                    cross_entropy=2.0,
                    together_cross_entropy=1.5 - ahead,
                    **({"forward": 0, "backward": 0} if method == "fastai" else {}),
                )
                for repeat, score in enumerate(scores)
            ]
    return rows


def test_the_pages_tell_wins_and_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load(monkeypatch, "benchmarks/evidence.py", "_parts")
    rows = measured_rows()
    # A repeat that the others have not had counts nowhere, nor in the cost.
    rows.append(dataclasses.replace(rows[0], repeat=2, forward=10**6))
    rows.append(dataclasses.replace(rows[0], method="autogluon"))  # on one set alone
    group = script.Group("Report tasks", rows, {})
    full = "full fine-tuning, as many image passes"
    short = script.summary([group], deep="benchmarks/")
    assert "3 image sets, at most 60 images to train on" in short
    assert "2 repeats, models of 3 members" in short
    lacking = "Left out, because some of the sets lack it: AutoGluon MultiModal, in the same time."
    assert lacking in " ".join(short.split())
    assert "earlier default" not in short
    assert f"| {full} | +1.7 (-1.0 to +4.0) | 2 of 3 | not shown | 1.0 | 1.7 |" in short
    fastai = "fastai's fine\\_tune, in the same time"
    assert f"| {fastai} | +11.7 (+9.0 to +14.0) | 3 of 3 | ahead | – | 3.0 |" in short
    page = script.page([group])
    # value, worst task, wins and losses, Wilcoxon's p of ranks 1, 2, 3 with one negative, Holm's
    assert (
        f"| {full} | +1.7 (-1.0 to +4.0) | -1.0 | 2 : 1 | 0.500 | 0.500 | +1.7 | -0.017 |" in page
    )
    assert "| BioTune minus the best rival | +2.0 points | +4.0 points | -1.0 points |" in page
    assert "| BioTune | 1.33 |" in page
    assert "| BioTune | 0.570 | 0.590 | 0.540 |" in page


PEER = """
import sys
sys.path.insert(0, {peers!r})
import numpy as np
from _peer import main, spend
from PIL import Image


def pixels(files):
    return np.array([np.asarray(Image.open(f).convert("L").resize((8, 8))).ravel() for f in files])


def run(task):
    assert (task.size, task.members, task.seconds) == (32, 2, 5.0)
    assert set(task.part("test")[1]) == {{-1}}, "no label of the test is told"

    def train(images, shown, setting, seed):
        files, labels = images
        centres = np.stack([pixels(files)[labels == c].mean(0) for c in range(len(task.classes))])

        def predict(of):
            near = -((pixels(of)[:, None] - centres) ** 2).sum(-1) / setting["width"]
            odds = np.exp(near - near.max(1, keepdims=True))
            return odds / odds.sum(1, keepdims=True)

        return predict

    return spend(task, [{{"epochs": 1, "width": 1e4}}, {{"epochs": 10**9, "width": 1.0}}], train)


main("centroids", run)
"""


def test_a_peer_learns_from_files_and_is_scored_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path
) -> None:
    """A peer of nearest centroids in the place of fastai, which is not installed here."""
    script = load(monkeypatch, "peers/run.py", "_sets")
    tiny = {"model": "test_efficientnet", "weights": "none", "train_size": 60, "val_size": 30}
    sets = sys.modules["_sets"]
    monkeypatch.setattr(sets, "COMMON", tiny)
    options = {"digits": {"image_size": 32, "test_fraction": 0.1}}
    monkeypatch.setitem(sets.TASKS, "development", options)
    (spec,) = sets.specs("development", [tmp_path], tmp_path, epochs=1)
    setup = prepare(dataclasses.replace(spec, seed=3))
    ours = make_row(
        *("biotune", 0, 0.5),
        task="digits-test_efficientnet",
        split=script.digest_of_test(setup),
        seed=3,
        members=2,
        together=0.5,
        cross_entropy=1.0,
        together_cross_entropy=1.0,
        seconds=5.0,
        test=len(setup.splits.test),
    )
    monkeypatch.chdir(tmp_path)
    write_csv([ours, make_row("full", 0, 0.5, task=ours.task)], "evidence-development.csv")
    peer = tmp_path / "centroids.py"
    peer.write_text(PEER.format(peers=str(STUDIES / "peers")))
    monkeypatch.setattr(script, "SCRIPTS", {"centroids": str(peer)})
    words = ["run.py", "development", str(tmp_path), "--python", f"centroids={sys.executable}"]
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    (row,) = read_csv("peers-development.csv")
    assert (row.method, row.members, row.evaluations) == ("centroids", 2, 1)
    assert row.setting == "epochs 1, width 10000.0"
    assert row.together > 0.6, "digits are told apart by their centroids"
    assert 0 < row.delivered_cross_entropy < 2.3
    assert (row.task, row.split, row.seed) == (ours.task, ours.split, ours.seed)
    peer.unlink()
    script.main()  # what is there is not run again
    assert [repr(one) for one in read_csv("peers-development.csv")] == [repr(row)]
    other = dataclasses.replace(ours, repeat=1)  # of another seed, so of other images
    write_csv([ours, dataclasses.replace(other, seed=4)], "evidence-development.csv")
    with pytest.raises(SystemExit, match="repeat 1: the images are not those of the table"):
        script.main()
    write_csv([ours, other], "evidence-development.csv")
    with pytest.raises(SystemExit, match=r"1 failed, the last: .*, repeat 1, centroids"):
        script.main()


@pytest.mark.parametrize(
    ("seconds", "tried", "chosen"),
    [
        (10_000, [20, 10, 40], 40),  # the longest does best
        (3_000, [20, 10], 20),  # 40 and its members do not fit any more
        (1_000, [20, 10], 10),  # nor the members of 20, which was tried first
        (100, [20], 20),  # nothing fits: the least is done
    ],
)
def test_a_peer_keeps_to_its_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: int, tried: list[int], chosen: int
) -> None:
    peer = load(monkeypatch, "peers/_peer.py")
    lines = [
        "file,part,label",
        *(f"{i}.png,{'val' if i % 3 else 'train'},{i % 2}" for i in range(30)),
    ]
    (tmp_path / "images.csv").write_text("\n".join(lines))
    task = peer.Task(
        *(tmp_path, "net", ["a", "b"], 32, [0.5], [0.5], 1.0, "bicubic"),
        seconds=seconds,
        members=2,
        seed=0,
    )
    now, seen = [0.0], []
    monkeypatch.setattr(peer.time, "perf_counter", lambda: now[0])

    def train(images, shown, setting, seed):
        files, _ = images
        now[0] += setting["epochs"] * len(files)
        seen.append((setting["epochs"], len(files), seed))
        right = setting["epochs"] / 100

        def predict(of):
            labels = dict(zip(*task.part("train", "val"), strict=True))
            return np.array([[right, 0.4] if labels[one] == 0 else [0.4, right] for one in of])

        return predict

    settings = [{"epochs": n} for n in (20, 10, 40)]
    members, setting, _, count = peer.spend(task, settings, train)
    assert [epochs for epochs, n, _ in seen if n == 10] == tried
    assert (setting, count, len(members)) == ({"epochs": chosen}, len(tried), 2)
    assert seen[-2:] == [(chosen, 30, 1), (chosen, 30, 2)]
    assert now[0] <= seconds or len(tried) == 1


def test_no_peer_is_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(one for extra in extras for one in extra)]
    assert not [one for one in wanted if one.startswith(("fastai", "autogluon"))]


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The study of when a search pays, on tiny tasks and without its dearest axis."""
    script = load(monkeypatch, "benchmarks/pays.py", "_sets")
    sets = sys.modules["_sets"]
    tiny = {"model": "test_efficientnet", "weights": "none", "lr": (1e-3, 3e-2)}
    train = {"train": TrainSettings(epochs=1, batch_size=15), "train_size": 30, "val_size": 20}
    monkeypatch.setattr(sets, "COMMON", tiny | train)
    options = {"image_size": 32, "test_fraction": 0.5}
    monkeypatch.setitem(sets.TASKS, "development", {"digits": options, "dtd10": options})
    monkeypatch.setattr(script, "AXES", {"size": (24,), "skew": (4,)})
    monkeypatch.setattr(script, "TASKS", {"size": {"digits": 0.9}, "skew": {"dtd10": 0.25}})
    monkeypatch.setattr(script, "SKEWED", (30, 12))
    digit_folder(tmp_path / "data" / "dtd10", per_class=40)
    monkeypatch.chdir(tmp_path)
    return script


def test_skewed_classes_have_an_even_test(pays: ModuleType, tmp_path: Path) -> None:
    folder = pays.skewed("data/dtd10", tmp_path / "made" / "skew", ratio=4, share=0.25)
    counts = {
        part.name: [len(list(one.iterdir())) for one in sorted(part.iterdir())]
        for part in folder.iterdir()
    }
    assert counts == {"test": [10, 10, 10], "train": [24, 12, 6]}
    names = [file.name for part in ("test", "train") for file in folder.glob(f"{part}/digit-0/*")]
    assert len(names) == len(set(names)) == 34, "no image is in both"
    with pytest.raises(StudyError, match="too few images of 'digit-0' for a skew of 30"):
        pays.skewed("data/dtd10", tmp_path / "made" / "more", ratio=30, share=0.25)


def test_when_a_search_pays_is_measured_and_told(
    pays: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["pays.py", "data", "--axes", "size", "--repeats", "1", "--trials", "1"]
    )
    pays.main()
    rows = read_csv("pays.csv")
    assert {(row.task, row.train, row.val) for row in rows} == {("size 24 digits", 24, 20)}
    assert sorted(row.method for row in rows) == sorted(pays.METHODS)
    skewed = [dataclasses.replace(row, task="skew 4 dtd10") for row in rows]
    far = pays.distances(rows)
    page = pays.page(rows + skewed, far)
    by = {row.method: row for row in rows}
    lead = 100 * (by["biotune"].delivered - by["full"].delivered)
    assert f"| 24 | {lead:+z.1f} ({lead:+z.1f} to {lead:+z.1f}) |" in page
    assert "## By skew" in page
    assert f"| size 24 digits | {by['linear-probe'].delivered:.3f} | {lead:+z.1f} |" in page
    pytest.importorskip("matplotlib")
    pays.draw(rows + skewed, far, tmp_path / "one.svg")
    pays.draw(rows + skewed, far, tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
