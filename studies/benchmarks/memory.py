"""Peak memory of a whole study on 500 and on 5,000 images at 224 px, same prefix-cache budget.

    python studies/benchmarks/memory.py

Each study runs in a process of its own on a folder of made-up photographs (JPEG, every tenth PNG):
images are hashed, split and decoded, recipes with every length of frozen prefix are trained, the
best are confirmed beside full fine-tuning and a linear probe, trained finally and tested, and the
report is written. Meanwhile the parent reads the process's anonymous memory (what it allocated,
caches included) and its file pages (the mapped pixel file and libraries, which the system takes
back when it needs the room) every few milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from biotune_optuna.page.parts import Code, Markdown, Table, markdown

SIZES = (500, 5000)
CLASSES = 5
LIMIT_MB = 300
EVERY = 0.01  # seconds between two looks
KINDS = {"anonymous": ("RssAnon", "RssShmem"), "file": ("RssFile",)}


def photographs(folder: Path, n: int) -> Path:
    """A folder of ``n`` blurred noise pictures of 320 x 256 pixels, tinted by class."""
    for index in range(n):
        label = index % CLASSES
        kind = "png" if index % 10 == 9 else "jpg"
        target = folder / f"class-{label}" / f"{index}.{kind}"
        target.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(index)
        small = rng.integers(0, 200, (32, 40, 3)).astype(np.uint8)
        small[..., label % 3] += np.uint8(11 * label)
        picture = Image.fromarray(small).resize((320, 256)).filter(ImageFilter.GaussianBlur(2))
        picture.save(target)
    return folder


def study(data: Path, work: Path, model: str, budget: float) -> dict[str, Any]:
    """Everything that a study does; runs in a process of its own."""
    from biotune_optuna import (
        ConfirmPlan,
        Recipe,
        StudySpec,
        TrainSettings,
        confirm,
        create_study,
        write_report,
    )

    stages: dict[str, float] = {}
    start = time.perf_counter()

    def done(stage: str) -> None:
        stages[stage] = time.time()
        print(f"  {stage} after {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    spec = StudySpec(
        model=model,
        data=str(data),
        weights="none",
        image_size=224,
        n_seeds=1,
        train=TrainSettings(epochs=1, prefix_cache_mb=budget),
    )
    storage = f"sqlite:///{work / 'study.db'}"
    running = create_study(
        spec, storage=storage, name="memory", device="cpu", cache_dir=work / "cache"
    )
    done("opened, hashed, split, decoded")
    setup = running.setup
    n_blocks = len(setup.blocks)
    for length in range(n_blocks):
        multipliers = [0.0] * length + [1.0] * (n_blocks - length)
        recipe = Recipe.from_multipliers(setup.blocks, multipliers, lr=3e-3, weight_decay=0.01)
        running.study.enqueue_trial(setup.space.encode(recipe).params)
    running.search(n_blocks)
    done("searched")
    confirm(running, ConfirmPlan(top_k=1, n_runs=1, rates=(3e-3,)))
    done("confirmed, finally trained, tested")
    write_report(running.study, work / "report.html")
    done("reported")
    trials = running.study.get_trials(deepcopy=False)
    return {
        "stages": stages,
        "hits": [sum(run["cache_hits"] for run in t.user_attrs["runs"]) for t in trials],
        "cached_mb": setup.trainer._prefixes.cache.nbytes / 2**20,
        "seconds": time.perf_counter() - start,
    }


def watched(command: list[str], result: Path) -> dict[str, Any]:
    """Runs a process and adds its peaks in MiB, of each stage and of all, to what it found."""
    process = subprocess.Popen(command)
    looks: list[tuple[float, dict[str, float]]] = []
    while process.poll() is None:
        if seen := memory_of(process.pid):
            looks.append((time.time(), seen))
        time.sleep(EVERY)
    if process.returncode:
        sys.exit(process.returncode)
    found = json.loads(result.read_text(encoding="utf-8"))
    found["peak"] = {kind: max(seen[kind] for _, seen in looks) for kind in KINDS}
    found["peak_by_stage"], since = {}, 0.0
    for stage, until in found["stages"].items():
        within = [seen["anonymous"] for when, seen in looks if since < when <= until]
        found["peak_by_stage"][stage], since = max(within), until
    return dict(found)


def memory_of(pid: int) -> dict[str, float]:
    """Resident memory of a process in MiB by kind; empty once it has gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return {}
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if "RssAnon" not in lines:  # a zombie has no memory any more
        return {}
    return {
        kind: sum(int(lines[name].split()[0]) for name in names) / 1024
        for kind, names in KINDS.items()
    }


