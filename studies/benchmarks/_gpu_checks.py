"""The parts of the check on a GPU that ask: is it right?"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from _gpu_common import (
    MEAN,
    STD,
    epoch_seconds,
    forked,
    gap,
    images_of,
    losses,
    settled,
    trainer_of,
)

from biotune_optuna.data.augment import AUGMENTATIONS
from biotune_optuna.data.preprocessing import Preprocessing
from biotune_optuna.export.folder import export_model, load_exported
from biotune_optuna.finetune import loop
from biotune_optuna.methods.registry import methods
from biotune_optuna.models.states import all_tensors
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from _gpu_common import Found, How

    from biotune_optuna.finetune.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


def machine(found: Found, how: How) -> None:
    """What there is: versions, the card, its memory's and its multipliers' speed."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    found.figure("Python", platform.python_version())
    found.figure("PyTorch", torch.__version__)
    found.figure("timm", timm.__version__)
    found.figure("CPU", f"{cpu}, {os.cpu_count()} cores")
    if not how.on_gpu:
        return
    card = torch.cuda.get_device_properties(0)
    found.figure("GPU", f"{card.name}, {card.total_memory / 2**30:.0f} GiB")
    found.figure("CUDA", f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    smi = shutil.which("nvidia-smi")
    if smi is not None:
        asked = [smi, "--query-gpu=driver_version,compute_mode", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=20)
        found.figure("driver", said.stdout.strip())
    found.figure("MPS", shutil.which("nvidia-cuda-mps-control") or "not installed")
    n, side = 2**28, 8192
    a, b = torch.ones(n, device="cuda"), torch.empty(n, device="cuda")
    m = [torch.ones(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    seconds = []
    for work in (lambda: b.copy_(a), lambda: torch.mm(m[0], m[1], out=m[2])):
        work()
        start = settled(how.device)
        for _ in range(10):
            work()
        seconds.append((settled(how.device) - start) / 10)
    found.figure("copy, TB/s", round(8 * n / seconds[0] / 1e12, 2))
    found.figure("bf16 product, TFLOP/s", round(2 * side**3 / seconds[1] / 1e12, 1))


def equal(found: Found, how: How) -> None:
    """The same run on the CPU and on the device; bf16 and fp16 beside float32."""
    n, size = how.pick((192, 48), (64, 32))
    train, val = np.arange(n), np.arange(n, n + 64)
    torch.backends.cudnn.allow_tf32 = False  # this process ends with the part
    for name in ("resnet18", "vit_tiny_patch16_224"):
        with found.guard(f"{name}: device against CPU"):
            curves, scores = [], []
            for where in ("cpu", how.device):
                images = images_of(n + 64, size, where)
                settings = {"amp": "off", "optimizer": "sgd", "schedule": "constant"}
                trainer = trainer_of(how.net(name), images, **settings)
                result = trainer.fit(Recipe.full(trainer.blocks, lr=1e-2), train, val, seed=0)
                curves.append(losses(result))
                scores.append(result.score)
            first = gap(curves[0][:1], curves[1][:1])
            found.check(f"{name}: device against CPU, loss of the first epoch", first, most=1e-3)
            third = gap(*curves)
            found.check(f"{name}: device against CPU, loss of three epochs", third, most=2e-2)
            apart = abs(scores[0] - scores[1])
            found.check(f"{name}: device against CPU, score", apart, most=0.05)
    with found.guard("bf16 against float32"):
        images, gaps = images_of(n, size, how.device), []
        for seed in range(how.pick(3, 1)):
            both = []
            for amp in ("off", "bf16"):
                trainer = trainer_of(how.net("resnet18"), images, amp=amp, epochs=2)
                recipe = Recipe.full(trainer.blocks, lr=1e-3)
                both.append(losses(trainer.fit(recipe, train, seed=seed)))
            gaps.append(gap(*both))
        found.check("bf16 against float32, loss of two epochs", max(gaps), most=0.1)
    if how.on_gpu:
        with found.guard("fp16 trains"):
            trainer = trainer_of(how.net("resnet18"), images, amp="fp16", grad_clip=1.0)
            curve = losses(trainer.fit(Recipe.full(trainer.blocks, lr=1e-3), train, seed=0))
            found.check("fp16: last loss over the first", curve[-1] / curve[0], most=1.0)


# -- recorded steps --------------------------------------------------------------------------------


class _Plainly:
    """On a CPU: records nothing, and does the work again at each replay."""

    def run(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        return work()

    def record(self, work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        return work


def counted_recordings() -> list[str]:
    """Have every recording counted; the list grows by "recorded", or by what was said instead."""
    found: list[str] = []
    make = loop.recorder_for

    def recorder_for(device: torch.device) -> Any:
        recorder = make(device) or _Plainly()
        record = recorder.record

        def counted(work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
            try:
                replay = record(work)
            except RuntimeError as error:
                found.append(" ".join(str(error).split())[:200])
                raise
            found.append("recorded")
            return replay

        recorder.record = counted
        return recorder

    loop.recorder_for = recorder_for
    return found


def graphs(found: Found, how: How) -> None:
    """Recorded steps against those made one by one: the same bits under deterministic kernels."""
    seen = counted_recordings()
    size, n = how.pick((64, 160), (32, 64))
    images, idx = images_of(n, size, how.device), np.arange(n)
    cases: dict[str, dict[str, Any]] = {
        "float32": {"amp": "off"},
        "bf16": {"amp": "bf16"},
        "bf16, sgd": {"amp": "bf16", "optimizer": "sgd"},
        "bf16, mixed, clipped": {"amp": "bf16", "mixup": 0.4, "cutmix": 1.0, "grad_clip": 1.0},
        "bf16, balanced": {"amp": "bf16", "class_weights": "balanced"},
        "bf16, cached probe": {"amp": "bf16", "prefix_cache_mb": 512},
    }
    names = ("resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto")
    for name in names:
        for label, settings in cases.items() if name == names[0] else [("bf16", cases["bf16"])]:
            with found.guard(f"{name}, {label}: recorded"):
                ends = []
                for graph in ("off", "auto"):
                    seen.clear()
                    chosen = {"batch_size": 16, "epochs": how.pick(4, 8), **settings}
                    trainer = trainer_of(
                        how.net(name), images, deterministic=True, cuda_graph=graph, **chosen
                    )
                    make = Recipe.linear_probe if "probe" in label else Recipe.full
                    result = trainer.fit(make(trainer.blocks, lr=1e-3), idx, seed=0)
                    ends.append((losses(result), all_tensors(trainer.model)))
                found.check(f"{name}, {label}: steps recorded", seen.count("recorded"), least=1)
                (a, before), (b, after) = ends
                differ = sum(not torch.equal(before[k], after[k]) for k in before)
                found.check(f"{name}, {label}: tensors that differ", differ, most=0)
                found.check(f"{name}, {label}: recorded against not, loss", gap(a, b), most=0)


# -- waits, frozen blocks, cuts --------------------------------------------------------------------


def waits(found: Found, how: How) -> None:
    """How often a training step waits for the device, by PyTorch's own debug mode."""
    batch, few, many = 16, 10, 18  # below 20 steps the loss is not looked at
    cases: dict[str, dict[str, Any]] = {
        **{f"augment {kind}": {"augment": kind} for kind in AUGMENTATIONS},
        "mixup and cutmix": {"mixup": 0.4, "cutmix": 1.0},
        "clipped": {"grad_clip": 1.0},
        "balanced weights": {"class_weights": "balanced"},
        "cached probe": {"prefix_cache_mb": 512},
    }
    images = images_of(many * batch, 32, how.device)
    for label, settings in cases.items():
        with found.guard(f"waits, {label}"):
            trainer = trainer_of(how.net("resnet18"), images, batch_size=batch, **settings)
            make = Recipe.linear_probe if "cached" in label else Recipe.full
            recipe = make(trainer.blocks, lr=1e-3)
            counts, places = [], {}
            for steps in (few, many):
                places = _waits(trainer, recipe, steps * batch, how)
                counts.append(sum(places.values()))
            if not how.on_gpu:
                continue  # nothing waits for a CPU
            each = (counts[1] - counts[0]) / (many - few)
            found.check(f"waits a step, {label}", each, most=0.1)
            if each > 0.1:
                found.figure(f"where it waits, {label}", places)


def _waits(trainer: Trainer, recipe: Recipe, n: int, how: How) -> dict[str, int]:
    """Waits of an epoch by the line that caused them."""
    trainer.fit(recipe, np.arange(n), seed=0, epochs=1)  # what is lazy
    places: dict[str, int] = {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if how.on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.fit(recipe, np.arange(n), seed=0, epochs=1)
        finally:
            if how.on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    for one in said:
        if "synchroniz" in str(one.message):
            place = f"{Path(one.filename).name}:{one.lineno}"
            places[place] = places.get(place, 0) + 1
    return places


def frozen(found: Found, how: How) -> None:
    """Frozen means frozen, to the bit; a cached prefix changes rounding alone."""
    n, size = how.pick((160, 64), (64, 32))
    train, val = np.arange(n), np.arange(n, n + 48)
    images = images_of(n + 48, size, how.device)
    for name in ("resnet18", "convnext_atto"):
        curves = []
        for megabytes in (512, 0):
            with found.guard(f"{name}: frozen, cache of {megabytes} MiB"):
                trainer = trainer_of(how.net(name), images, prefix_cache_mb=megabytes)
                before = {k: t.clone() for k, t in all_tensors(trainer.model).items()}
                half = len(trainer.blocks) // 2
                pattern = [0.0] * half + [1.0] * (len(trainer.blocks) - half)
                recipe = Recipe.from_multipliers(trainer.blocks, pattern, lr=1e-3)
                result = trainer.fit(recipe, train, val, seed=0)
                curves.append(losses(result))
                after = all_tensors(trainer.model)
                fixed, free = trainer.blocks[:half], trainer.blocks[half:]
                moved = sum(
                    not torch.equal(before[k], after[k])
                    for b in fixed
                    for k in (*b.parameter_names, *b.buffer_names)
                )
                found.check(f"{name}, {megabytes} MiB: frozen tensors that moved", moved, most=0)
                stayed = sum(
                    torch.equal(before[k], after[k]) for b in free for k in b.parameter_names
                )
                found.check(f"{name}, {megabytes} MiB: tensors that did not", stayed, most=0)
                if megabytes:
                    found.check(f"{name}: passes from the cache", result.cache_hits, least=1)
        if len(curves) == 2:
            found.check(f"{name}: cached against uncached, loss", gap(*curves), most=3e-2)


def cuts(found: Found, how: How) -> None:
    """Where networks are cut on the CPU they are cut on the device too."""
    # first those whose attention has biases that no gradient should reach but rounding
    names = ["resnet18", "tf_efficientnet_lite0", "crossvit_9_240", "xcit_nano_12_p16_224"]
    names += ["mvitv2_tiny", "vit_tiny_patch16_224", "convnext_atto"]
    names += ["swin_tiny_patch4_window7_224", "mobilenetv3_small_050", "regnety_002"]
    for name in how.pick(names, names[:2]):
        with found.guard(f"cuts of {name}"):
            accepted = {}
            for where in ("cpu", how.device):
                config = timm.get_pretrained_cfg(how.net(name), allow_unregistered=True)
                size = config.input_size[-1]
                small = name in ("resnet18", "tf_efficientnet_lite0", "convnext_atto")
                images = images_of(8, 64 if small else size, where)
                trainer = trainer_of(how.net(name), images)
                n = len(trainer.blocks)
                accepted[where] = {
                    k for k in (n // 2, n - 1) if trainer._prefixes._cut(k) is not None
                }
            lost = accepted["cpu"] - accepted[how.device]
            found.check(f"{name}: cuts that the device refuses", len(lost), most=0)


# -- determinism, memory, export -------------------------------------------------------------------


def deterministic(found: Found, how: How) -> None:
    """deterministic=True: the same bits in two processes, with nothing set in the environment."""
    nets = ("resnet18", "tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224")
    both = [forked(_digests, nets, how) for _ in range(2)]
    first, second = (value() for value in both)
    for name in nets:
        with found.guard(f"{name}: deterministic"):
            if "error" in first[name]:
                raise RuntimeError(first[name])
            differ = int(first[name] != second[name])
            found.check(f"{name}: processes that differ", differ, most=0)


def _digests(nets: tuple[str, ...], how: How) -> dict[str, str]:
    said = {}
    size, n = how.pick((64, 120), (32, 48))
    for name in nets:
        try:
            images = images_of(n, size, how.device)
            settings = {"deterministic": True, "augment": "crop-flip", "epochs": 4}
            trainer = trainer_of(how.net(name), images, batch_size=8, **settings)
            recipe, part = Recipe.full(trainer.blocks, lr=1e-3), n * 2 // 3
            result = trainer.fit(recipe, np.arange(part), np.arange(part, n), seed=0)
            sha = hashlib.sha256(repr(losses(result)).encode())
            for tensor in all_tensors(trainer.model).values():
                sha.update(tensor.detach().cpu().contiguous().reshape(-1).numpy().tobytes())
            said[name] = sha.hexdigest()
        except Exception as error:  # noqa: BLE001 - told of by the parent
            said[name] = f"error: {' '.join(str(error).split())[:200]}"
    return said


def memory(found: Found, how: How) -> None:
    """Peak memory; running out of it; pixels that stay in the host's memory."""
    size, batch = how.pick((128, 128), (32, 16))
    n = 4 * batch
    idx, images = np.arange(n), images_of(n, size, how.device)
    with found.guard("peak memory"):
        peaks = {}
        for label, make in (("full", Recipe.full), ("probe", Recipe.linear_probe)):
            trainer = trainer_of(how.net("resnet18"), images, batch_size=batch, epochs=1)
            peaks[label] = trainer.fit(make(trainer.blocks, lr=1e-3), idx, seed=0).peak_memory_mb
            del trainer
        found.figure("peak MiB of full fine-tuning and of a probe", peaks)
        if how.on_gpu:
            share = peaks["probe"] / peaks["full"]
            found.check("peak of a probe over that of full fine-tuning", share, most=0.6)
    if how.on_gpu:
        with found.guard("memory runs out"):
            total = torch.cuda.get_device_properties(0).total_memory / 2**20
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(0.6 * peaks["full"] / total)
            trainer = trainer_of(how.net("resnet18"), images, batch_size=batch, epochs=2)
            recipe = Recipe.full(trainer.blocks, lr=1e-3)
            first, second = (trainer.fit(recipe, idx, seed=0) for _ in range(2))
            torch.cuda.set_per_process_memory_fraction(1.0)
            found.check("images held after memory ran out", first.batch_size, most=batch - 1)
            same = int(first.batch_size != second.batch_size)
            found.check("a second run has to find that out again", same, most=0)
            found.figure("seconds of the two runs", [first.seconds, second.seconds])
    with found.guard("pixels on the host"):
        curves, seconds = [], []
        for resident in (True, False):
            served = images_of(n, size, how.device, resident=resident)
            trainer = trainer_of(how.net("resnet18"), served, deterministic=True)
            recipe = Recipe.full(trainer.blocks, lr=1e-3)
            curves.append(losses(trainer.fit(recipe, idx, seed=0)))
            seconds.append(epoch_seconds(trainer, recipe, n, how.device, 3))
        found.check("pixels on the host or on the device, loss", gap(*curves), most=1e-6)
        found.figure("epoch, pixels on the host over device", round(seconds[1] / seconds[0], 3))


def export(found: Found, how: How) -> None:
    """Trained on the device, used there and on a CPU."""
    images = images_of(96, 48, how.device)
    pictures = [p.transpose(1, 2, 0) for p in np.asarray(images.store.pixels)[:32]]
    name = how.net("resnet18")
    for amp, most in (("off", 1e-3), ("auto", 4e-2), *([("fp16", 4e-2)] if how.on_gpu else [])):
        with found.guard(f"export, {amp}"), tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(name, images, amp=amp, epochs=2)
            recipe = Recipe.full(trainer.blocks, lr=1e-3)
            trainer.fit(recipe, np.arange(96), seed=0)
            here = trainer.predict(np.arange(32))
            shown = Preprocessing(
                size=48, mean=MEAN, std=STD, batch_size=64, amp=amp, interpolation="bicubic"
            )
            export_model(
                Path(folder, "m"),
                model=trainer.model,
                model_name=name,
                classes=[str(c) for c in range(10)],
                preprocessing=shown,
                recipe=recipe,
            )
            for where in dict.fromkeys((how.device, "cpu")):
                loaded = load_exported(Path(folder, "m"), device=where)
                there = np.stack([p.probabilities for p in loaded.predict(pictures)])
                apart = float(np.abs(there - here).max())
                found.check(f"{amp}, exported and used on {where}: probability", apart, most=most)


def rivals(found: Found, how: How) -> None:
    """Every rival trains on the device."""
    n, size = how.pick((160, 64), (80, 32))
    images = images_of(n, size, how.device)
    trainer = trainer_of(how.net("resnet18"), images, epochs=2, prefix_cache_mb=512)
    train, val = np.arange(n * 7 // 10), np.arange(n * 7 // 10, n)
    for name, method in methods().items():
        with found.guard(f"{name} trains"):
            start = settled(how.device)
            setting = method.settings()[min(1, len(method.settings()) - 1)]
            result = method.run(trainer, train, val, setting=setting, seed=0)
            found.check(f"{name} diverges", int(result.diverged), most=0)
            found.figure(f"{name}, seconds", round(settled(how.device) - start, 3))


def suite(found: Found, how: How) -> None:
    """The tests of the engine, on the device, as many as there is time for."""
    if not (ROOT / "tests").is_dir():
        found.figure("pytest", "the tests are not here")
        return
    files = how.pick(("tests/data/test_device.py", "tests/finetune/test_trainer.py"), ())
    start = time.perf_counter()
    for file in (*files, "tests/finetune/test_graph.py"):
        asked = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        said = subprocess.run(
            [*asked, f"--device={how.device}", file, *how.pick((), ("-k", "bf16"))],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        last = (said.stdout.strip().splitlines() or [said.stderr.strip()[-200:]])[-1]
        found.check(f"pytest {file}: exit code ({last})", said.returncode, most=0)
    found.figure("seconds of pytest", round(time.perf_counter() - start, 1))
