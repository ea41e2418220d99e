"""Checks and measures the engine on one GPU within eight minutes; writes JSON and the page.

    python studies/benchmarks/gpu.py --page docs/benchmarks/gpu.md

Each part runs in a process of its own with a time of its own, the most important first. So a crash
or a hang costs one part. The JSON file is written after each. ``--device cpu --small`` runs the
same code on a CPU in miniature, to see that the check itself is sound. Nothing needs to be
installed but PyTorch, timm and what this package imports.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # it runs from the tree, not installed
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

# part -> (module, function, seconds that it may take), in order of importance
PARTS = {
    "machine": ("_gpu_checks", "machine", 20),
    "equal": ("_gpu_checks", "equal", 45),
    "graphs": ("_gpu_checks", "graphs", 45),
    "waits": ("_gpu_checks", "waits", 40),
    "frozen": ("_gpu_checks", "frozen", 25),
    "deterministic": ("_gpu_checks", "deterministic", 60),
    "small images": ("_gpu_speed", "small_images", 60),
    "throughput": ("_gpu_speed", "throughput", 80),
    "workers": ("_gpu_speed", "workers", 110),
    "study": ("_gpu_speed", "study", 60),
    "cuts": ("_gpu_checks", "cuts", 45),
    "memory": ("_gpu_checks", "memory", 30),
    "export": ("_gpu_checks", "export", 20),
    "prefix": ("_gpu_speed", "prefix", 50),
    "rivals": ("_gpu_checks", "rivals", 40),
    "cuDNN": ("_gpu_speed", "cudnn", 40),
    "augmentation": ("_gpu_speed", "augmentation", 25),
    "pytest": ("_gpu_checks", "suite", 60),
}
LEAST = 8.0  # seconds with which a part is worth beginning


def run_part(name: str, device: str, small: bool, file: Path) -> None:
    """Run a part in this process, which has not touched the GPU before."""
    from _gpu_common import Found, How

    module, function, _ = PARTS[name]
    found = Found(file)
    found.save()
    with found.guard(name):
        getattr(importlib.import_module(module), function)(found, How(device, small))


def run_apart(name: str, device: str, small: bool, seconds: float) -> dict[str, Any]:
    """Run a part in a child process, and end all that it has started."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "part.json")
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.setsid()
            code = 1
            try:
                run_part(name, device, small, file)
                code = 0
            finally:
                sys.stdout.flush()
                os._exit(code)
        code = None
        while code is None and time.monotonic() - start < seconds:
            pid, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if pid else None
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if code is None:
            os.waitpid(child, 0)
        part: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if code is None:
        part["error"] = f"cut off after {seconds:.0f} s"
    elif code:
        part["error"] = f"ended with {code}"
    part["seconds"] = round(time.monotonic() - start, 1)
    return part


def run_all(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run the parts that are asked for, and keep what they find after each."""
    deadline = time.monotonic() + arguments.seconds
    everything: dict[str, dict[str, Any]] = {}
    for name in arguments.parts or PARTS:
        left = deadline - time.monotonic()
        if left < LEAST:
            everything[name] = {"skipped": "no time was left"}
        else:
            most = min(arguments.stretch * PARTS[name][2], left)
            print(f"-- {name} (at most {most:.0f} s, {left:.0f} s left)", flush=True)
            everything[name] = run_apart(name, arguments.device, arguments.small, most)
        arguments.out.write_text(json.dumps(everything, indent=1))
    return everything


def told(everything: dict[str, dict[str, Any]]) -> bool:
    """Print a line a part; return whether all checks hold."""
    failed = []
    for name, part in everything.items():
        checks = part.get("checks", [])
        good = sum(check["ok"] for check in checks)
        why = part.get("error") or part.get("skipped") or ""
        print(f"{name:14} {part.get('seconds', 0):6} s  {good} of {len(checks)} checks {why}")
        failed += [f"{name}: {check['name']}" for check in checks if not check["ok"]]
        failed += [name] if part.get("error") else []
    print("failed:", "; ".join(failed) or "nothing")
    return not failed


def parsed() -> argparse.Namespace:
    """Return the command's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=430, help="for everything")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="what was found, JSON")
    parser.add_argument("--page", type=Path, help="write the documentation's page")
    parser.add_argument("--read", type=Path, help="make the page of an earlier --out, or of none")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the check itself")
    parser.add_argument("--small", action="store_true", help="in miniature")
    parser.add_argument("--stretch", type=float, default=1.0, help="times each part's own limit")
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), help=f"some of: {', '.join(PARTS)}"
    )
    given = parser.parse_args()
    if unknown := [name for name in given.parts or () if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; known are {', '.join(PARTS)}")
    return given


def main() -> int:
    """Run the check, or make a page of an earlier run."""
    arguments = parsed()
    if arguments.read is not None:
        known = arguments.read.is_file()
        everything = json.loads(arguments.read.read_text()) if known else {}
        good = True
    else:
        # here once, so that the parts are there at once; no CUDA is touched
        importlib.import_module("_gpu_checks")
        importlib.import_module("_gpu_speed")
        everything = run_all(arguments)
        good = told(everything)
    if arguments.page is not None:
        from _gpu_page import page

        arguments.page.write_text(page(everything))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
