"""The parts of the check on a GPU that ask: is it fast? Ratios, taken in turns."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _engine_common import interleaved
from _gpu_common import (
    MEAN,
    STD,
    epoch_seconds,
    forked,
    images_of,
    model_of,
    ratio,
    settled,
    timed,
    trainer_of,
)

from biotune_optuna.data.augment import AUGMENTATIONS
from biotune_optuna.finetune import loop
from biotune_optuna.finetune.results import StopTraining
from biotune_optuna.finetune.sharing import SHARING
from biotune_optuna.models.states import out_of_place
from biotune_optuna.recipe import Recipe

if TYPE_CHECKING:
    from _gpu_common import Found, How

    from biotune_optuna.data.loaders import DeviceImages


class Bare:
    """What one writes by hand: pixels on the device, channels last, fused AdamW, autocast."""

    def __init__(self, name: str, images: DeviceImages, batch: int, *, amp: bool = True) -> None:
        self.device = images.device.type
        self.model = model_of(name, images.size).to(self.device).train()
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        everything = torch.arange(len(images))
        self.pixels = images.raw(everything).permute(0, 2, 3, 1).contiguous()
        self.labels = images.labels(everything)
        self.mean = torch.tensor(MEAN, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(STD, device=self.device).view(1, 3, 1, 1)
        self.batch, self.amp = batch, amp
        self.updates = 0
        self.scheduler: Any = None

    def step(self, idx: torch.Tensor) -> torch.Tensor:
        """One step."""
        images = self.pixels[idx].permute(0, 3, 1, 2).float().div_(255)
        images = images.sub_(self.mean).div_(self.std)
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.amp):
            logits = self.model(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), self.labels[idx])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def order(self) -> tuple[torch.Tensor, ...]:
        """The batches of an epoch."""
        n = len(self.pixels) // self.batch * self.batch
        return torch.randperm(len(self.pixels), device=self.device)[:n].split(self.batch)

    def epoch(self) -> None:
        """One epoch."""
        for idx in self.order():
            self.step(idx)

    def timm_epoch(self) -> None:
        """The inner loop of timm's train.py: a meter, and the scheduler moved at each step."""
        from timm.scheduler import create_scheduler_v2
        from timm.utils import AverageMeter

        if self.scheduler is None:
            options: dict[str, Any] = {"step_on_epochs": False, "updates_per_epoch": 20}
            self.scheduler, _ = create_scheduler_v2(self.optimizer, num_epochs=1000, **options)
        meter, loss = AverageMeter(), torch.zeros(())
        for idx in self.order():
            loss = self.step(idx)
            self.updates += 1
            self.scheduler.step_update(self.updates)
        meter.update(loss.item(), self.batch)  # it logs every 50 batches


def small_images(found: Found, how: How) -> None:
    """Small images: steps one by one and recorded, bf16 and float32, a rate for each block."""
    name, size, n = how.net("tf_efficientnet_lite0"), *how.pick((64, 640), (32, 64))
    torch.backends.cudnn.benchmark = how.on_gpu  # for the bare loops, as the engine does
    for batch in how.pick((32, 128), (8,)):
        images = images_of(n, size, how.device)
        candidates = {}
        for amp in ("bf16", "off"):
            for graph in ("off", "auto"):
                trainer = trainer_of(name, images, amp=amp, batch_size=batch, cuda_graph=graph)
                recipe = Recipe.full(trainer.blocks, lr=1e-3)
                # long enough for a recording to pay
                epochs = 4 if graph == "off" else 10
                kind = f"{amp}, {'recorded' if graph == 'auto' else 'one by one'}"
                candidates[kind] = partial(epoch_seconds, trainer, recipe, n, how.device, epochs)
            bare = Bare(name, images, batch, amp=amp == "bf16")
            candidates[f"{amp}, bare"] = partial(timed, bare.epoch, how.device)
        blocks = trainer.blocks
        rates = [0.3 + 0.05 * i for i in range(len(blocks))]
        each = trainer_of(name, images, amp="bf16", batch_size=batch, cuda_graph="off")
        many = Recipe.from_multipliers(blocks, rates, lr=1e-3, weight_decay=0.01)
        candidates["bf16, a rate a block"] = partial(epoch_seconds, each, many, n, how.device)
        copied = trainer_of(name, images, amp="bf16", batch_size=batch, cuda_graph="off")
        for module in copied.model.modules():
            if hasattr(module, "inplace"):
                module.inplace = True
        plain = Recipe.full(blocks, lr=1e-3)
        candidates["bf16, in place"] = partial(epoch_seconds, copied, plain, n, how.device)
        seconds = interleaved(candidates, how.pick(3, 1))
        label = f"{size} px, batches of {batch}"
        for kind, values in seconds.items():
            speed = round(n / statistics.median(values), 1)
            found.figure(f"{label}: {kind}, images/s", speed)
        graph = ratio(seconds["bf16, one by one"], seconds["bf16, recorded"])
        found.figure(f"{label}: recorded over one by one", graph)
        if how.on_gpu and batch == 32:
            found.check(f"{label}: recorded over one by one", graph[0], least=3)
        bare_over = ratio(seconds["bf16, bare"], seconds["bf16, one by one"])
        found.figure(f"{label}: engine over bare loop", bare_over)
        types = ratio(seconds["bf16, one by one"], seconds["off, one by one"])
        found.figure(f"{label}: float32 over bf16", types)
        types = ratio(seconds["bf16, recorded"], seconds["off, recorded"])
        found.figure(f"{label}: float32 over bf16, recorded", types)
        rated = ratio(seconds["bf16, one by one"], seconds["bf16, a rate a block"])
        found.figure(f"{label}: a rate a block over one rate", rated)
        placed = ratio(seconds["bf16, in place"], seconds["bf16, one by one"])
        found.figure(f"{label}: out-of-place activations over in-place ones", placed)
        with found.guard("profile"):
            _profile(found, how, Bare(name, images, batch), label)