def page(found: dict[int, dict[str, Any]], model: str, budget: float) -> str:
    """The table as Markdown."""
    import timm
    import torch

    few, many = (found[size] for size in SIZES)
    peaks = [one["peak"]["anonymous"] for one in (few, many)]
    bare = [one["peak"]["anonymous"] - one["cached_mb"] for one in (few, many)]
    verdict = "is kept" if max(np.diff(peaks)[0], np.diff(bare)[0]) <= LIMIT_MB else "is missed"
    numbers = [
        *((s, few["peak_by_stage"][s], many["peak_by_stage"][s]) for s in few["stages"]),
        ("**the whole study**", *peaks),
        ("the same less the cache's features", *bare),
        ("mapped files, peak (beside that)", few["peak"]["file"], many["peak"]["file"]),
    ]
    return markdown(
        [
            Markdown(f"""
                # Memory of a study as its data grow

                Peak resident memory in MiB of one process with a whole study on {SIZES[0]:,} and
                on {SIZES[1]:,} images (made-up JPEG and PNG files of 320 x 256 pixels, {CLASSES}
                classes) at 224 px, both with a prefix cache of {budget:g} MiB: `{model}`, random
                weights, one trial for each length of the frozen prefix, one epoch a training,
                batches of 32, then the confirmation with both rivals, the final trainings, the
                test and the report. Memory is read from outside every {1000 * EVERY:.0f} ms.
            """),
            Table(
                ("anonymous memory, peak while", *(f"{n:,} images" for n in SIZES), "growth"),
                [
                    (Markdown(what), f"{one:.0f}", f"{other:.0f}", f"{other - one:+z.0f}")
                    for what, one, other in numbers
                ],
            ),
            Markdown(f"""
                The aim was a growth of at most {LIMIT_MB} MiB; it {verdict}. At the end the cache
                held {few["cached_mb"]:.0f} and {many["cached_mb"]:.0f} MiB of features: those of
                more images are larger, and only deeper ones then fit the budget. Image passes that
                it served, by trial: {_listed(few["hits"])} with {SIZES[0]:,} images,
                {_listed(many["hits"])} with {SIZES[1]:,}.

                Mapped pages are those of the decoded pixels (147 KiB an image at 224 px) and of
                shared libraries; they belong to the system's file cache, are shared between
                workers and are given back when memory is short.
            """),
            Markdown(
                f"Python {sys.version.split()[0]}, torch {torch.__version__.split('+')[0]}, timm "
                f"{timm.__version__}, one CPU thread. Made by"
            ),
            Code("$ python studies/benchmarks/memory.py", "console"),
        ]
    )


def _listed(hits: list[int]) -> str:
    return ", ".join(f"{count:,}" for count in hits)


def main() -> None:
    """Measures both sizes and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--budget", type=float, default=128, help="MiB of the prefix cache")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/memory.md"))
    parser.add_argument("--child", nargs=3, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        data, work, result = args.child
        result.write_text(json.dumps(study(data, work, args.model, args.budget)))
        return
    if not Path("/proc/self/status").exists():
        print("skipped: memory.py reads /proc, which this system does not have")
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        for size in SIZES:
            work = Path(temporary) / str(size)
            data, result = photographs(work / "images", size), work / "result.json"
            print(f"{size} images", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--model", args.model]
            command += ["--budget", str(args.budget), "--child", *map(str, (data, work, result))]
            found[size] = watched(command, result)
            print(json.dumps(found[size]), file=sys.stderr, flush=True)
    args.out.write_text(page(found, args.model, args.budget), encoding="utf-8")
    print(args.out)


if __name__ == "__main__":
    main()
