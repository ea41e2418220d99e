"""The documentation does what it says: its code runs, its commands exist, its links lead on."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

import biotune_optuna
from biotune_optuna.cli import cli
from tests.kit.examples import run_script, shrink
from tests.kit.images import digit_folder

ROOT = Path(__file__).parents[1]
FIRST_EVIDENCE = ROOT / "docs" / "benchmarks" / "first_evidence.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "benchmarks").glob("*.md"))

TINY_CLASSIFIER = (
    'BioTuneClassifier("test_efficientnet", weights="none", image_size=32, epochs=1, '
    "batch_size=20, study_params={'n_seeds': 1, 'lr': (1e-3, 3e-2)}, "
    "confirm=__import__('biotune_optuna').ConfirmPlan(top_k=1, n_runs=1, rates=(1e-2,)), n_trials=2"
)

PRELUDE = """
from sklearn.datasets import load_digits as _load
_digits = _load()
images, labels = _digits.images[:120] / 16, _digits.target[:120] % 3
test_images, test_labels = _digits.images[120:140] / 16, _digits.target[120:140] % 3
"""

FLOWERS = """
from biotune_optuna import StudySpec as _Spec, create_study as _create
_spec = _Spec(model="resnet18", data="flowers", image_size=32)
_create(_spec, storage="sqlite:///biotune.db", name="flowers").search(3)
"""
"""For pages that look into a study which is there already."""


FLOWERS_MODEL = """
from biotune_optuna import (
    ConfirmPlan as _Plan, StudySpec as _Spec, TrainSettings as _Train,
    confirm as _confirm, create_study as _create, export_winner as _export,
)
_spec = _Spec(
    model="test_efficientnet", weights="none", data="flowers", image_size=32, lr=(1e-3, 3e-2),
    train=_Train(epochs=1, batch_size=20),
)
_study = _create(_spec, storage="memory://", name="flowers").search(1)
_confirm(_study, _Plan(top_k=1, n_runs=1, rates=(1e-2,), members=2))
_export(_study, "flowers-model")
"""
"""For pages that use a model which is there already."""


def _fences(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def _commands() -> list[tuple[str, str]]:
    """Every ``biotune`` command line of the pages, with the page it stands on."""
    found = []
    for page in PAGES:
        for block in _fences(page, "console"):
            text = block.replace("\\\n", " ")
            for line in re.findall(r"^\$ (.*)$", text, re.MULTILINE):
                found += [
                    (page.name, part.strip())
                    for part in line.split("&&")
                    if part.strip().startswith("biotune ")
                ]
    return found


@pytest.mark.parametrize(
    "page", [p for p in PAGES if _fences(p, "python")], ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_code_runs(page: Path, tmp_path: Path) -> None:
    digit_folder(tmp_path / "flowers")
    source = "\n".join(_fences(page, "python"))
    source = re.sub(
        r'BioTuneClassifier\(\s*"\w+", (n_trials|time_limit)=\d+', TINY_CLASSIFIER, source
    )
    if 'study_name="flowers"' in source:
        source = FLOWERS + source
    if "flowers-model" in source:
        source = FLOWERS_MODEL + source
    run_script(PRELUDE + shrink(source), tmp_path)


@pytest.mark.parametrize(("page", "line"), _commands())
def test_commands_exist(page: str, line: str) -> None:
    words = shlex.split(line)[1:]
    if words[0].startswith("-"):
        assert words[0] in {"--help", "--version", "-h"}
        return
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None, f"{page}: biotune has no command {words[0]!r}"
    known = {option for parameter in command.params for option in parameter.opts}
    given = [word.partition("=")[0] for word in words[1:] if word.startswith("-")]
    for option in given:
        assert option in known | {"--help", "-h"}, f"{page}: {line!r}: no option {option}"


def test_commands_were_found() -> None:
    assert {line.split()[1] for _, line in _commands()} >= {"demo", "tune", "predict", "report"}


def test_readme_shows_the_digits_study() -> None:
    script = (ROOT / "studies" / "digits.py").read_text()
    code = script.partition('"""\n\n')[2]
    assert code in _fences(ROOT / "README.md", "python")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target) and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


def test_every_public_name_is_documented() -> None:
    reference = (ROOT / "docs" / "api.md").read_text()
    errors = {name for name in biotune_optuna.__all__ if name.endswith("Error")}
    for name in set(biotune_optuna.__all__) - errors - {"__version__"}:
        assert f"biotune_optuna.{name}\n" in reference, f"docs/api.md lacks {name}"


@pytest.mark.parametrize(
    ("table", "page"),
    [
        ("results", "heldout"),
        ("development", "development"),
        ("ablation", "ablation"),
        ("architectures", "architectures"),
        ("families", "families"),
    ],
)
def test_the_results_are_what_their_table_says(table: str, page: str, tmp_path: Path) -> None:
    """Nobody writes into a page of results by hand."""
    from biotune_optuna.compare import read_csv, write_comparison

    shown = (ROOT / "docs" / "benchmarks" / f"{page}.md").read_text()
    title = shown.splitlines()[0].removeprefix("# ")
    write_comparison(read_csv(ROOT / "studies" / f"{table}.csv"), tmp_path, title=title)
    assert shown == (tmp_path / "report.md").read_text()