def _profile(found: Found, how: How, bare: Bare, label: str) -> None:
    """How many kernels a step has, and the share of the time in which the GPU computes."""
    if not how.on_gpu:
        return
    out_of_place(bare.model)
    bare.epoch()
    start = settled(how.device)
    bare.epoch()
    wall = settled(how.device) - start
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        bare.epoch()
        settled(how.device)
    kernels = [e for e in seen.events() if e.device_type.name == "CUDA"]
    busy = sum(e.device_time_total for e in kernels) / 1e6
    found.figure(f"{label}: kernels a step", round(len(kernels) / len(bare.order()), 1))
    found.figure(f"{label}: share of time the GPU computes", round(busy / wall, 3))


def throughput(found: Found, how: How) -> None:
    """Full fine-tuning of ResNet-50 against a bare loop and against timm's own, in bf16."""
    name, size = how.net("resnet50"), how.pick(224, 32)
    torch.backends.cudnn.benchmark = how.on_gpu
    for batch in how.pick((32, 64, 128), (8,)):
        with found.guard(f"{size} px, batches of {batch}"):
            n = how.pick(12, 6) * batch
            images = images_of(n, size, how.device)
            both = {
                graph: trainer_of(
                    name, images, amp="bf16", batch_size=batch, cuda_graph=graph, epochs=40
                )
                for graph in ("off", "auto")
            }
            recipe = Recipe.full(both["off"].blocks, lr=1e-4)
            bare, theirs = (Bare(name, images, batch) for _ in range(2))
            seconds = interleaved(
                {
                    "engine": partial(epoch_seconds, both["off"], recipe, n, how.device, 3),
                    "recorded": partial(epoch_seconds, both["auto"], recipe, n, how.device, 6),
                    "bare": partial(timed, bare.epoch, how.device, 2),
                    "timm": partial(timed, theirs.timm_epoch, how.device, 2),
                },
                how.pick(3, 1),
            )
            label = f"{size} px, batches of {batch}"
            for kind, values in seconds.items():
                speed = round(n / statistics.median(values), 1)
                found.figure(f"{label}: {kind}, images/s", speed)
            over = ratio(seconds["bare"], seconds["engine"])
            found.figure(f"{label}: engine over bare loop", over)
            theirs_over = ratio(seconds["timm"], seconds["engine"])
            found.figure(f"{label}: engine over timm's loop", theirs_over)
            graph = ratio(seconds["engine"], seconds["recorded"])
            found.figure(f"{label}: recorded over one by one", graph)
            if how.on_gpu:
                found.check(f"{label}: engine over bare loop", over[0], least=0.95)
    with found.guard("deterministic kernels"):
        batch, n = how.pick((64, 640), (8, 32))
        images = images_of(n, size, how.device)
        kinds = {
            str(kind): trainer_of(name, images, batch_size=batch, deterministic=kind)
            for kind in (False, True)
        }
        seconds = interleaved(
            {k: partial(epoch_seconds, t, recipe, n, how.device, 2) for k, t in kinds.items()},
            how.pick(2, 1),
        )
        found.figure("time of deterministic kernels", ratio(seconds["True"], seconds["False"]))


