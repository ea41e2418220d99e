"""A plain recipe of timm's train.py: RandAugment, random erasing, label smoothing, EMA, cosine.

python timm_recipe.py FOLDER
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from _peer import Images, Predict, Setting, Task, main, spend
from PIL import Image
from timm.data import create_transform
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 32
SETTINGS = [
    {"epochs": epochs, "lr": lr, "crop": crop}
    for epochs, lr, crop in (
        *((16, 1e-3, 0.5), (16, 1e-3, 0.08), (16, 3e-3, 0.5), (32, 1e-3, 0.5), (16, 3e-4, 0.5)),
        *((32, 3e-3, 0.5), (32, 1e-3, 0.08), (8, 3e-3, 0.5), (64, 1e-3, 0.5), (64, 3e-4, 0.5)),
    )
]
"""The crops begin at this share of an image; 0.08 is train.py's own, and hard on small images."""


def run(task: Task) -> tuple[list[Predict], Setting, float, int]:
    """Spend the time of a task."""
    common = {
        "input_size": (3, task.size, task.size),
        **{name: getattr(task, name) for name in ("mean", "std", "interpolation")},
    }
    policy = {"auto_augment": "rand-m9-mstd0.5-mmax9-inc1", "re_prob": 0.25}
    plain = create_transform(**common, crop_pct=task.crop_pct)

    def batches(files: Sequence[str], transform: Any, order: Sequence[int]) -> Iterator[Any]:
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            yield chosen, torch.stack([transform(Image.open(files[i])) for i in chosen])

    def train(images: Images, _shown: Images, setting: Setting, seed: int) -> Predict:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - RandAugment and random erasing draw from these two
        files, labels = images
        augment = create_transform(
            **common, **policy, is_training=True, scale=(setting["crop"], 1.0)
        )
        model = timm.create_model(
            task.model,
            pretrained=True,
            pretrained_cfg_overlay={"file": task.weights},
            num_classes=len(task.classes),
            drop_path_rate=0.1,
        )
        optimizer = create_optimizer_v2(model, opt="adamw", lr=setting["lr"], weight_decay=0.05)
        steps = -(-len(files) // BATCH)
        schedule = CosineLRScheduler(
            optimizer,
            t_initial=setting["epochs"] * steps,
            warmup_t=steps,
            warmup_lr_init=setting["lr"] / 100,
            t_in_epochs=False,
        )
        ema = ModelEmaV3(model, decay=0.99, use_warmup=True)
        loss = LabelSmoothingCrossEntropy(0.1)
        model.train()
        step = 0
        for _ in range(setting["epochs"]):
            for chosen, pixels in batches(files, augment, torch.randperm(len(files)).tolist()):
                schedule.step_update(step)
                optimizer.zero_grad()
                loss(model(pixels), torch.as_tensor(labels[chosen])).backward()
                optimizer.step()
                step += 1
                ema.update(model, step)
        best = ema.module.eval()

        @torch.no_grad()
        def predict(of: Sequence[str]) -> NDArray[np.floating]:
            found = [best(x).softmax(1) for _, x in batches(of, plain, range(len(of)))]
            return torch.cat(found).numpy()

        return predict

    return spend(task, SETTINGS, train)


if __name__ == "__main__":
    main("timm-recipe", run)