def test_held_out_results_have_the_protocol_that_was_fixed() -> None:
    from biotune_optuna.compare import read_csv

    rows = read_csv(ROOT / "studies" / "results.csv")
    settings = {(row.model, row.val, row.train <= 200) for row in rows}
    assert settings == {("tf_efficientnet_lite0", 100, True)}


def test_ranks_over_both_tables_are_told_as_they_are() -> None:
    from biotune_optuna.compare import read_csv
    from biotune_optuna.compare.tables import summarise

    rows = [
        row
        for table in ("results", "development")
        for row in read_csv(ROOT / "studies" / f"{table}.csv")
    ]
    page = FIRST_EVIDENCE.read_text()
    head = "| | hymenoptera | pneumoniamnist | usps | digits | MNIST | dtd10 | mean |\n"
    table = page.partition(head)[2].partition("\n\n")[0]
    lines = [line.replace("*", "").strip("| ").split(" | ") for line in table.splitlines()[1:]]
    ranks = summarise(rows).ranks
    told = [float(mean) for *_, mean in lines]
    assert told == pytest.approx(sorted(ranks.values()), abs=0.05)
    for _, *places, mean in lines:
        assert sum(map(int, places)) / 6 == pytest.approx(float(mean), abs=0.05)
    assert lines[0][0] == "BioTune"
    assert min(ranks, key=ranks.__getitem__) == "biotune"
    steady = [row for row in rows if (row.data, row.repeat) != ("dtd10", 5)]
    ranks = summarise(steady).ranks
    assert f"has {ranks['lora']:.1f}, BioTune {ranks['biotune']:.1f};" in " ".join(page.split())


@pytest.mark.parametrize(
    ("table", "section", "models"),
    [
        (
            "architectures",
            "The paper's four architectures",
            ("densenet121", "inception_v3", "resnet50", "vgg19"),
        ),
        ("families", "Other kinds of networks", ("test_vit", "test_convnext", "test_nfnet")),
    ],
)
def test_means_on_a_small_scale_are_told_as_they_are(
    table: str, section: str, models: tuple[str, ...]
) -> None:
    from biotune_optuna.compare import read_csv

    names = {
        "BioTune": "biotune",
        "BioTune, from 24 November": "biotune",
        "BioTune, before": "biotune-usual-rates",
        "BioTune, the usual range of rates": "biotune-usual-rates",
        "layer-wise decay": "layer-decay",
        "full fine-tuning": "full",
        "LoRA": "lora",
        "Auto-RGN": "auto-rgn",
        "linear probe": "linear-probe",
    }
    scores: dict[tuple[str, str], list[float]] = {}
    for row in read_csv(ROOT / "studies" / f"{table}.csv"):
        scores.setdefault((row.model, row.method), []).append(row.score)
    page = FIRST_EVIDENCE.read_text()
    text = page.partition(f"## {section}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) > len(models)
    for name, *means in rows[1:]:
        for model, mean in zip(models, means, strict=True):
            known = scores.get((model, names[name])) or scores[model, "biotune"]
            assert float(mean) == pytest.approx(sum(known) / len(known), abs=0.00051)


def test_equal_budgets_are_told_as_they_are() -> None:
    from biotune_optuna.compare import read_csv
    from biotune_optuna.compare.statistics import mean_ranks

    scores: dict[tuple[str, str], list[float]] = {}
    for row in read_csv(ROOT / "studies" / "results.csv"):
        scores.setdefault((row.data, row.method), []).append(row.score)
    sets = ("hymenoptera", "pneumoniamnist", "usps")
    section = FIRST_EVIDENCE.read_text().partition("### With the same budget")[2]
    section = section.partition("\n### ")[0]
    names = {
        "BioTune": "biotune",
        "full fine-tuning, the same image passes": "full@budget",
        "LoRA, the same image passes": "lora@budget",
        "layer-wise decay, the same image passes": "layer-decay@budget",
        "probe, then full fine-tuning, the same image passes": "lp-ft@budget",
    }
    means = {m: [sum(scores[s, m]) / len(scores[s, m]) for s in sets] for m in names.values()}
    for words, method in names.items():
        assert f"| {words} | " + " | ".join(f"{mean:.3f}" for mean in means[method]) in section
    by_set = [{method: row[i] for method, row in means.items()} for i in range(len(sets))]
    ranks = mean_ranks(by_set)
    best = [method for method, rank in ranks.items() if rank == pytest.approx(min(ranks.values()))]
    assert set(best) == {"biotune", "lora@budget", "layer-decay@budget"}
    assert f"a mean rank of {ranks['biotune']:.1f}, which LoRA and layer-wise" in " ".join(
        section.split()
    )
