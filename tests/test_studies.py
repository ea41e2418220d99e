"""The gallery: every script in studies/ is short and runs."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import numpy as np
import optuna
import pytest
from PIL import Image

from biotune_optuna import TrainSettings
from biotune_optuna.compare import read_csv
from biotune_optuna.compare.over_tasks import Matrix
from tests.kit.examples import run_script, shrink
from tests.kit.images import digit_folder
from tests.kit.rows import make_row

STUDIES = Path(__file__).parents[1] / "studies"
SCRIPTS = sorted(STUDIES.glob("[!_]*.py"))


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
    assert [trial.user_attrs["role"] for trial in study.trials] == ["initial", "initial"]
    number, _, recipe = printed.splitlines()[-1].removeprefix("trial ").partition(": ")
    assert study.trials[int(number)].state == optuna.trial.TrialState.COMPLETE
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
    report = (tmp_path / "own-report.html").read_text("utf-8")
    assert "test images that no choice had seen it reached" in report


TINY = (
    'weights="none", image_size=32, train_size=30, val_size=30, n_seeds=1, '
    'train=__import__("biotune_optuna").TrainSettings(epochs=1, batch_size=15)'
)
FEW = {
    "trials": (r"^TRIALS = \d+", "TRIALS = 1"),
    "repeats": (r"^REPEATS = \d+", "REPEATS = 1"),
    "plan": (r"    trials=TRIALS,\n?", "    trials=TRIALS, top_k=1, runs=1,\n"),
}


def changed(
    source: str,
    changes: dict[str, tuple[str, str]],
    flags: re.RegexFlag = re.MULTILINE,
) -> str:
    """A script made smaller: patterns and what to put there, each of which must be found."""
    for name, (pattern, replacement) in changes.items():
        source, count = re.subn(pattern, replacement, source, flags=flags)
        assert count, name
    return source


def test_compare(tmp_path: Path) -> None:
    source = (STUDIES / "compare.py").read_text()
    source = changed(
        source,
        {
            **FEW,
            "spec": (r"image_size=.*?\n\)", f"{TINY}, lr=(1e-3, 3e-2)\n)"),
            "methods": (
                r"\(\*default_methods\(\), \*SEARCHERS\)",
                '("biotune", "full", "gp", "cma-es")',
            ),
        },
        re.MULTILINE | re.DOTALL,
    )
    printed = run_script(source, tmp_path, "digits", "test_efficientnet")
    done = [line for line in printed.splitlines() if "image passes" in line]
    assert [line.split(", ")[2].partition(":")[0] for line in done] == [
        "biotune",
        "full",
        "gp",
        "cma-es",
        "full@budget",
    ]
    assert {path.name for path in (tmp_path / "compare-out").iterdir()} == {
        "report.html",
        "report.md",
        "results.csv",
    }


def test_ablation(tmp_path: Path) -> None:
    source = (STUDIES / "ablation.py").read_text()
    for pattern, replacement in (
        (
            r"TrainSettings\(epochs=args.epochs, batch_size=args.batch_size\)",
            "TrainSettings(epochs=1, batch_size=args.batch_size), n_seeds=1, lr=(1e-3, 3e-2)",
        ),
        (r"trials=args.trials,", "trials=args.trials, top_k=1, runs=1,"),
    ):
        source, count = re.subn(pattern, replacement, source)
        assert count, pattern
    small = "--model test_efficientnet --weights none --image-size 32 --train-size 30 --trials 1"
    small += " --val-size 20 --batch-size 15"
    factors = ("freezing only", "rates only", "paper, no mutation")
    run_script(source, tmp_path, *factors, *small.split(), "--repeats", "1")
    text = (tmp_path / "ablation-out" / "report.md").read_text()
    for contrast in ("freezing only − biotune", "paper − biotune", "paper, no mutation − paper"):
        assert f"digits-test\\_efficientnet: {contrast} |" in text
    assert "Holm's over 4 comparisons: all of them" in text


def test_the_papers_table_is_printed_beside_ours() -> None:
    published = runpy.run_path(str(STUDIES / "_published.py"))
    rows = [
        make_row("biotune", r, s, data="flowers102", model="resnet50")
        for r, s in enumerate((0.9, 0.92))
    ]
    rows.append(make_row("lp-ft", 0, 0.5, data="flowers102", model="vgg19"))
    text = published["beside"](rows)
    assert "| flowers102 | biotune | 91.68 | 91.00 (n = 2) | – |" in text
    assert "| flowers102 | lp-ft | – | – | 50.00 (n = 1) |" in text
    assert "| svhn | full | 96.08 | – | – |" in text
    assert published["DIFFERENCES"]
    assert all(difference in text for difference in published["DIFFERENCES"])


def test_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wiring only: real digits under the name of one of the paper's data sets."""
    monkeypatch.syspath_prepend(STUDIES)  # `_published` lies beside the script
    images = digit_folder(tmp_path / "flowers102", per_class=20)
    source = (STUDIES / "paper.py").read_text()
    paper_train = TINY.replace("TrainSettings(", "TrainSettings.paper(")
    source = changed(
        source,
        {
            "trials": FEW["trials"],
            "repeats": FEW["repeats"],
            "spec": (r"model=model\)", f"model=model, {paper_train})"),
            "plan": (r"trials=TRIALS", 'trials=TRIALS, contenders=("biotune", "full"), top_k=1'),
        },
    )
    printed = run_script(source, tmp_path, str(images), "test_efficientnet")
    (line,) = (x for x in printed.splitlines() if x.startswith("| flowers102 | biotune | 91.68 |"))
    assert "(n = 1)" in line
    assert "Differences in protocol" in printed
    study = optuna.load_study(
        study_name="paper/flowers102-test_efficientnet/0/biotune",
        storage=f"sqlite:///{tmp_path}/paper.db",
    )
    assert study.user_attrs["biotune"]["spec"]["preset"] == "paper"
    assert len(study.trials) == 1
    docstring = (STUDIES / "paper.py").read_text().partition('"""\n\n')[0]
    assert "tiny stand-in data" in " ".join(docstring.split())


