"""The tables of real trainings: which genomes they hold, and that nothing is lost on the way."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from filelock import FileLock

from biotune_optuna import GenomeSpace
from biotune_optuna.recipe import BlockRecipe
from tests.kit.images import digit_folder

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).parents[1] / "studies" / "benchmarks"
NAMES = ("_genomes", "_tasks", "_trainings", "_real", "landscapes")
UNLIKE = ("seconds",)  # columns in which equal trainings may differ


class Scripts:
    """The benchmark's own files, imported from their folder."""

    def __init__(self) -> None:
        self.genomes, self.tasks, self.trainings, self.real, self.landscapes = (
            importlib.import_module(name) for name in NAMES
        )
        self.genomes: ModuleType


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch, home: Path) -> Scripts:
    """The scripts with two tiny tasks: digits, three places, two of them trained again."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = Scripts()
    tiny = {
        name: found.tasks.Task(
            *(name, "test_efficientnet", "digits", 32, 20, 20),
            epochs=2,
            options={"weights": "none", "test_fraction": 0.02, "seed": seed},
        )
        for seed, name in enumerate(("tiny-one", "tiny-two"))
    }
    monkeypatch.setattr(found.landscapes, "TASKS", tiny)
    monkeypatch.setattr(found.genomes, "GENOMES", 6)
    monkeypatch.setattr(found.genomes, "REPEATED_OF", 3)
    monkeypatch.setattr(found.genomes, "REPEATED", (1, 1, 0))
    return found


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    header, *rest = path.read_text().splitlines()
    return json.loads(header.removeprefix("# ")), list(csv.DictReader(rest))


def alike(path: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in UNLIKE} for row in read(path)[1]]


@pytest.fixture
def space() -> GenomeSpace:
    return GenomeSpace([BlockRecipe(f"b{i}", 1.0) for i in range(8)] + [BlockRecipe("head", 1.0)])


def known_values(scripts: Scripts, space: GenomeSpace, places: int) -> dict[int, Any]:
    """A table whose values are made up: the fewer blocks train, the better."""
    known: dict[int, Any] = {}
    for place in range(places):
        genome = scripts.genomes.genome_at(place, space, known)
        share = float(np.mean([not block.frozen for block in genome.decode().blocks]))
        known[place] = (genome.params, 1.0 - share)
    return known


def test_any_beginning_of_a_table_is_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "_genomes", raising=False)
    genomes = importlib.import_module("_genomes")
    jobs = genomes.jobs()
    assert len(jobs) == len(set(jobs)) == 380
    assert jobs[:120] == [(place, 0) for place in range(120)]
    assert jobs[200:] == [(place, 0) for place in range(120, 300)]
    for repeat in (1, 2):
        again = jobs[80 + 40 * repeat : 120 + 40 * repeat]
        assert {r for _, r in again} == {repeat}
        assert np.bincount([place % 3 for place, _ in again]).tolist() == [14, 13, 13]
    kinds = [genomes.origin(place) for place in range(300)]
    assert [kinds.count(kind) for kind in ("random", "surgical")] == [100, 100]
    assert set(kinds[2::3]) == set(genomes.WAYS)


def test_surgical_genomes_train_few_blocks_over_the_whole_range(
    scripts: Scripts, space: GenomeSpace
) -> None:
    recipes = [scripts.genomes.genome_at(p, space, {}).decode() for p in range(1, 300, 3)]
    trained = [[b.name for b in r.blocks[:-1] if not b.frozen] for r in recipes]
    assert np.bincount([len(names) for names in trained]).tolist() == [0, 50, 25, 25]
    single = [names[0] for names in trained if len(names) == 1]
    assert min(single.count(f"b{i}") for i in range(8)) >= 6
    assert not any(r.blocks[-1].frozen for r in recipes)
    rates = [r.lr * b.multiplier for r in recipes for b in r.blocks if not b.frozen]
    assert min(rates) < 3e-4
    assert max(rates) > 1e-1


def test_genomes_follow_from_place_and_earlier_values(scripts: Scripts, space: GenomeSpace) -> None:
    known = known_values(scripts, space, 45)
    assert known == known_values(scripts, space, 45)
    assert len({tuple(params.values()) for params, _ in known.values()}) == 45
    for kind in (0, 1):  # these need no values
        assert scripts.genomes.genome_at(42 + kind, space, {}).params == known[42 + kind][0]
    moved = [known[p][1] for p in range(45) if scripts.genomes.origin(p) == "moved"]
    assert np.mean(moved) > np.mean([known[p][1] for p in range(0, 45, 3)])


def test_a_default_sampler_of_another_version_is_refused(
    scripts: Scripts, space: GenomeSpace
) -> None:
    known = known_values(scripts, space, 11)
    known[2] = (known[0][0], known[2][1])
    with pytest.raises(SystemExit, match="go on with the version that began it"):
        scripts.genomes.genome_at(11, space, known)


def test_a_table_goes_on_where_it_was_cut_off(
    scripts: Scripts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = scripts.landscapes.main
    at_once, later = (
        ["tiny-one", "--cache", str(tmp_path / name), "--out", str(tmp_path / name / "out")]
        for name in ("at-once", "later")
    )
    main([*at_once, "--chunk", "99"])
    assert "training the whole network takes" in capsys.readouterr().out
    main([*later, "--trainings", "4"])
    kept = tmp_path / "later" / "tiny-one.jsonl"
    with kept.open("a") as file:
        file.write('{"place": 1, "rep')
    assert len(read(tmp_path / "later" / "out" / "tiny-one.csv")[1]) == 4
    main([*later, "--chunk", "2"])
    for table in ("tiny-one.csv", "test/tiny-one.csv"):
        assert alike(tmp_path / "at-once" / "out" / table) == alike(
            tmp_path / "later" / "out" / table
        )
    before = kept.read_text()
    main(later)
    assert kept.read_text() == before
    main([*at_once, "--write-only", "--out", str(tmp_path / "again")])
    for table in ("tiny-one.csv", "test/tiny-one.csv"):
        written = (tmp_path / "again" / table).read_text()
        assert written == (tmp_path / "at-once" / "out" / table).read_text()


def test_a_row_is_what_a_trial_gives(scripts: Scripts, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scripts.landscapes.main(["tiny-one", "--cache", str(tmp_path), "--out", str(out)])
    made, rows = read(out / "tiny-one.csv")
    assert str(tmp_path) not in json.dumps(made)
    setup = scripts.landscapes.TASKS["tiny-one"].open([tmp_path], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "tiny-one.jsonl").read_text().splitlines()]
    train, val = setup.splits.run(None)
    labels, n = setup.source.labels, len(setup.classes)
    assert [(row["place"], row["seed"]) for row in rows] == [
        *(("0", "0"), ("1", "0"), ("2", "0")),
        *(("0", "1"), ("1", "1"), ("0", "2"), ("1", "2")),
        *(("3", "0"), ("4", "0"), ("5", "0")),
    ]
    for row, line in zip(rows, lines[1:], strict=True):
        seed = setup.spec.search_runs(repeat=int(row["seed"]))[0].seed
        assert int(row["run_seed"]) == seed
        recipe = setup.space.genome(line["params"]).decode()
        result = setup.trainer.fit(recipe, train, val, seed=seed, keep_weights=True)
        assert line["score"] == result.score
        assert line["curve"] == [epoch.score for epoch in result.epochs]
        assert (line["forward"], line["backward"]) == (
            result.images_forward,
            result.images_backward,
        )
        probs = setup.trainer.predict(scripts.trainings.test_part(setup))
        score = scripts.trainings.metrics.score(
            "macro_accuracy", labels[scripts.trainings.test_part(setup)], probs, n
        )
        assert line["test"]["best"][0] == score
        for epoch, text in enumerate(line["val_probs"]):
            logs = scripts.trainings.unpacked(text, n)
            assert scripts.trainings.cross_entropy(logs, labels[val]) == pytest.approx(
                line["nll"][epoch], rel=1e-2
            )
            assert line["fitted"][epoch] <= min(line["nll"][epoch], np.log(n) + 1e-2)
    seeds = [row["seed"] for row in read(out / "test" / "tiny-one.csv")[1]]
    assert seeds[-2:] == ["0+1+2"] * 2
    assert not [column for column in rows[0] if "test" in column]
    table = scripts.real.Table.read(out / "tiny-one.csv")
    assert table.n_trainings == len(rows)
    assert sorted(table.counts) == [1, 1, 1, 1, 3, 3]


def test_a_diverged_training_has_the_worst_score(scripts: Scripts, tmp_path: Path) -> None:
    setup = scripts.landscapes.TASKS["tiny-one"].open([tmp_path], tmp_path)
    genome = scripts.genomes.genome_at(0, setup.space, {})
    blocks = setup.blocks
    recipe = type(genome.decode()).full(blocks, lr=1e6)

    class Wild:
        params = genome.params

        def decode(self) -> Any:
            return recipe

    row = scripts.trainings.train(setup, Wild(), 0)
    assert row["stopped"] == "diverged"
    assert row["score"] == row["curve"][-1] == 0.0
    assert row["test"]["best"] == [0.0, None, None]


def test_tasks_take_turns_and_a_taken_one_is_left_alone(
    scripts: Scripts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--cache", str(tmp_path), "--out", str(tmp_path / "out"), "--chunk", "1"]
    scripts.landscapes.main(["tiny-one", "tiny-two", *options, "--trainings", "2"])
    done = [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()[1::2]]
    assert done == [f"tiny-{n}: {i} of 10 trainings" for i in (1, 2) for n in ("one", "two")]
    with FileLock(tmp_path / "tiny-one.lock"):
        scripts.landscapes.main(["tiny-one", "tiny-two", *options, "--trainings", "3"])
    assert "tiny-one" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "no such task: nothing; there are tiny-one, tiny-two"),
        (["tiny-one", "--chunk", "0"], "--chunk and --trainings must be 1 or more"),
        (["tiny-one", "--write-only"], "no trainings yet"),
    ],
)
def test_bad_input_gets_one_line(
    scripts: Scripts, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as error:
        scripts.landscapes.main(arguments)
    assert said in f"{error.value} {capsys.readouterr().err}"


def test_a_missing_folder_is_named(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    task = scripts.tasks.TASKS["lite0-trashnet5"]
    monkeypatch.setattr(scripts.landscapes, "TASKS", {task.name: task})
    with pytest.raises(SystemExit, match="no folder 'trashnet5' in here; give --data-root"):
        scripts.landscapes.main([task.name, "--data-root", "here"])


def test_other_settings_do_not_go_into_the_same_table(
    scripts: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["tiny-one", "--cache", str(tmp_path), "--out", str(tmp_path / "out")]
    scripts.landscapes.main([*options, "--trainings", "1"])
    other = scripts.landscapes.TASKS["tiny-two"]
    monkeypatch.setattr(scripts.landscapes, "TASKS", {"tiny-one": other})
    with pytest.raises(SystemExit, match="made with other spec; give another --cache"):
        scripts.landscapes.main([*options, "--trainings", "2"])


def test_parts_may_be_put_together(scripts: Scripts, tmp_path: Path) -> None:
    for part in ("train", "val"):
        digit_folder(tmp_path / "data" / "parts" / part, per_class=20)
    for picture in (tmp_path / "data" / "parts" / "val").glob("*/*.png"):
        picture.rename(picture.with_stem(f"v{picture.stem}"))
    task = scripts.tasks.Task(
        *("parts", "test_efficientnet", "parts", 32, 30, 30),
        pooled=True,
        options={"weights": "none", "test_fraction": 0.3},
    )
    setup = task.open([tmp_path, tmp_path / "data"], tmp_path)
    assert len(setup.splits.val) == 30
    assert len(setup.splits.test) == 36