def workers(found: Found, how: How) -> None:
    """Images a second of K processes on one device together, without and with NVIDIA's MPS."""
    one = _together(1, how)
    found.figure("1 worker: images/s", round(one, 1))
    for k in how.pick((2, 4, 8), (2,)):
        with found.guard(f"{k} workers"):
            share = round(_together(k, how) / one, 2)
            found.figure(f"{k} workers over one", share)
            if how.on_gpu and k == 4:
                found.check("4 workers over one", share, least=1.8)
    with found.guard("workers whose steps are made one by one"):
        k = how.pick(4, 2)
        each = [_together(n, how, graph="off") for n in (1, k)]
        found.figure("1 worker, one by one over recorded", round(each[0] / one, 2))
        found.figure(f"{k} workers over one, steps one by one", round(each[1] / each[0], 2))
    control = shutil.which("nvidia-cuda-mps-control")
    if not how.on_gpu or control is None:
        found.figure("MPS", "not here")
        return
    with tempfile.TemporaryDirectory() as folder:
        own = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        environment = {**os.environ, **own}
        subprocess.run([control, "-d"], env=environment, check=True, timeout=10)
        try:
            for k in (4, 8):
                with found.guard(f"{k} workers under MPS"):
                    share = round(_together(k, how, own) / one, 2)
                    found.figure(f"{k} workers over one, under MPS", share)
        finally:
            said = {"input": "quit\n", "text": True, "timeout": 10}
            subprocess.run([control], env=environment, check=False, **said)


def _together(
    k: int, how: How, environment: dict[str, str] | None = None, *, graph: str = "auto"
) -> float:
    """Images a second of k processes that train in the same seconds."""
    with tempfile.TemporaryDirectory() as folder:
        started = [
            forked(_train_for_a_while, folder, i, k, how, environment or {}, graph)
            for i in range(k)
        ]
        return sum(value() for value in started)


def _train_for_a_while(  # noqa: PLR0917 - for a process
    folder: str, i: int, k: int, how: How, environment: dict[str, str], graph: str
) -> float:
    os.environ.update(environment)  # read when CUDA starts
    os.environ[SHARING] = str(k)
    torch.set_num_threads(1)
    (size, n), seconds = how.pick((64, 320), (32, 64)), how.pick(3.0, 0.5)
    images = images_of(n, size, how.device)
    name = how.net("tf_efficientnet_lite0")
    trainer = trainer_of(name, images, epochs=10_000, cuda_graph=graph)
    recipe, idx = Recipe.full(trainer.blocks, lr=1e-3), np.arange(n)
    trainer.fit(recipe, idx, seed=0, epochs=2)
    marks: list[float] = []

    def on_epoch(_record: object) -> None:
        marks.append(settled(how.device))
        if len(marks) == 2:  # recorded by now; wait for the others
            Path(folder, f"ready{i}").touch()
            until = time.monotonic() + 60
            while len(list(Path(folder).glob("ready*"))) < k and time.monotonic() < until:
                time.sleep(0.01)
            marks[-1] = time.perf_counter()
        if len(marks) > 2 and marks[-1] - marks[1] > seconds:
            raise StopTraining

    trainer.fit(recipe, idx, seed=0, on_epoch=on_epoch)
    return n * (len(marks) - 2) / (marks[-1] - marks[1])


def prefix(found: Found, how: How) -> None:
    """An epoch behind a cached prefix against the floor, and against none."""
    from prefix import layers_by_block, turns

    torch.backends.cudnn.benchmark = how.on_gpu
    cases = (("resnet50", 224, (3, 4, 5)), ("tf_efficientnet_lite0", 64, (4, 7, 8)))
    for name, size, lengths in how.pick(cases, (("resnet18", 32, (3, 5)),)):
        with found.guard(f"prefix of {name}"):
            n = how.pick(256, 32)
            images = images_of(n, size, how.device)
            blocks = len(layers_by_block(name, model_of(name, size)))
            seconds = interleaved(turns(name, images, 32, list(lengths)), how.pick(3, 1))
            for length in lengths:
                label = f"{name}, {size} px, {length} of {blocks} frozen"
                cached = seconds[f"cached {length}"]
                floor = ratio(cached, seconds[f"floor {length}"])
                found.figure(f"{label}: cached over floor", floor)
                gain = ratio(seconds[f"uncached {length}"], cached)
                found.figure(f"{label}: gain of the cache", gain)