SMALL = FEW | {
    "model": (r"^MODEL = .*$", 'MODEL = "test_efficientnet"'),
    "sizes": (
        r"train_size=200,\n *val_size=100",
        'weights="none", lr=(1e-3, 3e-2), train_size=30, val_size=20',
    ),
    "epochs": (r"epochs=6", "epochs=1, batch_size=15"),
}


STAND_IN = """
import numpy as np

def mnist_data():
    return np.tile(np.arange(90.0), (784, 1)).T, np.arange(90) % 3
"""


def _assert_compared(tasks: tuple[str, ...], printed: str, report: Path) -> None:
    done = [line.split(", ") for line in printed.splitlines() if "image passes" in line]
    assert [
        (task.split()[1], repeat, method.partition(":")[0]) for task, repeat, method, *_ in done
    ] == [
        (f"{task}-test_efficientnet", "repeat 0", method)
        for task in tasks
        for method in ("biotune", "full")
    ]
    for task in tasks:
        assert f"{task}-test\\_efficientnet: biotune − full |" in report.read_text()


def test_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wiring, on stand-in data, and that the protocol stays what the results page says."""
    monkeypatch.syspath_prepend(STUDIES)  # `_sets` lies beside the script
    source = (STUDIES / "results.py").read_text()
    for fixed in ("TRIALS = 28", "REPEATS = 10", "train_size=200", "val_size=100", "epochs=6"):
        assert fixed in source
    folder = tmp_path / "data"
    for name in ("hymenoptera/train", "pneumoniamnist", "usps"):
        digit_folder(folder / name, per_class=12)
    for given in sorted((folder / "hymenoptera" / "train").glob("*/*.png"))[::3]:
        to = folder / "hymenoptera" / "val" / given.parent.name / given.name
        to.parent.mkdir(parents=True, exist_ok=True)
        given.rename(to)
    source = changed(source, SMALL | {"image size": (r'"image_size": \d\d', '"image_size": 32')})
    printed = run_script(source, tmp_path, str(folder), "biotune", "full")
    tasks = ("hymenoptera", "pneumoniamnist", "usps")
    _assert_compared(tasks, printed, tmp_path / "results-out" / "report.md")
    assert len(list((folder / "pooled" / "hymenoptera").glob("*/*.png"))) == 36


def test_development(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same protocol, with MNIST's digits written as files once."""
    monkeypatch.syspath_prepend(STUDIES)
    source = (STUDIES / "development.py").read_text()
    for fixed in ("TRIALS = 28", "REPEATS = 10", "train_size=200", "val_size=100", "epochs=6"):
        assert fixed in source
    digit_folder(tmp_path / "data" / "dtd10", per_class=12)
    (tmp_path / "mlxtend").mkdir()  # found before the package, which need not be there
    (tmp_path / "mlxtend" / "__init__.py").touch()
    (tmp_path / "mlxtend" / "data.py").write_text(STAND_IN)
    source = changed(source, SMALL | {"image size": (r": 64}", ": 32}")})
    printed = run_script(source, tmp_path, str(tmp_path / "data"), "biotune", "full")
    tasks = ("digits", "mnist5000", "dtd10")
    _assert_compared(tasks, printed, tmp_path / "development-out" / "report.md")
    folder = tmp_path / "data" / "mnist5000"
    assert {path.name: len(list(path.iterdir())) for path in folder.iterdir()} == dict.fromkeys(
        "012", 30
    )
    assert np.asarray(Image.open(folder / "1" / "4.png")).sum(axis=1).tolist() == [28 * 4] * 28


