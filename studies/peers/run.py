"""What people use instead, on the images of the second evidence, in the time that BioTune took.

    python studies/peers/run.py report FOLDER ... --python fastai=ENV/bin/python ...

`nox -s peers -- report FOLDER ...` makes the environments and runs this. Needs the table that
`evidence.py` writes for the same group: each of BioTune's rows there is a division, a time and a
number of members. Peers get files of the images, those of the test without labels, and write their
predictions; they are scored here. Finished ones are kept in the folder `evidence-peers`: the same
command goes on where it stopped, and several may run at once.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors.torch import save_file

from biotune_optuna.compare import Comparison, Row, read_csv, write_csv
from biotune_optuna.compare.run import digest_of_test
from biotune_optuna.files import replace_file
from biotune_optuna.finetune.calibration import cross_entropy
from biotune_optuna.finetune.metrics import score
from biotune_optuna.models.blocks import output_layers
from biotune_optuna.study.setup import prepare

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from _sets import TASKS, specs  # noqa: E402

if TYPE_CHECKING:
    from biotune_optuna import StudySpec
    from biotune_optuna.study.setup import Setup

SCRIPTS = {
    "fastai": "fastai_tuned.py",
    "timm-recipe": "timm_recipe.py",
    "autogluon": "autogluon_multimodal.py",
}
"""The peers by the name that tables give them."""


def main() -> None:
    """Run what is missing, and write the table of all that there is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("group", choices=TASKS)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--python", nargs="+", required=True, metavar="PEER=INTERPRETER")
    parser.add_argument("--table", type=Path, help="default: evidence-GROUP.csv")
    parser.add_argument("--repeats", type=int, default=1000, help="the first so many; default: all")
    parser.add_argument("--made", type=Path, default=Path("evidence-data"))
    parser.add_argument("--kept", type=Path, default=Path("evidence-peers"))
    args = parser.parse_args()
    pythons = dict(pair.split("=", 1) for pair in args.python)
    if unknown := pythons.keys() - SCRIPTS.keys():
        raise SystemExit(f"{min(unknown)} is no peer; give {', '.join(SCRIPTS)}")
    tasks = {
        Comparison.task_name(spec): spec
        for spec in specs(args.group, args.folders, args.made, epochs=1)
    }
    rows = read_csv(args.table or Path(f"evidence-{args.group}.csv"))
    ours = [row for row in rows if row.method == "biotune" and row.repeat < args.repeats]
    failed = []
    for row in sorted(ours, key=lambda row: (row.repeat, row.task)):
        for peer, python in pythons.items():
            place = args.kept / row.task / str(row.repeat)
            place.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(place / f"{peer}.lock", timeout=0):
                    found = place / f"{peer}.row.json"
                    if not found.exists():
                        run(peer, python, row, tasks[row.task], found)
            except Timeout:  # another process is at it
                continue
            except subprocess.CalledProcessError as error:
                failed.append(f"{row.task}, repeat {row.repeat}, {peer}: {error}")
                print(failed[-1], flush=True)
            gather(args.kept, Path(f"peers-{args.group}.csv"), tasks)
    if failed:
        raise SystemExit(f"{len(failed)} failed, the last: {failed[-1]}")


def run(peer: str, python: str, ours: Row, spec: StudySpec, found: Path) -> None:
    """Let a peer train on a division, and keep its row."""
    print(f"{ours.task}, repeat {ours.repeat}, {peer}: {ours.seconds:.0f} s", flush=True)
    setup = prepare(dataclasses.replace(spec, seed=ours.seed))
    if digest_of_test(setup) != ours.split:
        raise SystemExit(
            f"{ours.task}, repeat {ours.repeat}: the images are not those of the table"
        )
    folder = found.with_name(peer)
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process has left
    write(setup, folder, seconds=ours.seconds, members=ours.members)
    subprocess.run([python, str(HERE / SCRIPTS[peer]), str(folder.resolve())], check=True)
    row = score_row(peer, setup, ours, folder)
    replace_file(found, json.dumps(row.to_dict()))  # others read it at any time
    shutil.rmtree(folder)
    print(f"  {row.delivered:.4f} in {row.seconds:.0f} s", flush=True)


def write(setup: Setup, folder: Path, *, seconds: float, members: int) -> None:
    """Write a division as files: images, labels of those to learn from, and the weights."""
    folder.mkdir(parents=True)
    splits, config = setup.splits, setup.loaded.data_config
    lines: list[dict[str, Any]] = []
    for part in ("train", "val", "test"):
        for number, index in enumerate(getattr(splits, part).tolist()):
            file = f"{part}-{number}.png"
            setup.source.load(index).save(folder / file)
            label = "" if part == "test" else int(setup.source.labels[index])
            lines.append({"file": file, "part": part, "label": label})
    with (folder / "images.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, ("file", "part", "label"))
        writer.writeheader()
        writer.writerows(lines)
    state = setup.loaded.model.state_dict()
    head = tuple(f"{path}." for path in output_layers(setup.loaded.model))
    trunk = {name: t.contiguous() for name, t in state.items() if not name.startswith(head)}
    save_file(trunk, folder / "weights.safetensors")
    task = {
        "model": setup.loaded.name,
        "classes": list(setup.classes),
        "size": setup.image_size,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "crop_pct": setup.crop_pct,
        "interpolation": config["interpolation"],
        "seconds": seconds,
        "members": members,
        "seed": setup.spec.seed,
    }
    (folder / "task.json").write_text(json.dumps(task))


def score_row(peer: str, setup: Setup, ours: Row, folder: Path) -> Row:
    """Return the row of what a peer has predicted."""
    labels = setup.source.labels[setup.splits.test]
    told = json.loads((folder / f"{peer}.json").read_text())
    probs = np.load(folder / f"{peer}.npz", allow_pickle=False)
    metric, classes = setup.spec.train.metric, len(setup.classes)
    single, together = (probs[name] for name in ("single", "together"))
    return dataclasses.replace(
        ours,
        method=peer,
        score=score(metric, labels, single, classes),
        together=score(metric, labels, together, classes),
        cross_entropy=cross_entropy(labels, single),
        together_cross_entropy=cross_entropy(labels, together),
        validation=told["validation"],
        trainable=100.0,
        forward=0,  # nobody counts them there
        backward=0,
        seconds=told["seconds"],
        evaluations=told["tried"],
        setting=", ".join(f"{name} {value}" for name, value in told["setting"].items()),
    )


def gather(kept: Path, table: Path, tasks: dict[str, StudySpec]) -> None:
    """Write the table of all rows of a group that are there."""
    found = [Row(**json.loads(path.read_text())) for path in kept.glob("*/*/*.row.json")]
    write_csv([row for row in found if row.task in tasks], table)


if __name__ == "__main__":
    main()