def study(found: Found, how: How) -> None:
    """A whole search: seconds a trial on the device and on one core; workers that share it."""
    from biotune_optuna.cli.tune import demo_spec
    from biotune_optuna.study.study import create_study

    trials = how.pick({how.device: 12, "cpu": 3}, {how.device: 2})
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BIOTUNE_CACHE"] = folder
        urls = {where: f"sqlite:///{folder}/{where}.db" for where in trials}
        each = {}
        for where, count in trials.items():
            with found.guard(f"study on {where}"):
                torch.set_num_threads(1)
                tuning = create_study(demo_spec(), storage=urls[where], name="d", device=where)
                start = time.perf_counter()
                tuning.search(count)
                wall = time.perf_counter() - start
                ended = [t for t in tuning.study.trials if t.value is not None]
                trained = sum(t.user_attrs["seconds"] for t in ended)
                each[where] = wall / count
                found.figure(f"{where}: seconds a trial", round(wall / count, 3))
                found.figure(f"{where}: share of training", round(trained / wall, 3))
                found.figure(f"{where}: best of {count}", max(t.value for t in ended))
        if how.on_gpu and len(each) == 2:
            times = round(each["cpu"] / each[how.device], 2)
            found.figure("demo study: CPU core over device, a trial", times)
            found.check("demo study: CPU core over device, a trial", times, least=10)
        with found.guard("launch"):
            more, k = how.pick((24, 4), (1, 1))
            total = trials[how.device] + more
            start = time.perf_counter()
            asked = [sys.executable, "-m", "biotune_optuna", "launch", "--study", "d"]
            asked += ["--storage", urls[how.device], "--devices", how.device]
            asked += ["--per-device", str(k), "--trials", str(total)]
            said = subprocess.run(asked, capture_output=True, text=True, check=False)
            found.check(f"launch of {k} workers on one device: code", said.returncode, most=0)
            took = round(time.perf_counter() - start, 1)
            found.figure(f"launch of {k} workers: seconds for {more} trials, with starting", took)


def cudnn(found: Found, how: How) -> None:
    """What trying convolutions out costs at first and gives afterwards."""
    cases = (("resnet50", 224, 32), ("tf_efficientnet_lite0", 64, 32))
    for name, size, batch in how.pick(cases, (("resnet18", 32, 8),)):
        for tried in (True, False):
            with found.guard(f"cuDNN, {name}, {tried}"):
                said = forked(_epochs, how, name, size, batch, tried)()
                kind = "tried out" if tried else "not tried out"
                found.figure(f"{name}, {size} px, {kind}: first epoch, later ones, s", said)


def _epochs(how: How, name: str, size: int, batch: int, tried: bool) -> list[float]:
    from biotune_optuna.finetune.device import tried_out

    if not tried:
        loop.tried_out = lambda **_on: tried_out(on=False)
    n = how.pick(10, 3) * batch + 3
    images = images_of(n + 30, size, how.device)
    trainer = trainer_of(how.net(name), images, batch_size=batch, epochs=4)
    recipe = Recipe.full(trainer.blocks, lr=1e-4)
    result = trainer.fit(recipe, np.arange(n), np.arange(n, n + 30), seed=0)
    seconds = [record.seconds for record in result.epochs]
    return [round(seconds[0], 4), round(statistics.median(seconds[1:]), 4)]


def augmentation(found: Found, how: How) -> None:
    """What augmentation costs, as a ratio to none."""
    name, size, batch, n = (
        *how.pick(("resnet50", 224), ("resnet18", 32)),
        *how.pick((64, 640), (16, 64)),
    )
    images = images_of(n, size, how.device)
    trainers = {
        kind: trainer_of(how.net(name), images, augment=kind, batch_size=batch)
        for kind in AUGMENTATIONS
    }
    recipe = Recipe.full(trainers["none"].blocks, lr=1e-4)
    seconds = interleaved(
        {k: partial(epoch_seconds, t, recipe, n, how.device, 2) for k, t in trainers.items()},
        how.pick(2, 1),
    )
    for kind in AUGMENTATIONS[1:]:
        found.figure(f"time with {kind} over none", ratio(seconds[kind], seconds["none"]))