def test_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks, a reduced set of methods, stopped after one repeat and gone on with."""
    monkeypatch.syspath_prepend(STUDIES)
    import _sets

    tiny = {"model": "test_efficientnet", "weights": "none", "train_size": 30, "val_size": 20}
    small = {"lr": (1e-3, 3e-2), "train": TrainSettings(epochs=1, batch_size=15)}
    monkeypatch.setattr(_sets, "COMMON", tiny | small)
    half = {"image_size": 32, "test_fraction": 0.5}
    tasks = {"digits": half, "dtd10": half, "absent": half}
    monkeypatch.setattr(_sets, "TASKS", {"development": tasks})
    digit_folder(tmp_path / "data" / "dtd10", per_class=30)
    source = (STUDIES / "evidence.py").read_text()
    words = ["development", str(tmp_path / "data"), "--trials", "1", "--tasks", "digits", "dtd10"]
    words += ["--methods", "biotune", "linear-probe", "single-block@budget", "paper"]
    run_script(source, tmp_path, *words, "--repeats", "1")
    first = read_csv(tmp_path / "evidence-development.csv")
    printed = run_script(source, tmp_path, *words, "--repeats", "2")
    assert printed.count("image passes") == len(first) == 2 * 4, "the first repeat is not run again"
    rows = read_csv(tmp_path / "evidence-development.csv")
    assert set(map(repr, first)) <= set(map(repr, rows))
    (tmp_path / "evidence.db").unlink()
    (tmp_path / "evidence-development.csv").rename(tmp_path / "had.csv")
    printed = run_script(source, tmp_path, *words, "--repeats", "2", "--have", "had.csv")
    assert "image passes" not in printed, "what the table has is not run again"
    assert (tmp_path / "evidence-development.csv").read_text() == (tmp_path / "had.csv").read_text()
    found = Matrix.of(rows, ("biotune", "linear-probe", "single-block@budget", "paper"))
    assert {task: len(scores) for task, scores in found.tasks.items()} == {
        "digits-test_efficientnet": 2,
        "dtd10-test_efficientnet": 2,
    }
    assert {row.members for row in rows} == {3}
    assert all(row.delivered_cross_entropy > 0 for row in rows)
    passes = {(row.task, row.repeat, row.method): row.passes for row in rows}
    for (task, repeat, method), spent in passes.items():
        if method == "single-block@budget":
            assert spent <= 1.3 * passes[task, repeat, "biotune"]
    with pytest.raises(pytest.fail.Exception, match="absent is in none of"):
        run_script(source, tmp_path, *words[:2])


def test_the_frames_of_a_video_are_grouped_by_thousands() -> None:
    pattern = runpy.run_path(str(STUDIES / "_sets.py"))["TASKS"]["report"]["bee_pollen"]
    names = [
        "p/P10057-125r.jpg",
        "n/NP10999-1r.jpg",
        "n/NP1268-15r.jpg",
        "p/P57-3r.jpg",
        "p2/7.jpg",
    ]
    found = [re.search(pattern["group_regex"], name) for name in names]
    assert [match and match[1] for match in found] == ["10", "10", "1", "", ""]


def test_architectures(tmp_path: Path) -> None:
    _compare_pretrained("architectures", 5, tmp_path)


def test_families(tmp_path: Path) -> None:
    _compare_pretrained("families", 7, tmp_path)


def _compare_pretrained(name: str, methods: int, tmp_path: Path) -> None:
    source = (STUDIES / f"{name}.py").read_text()
    source = changed(
        source,
        {
            "sizes": (r"^SIZES = .*$", 'SIZES = {"test_efficientnet": 32}'),
            "weights": (r"weights=f.*$", 'weights="none", lr=(1e-3, 3e-2),'),
            "numbers": (r"train_size=100,\n *val_size=100", "train_size=30, val_size=20"),
            "epochs": (r"epochs=\d", "epochs=1"),
            "trials": (r"trials=\d+", "trials=1, top_k=1, runs=1"),
            "repeats": (r"repeats=\d+", "repeats=1"),
        },
    )
    printed = run_script(source, tmp_path, "usps", "test_efficientnet")
    assert printed.count("image passes") == methods
    text = (tmp_path / f"{name}-out" / "report.md").read_text()
    assert "digits-test\\_efficientnet: biotune − full |" in text


def test_pretrain(tmp_path: Path) -> None:
    images = digit_folder(tmp_path / "local")
    source = (STUDIES / "pretrain.py").read_text()
    models = ("test_efficientnet", "test_vit")
    options = ("--size", "32", "--epochs", "1", "--train-size", "40")
    printed = run_script(source, tmp_path, str(images), *options, "--models", *models)
    assert printed.count("macro_accuracy") == 2
    file = tmp_path / "test_efficientnet-local-32px.safetensors"
    from biotune_optuna.models.weights import create_model

    one = create_model("test_efficientnet", num_classes=10, weights=file, seed=0)
    none = create_model("test_efficientnet", num_classes=10, weights="none", seed=0)
    assert one.head_is_new
    assert one.weights_fingerprint != none.weights_fingerprint
