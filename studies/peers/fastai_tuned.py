"""fastai as its tutorials use it: `vision_learner`, `lr_find`, `fine_tune`, default augmentation.

python fastai_tuned.py FOLDER
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from _peer import Images, Predict, Setting, Task, main, spend
from fastai.vision.all import (
    ImageDataLoaders,
    Resize,
    aug_transforms,
    minimum,
    set_seed,
    valley,
    vision_learner,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RULES = {"valley": valley, "minimum": minimum}
SETTINGS = [
    {"epochs": epochs, "rule": rule}
    for epochs, rule in (
        *((10, "valley"), (20, "valley"), (5, "valley"), (10, "minimum"), (20, "minimum")),
        *((40, "valley"), (5, "minimum"), (40, "minimum"), (80, "valley")),
    )
]


def run(task: Task) -> tuple[list[Predict], Setting, float, int]:
    """Spend the time of a task."""

    def frame(images: Images, *, shown: bool) -> pd.DataFrame:
        files, labels = images
        return pd.DataFrame({"file": files, "label": labels, "shown": shown})

    def train(images: Images, shown: Images, setting: Setting, seed: int) -> Predict:
        set_seed(seed, reproducible=True)
        table = pd.concat([frame(images, shown=False), frame(shown, shown=True)])
        loaders = ImageDataLoaders.from_df(
            table,
            path="/",
            valid_col="shown",
            item_tfms=Resize(task.size),
            batch_tfms=aug_transforms(),
            num_workers=0,
            bs=min(64, len(images[0])),  # the default, but for fewer images than that
        )
        learner = vision_learner(
            loaders, task.model, pretrained_cfg_overlay={"file": task.weights}, path=task.folder
        )
        with learner.no_bar(), learner.no_logging():
            rule = RULES[setting["rule"]]
            (rate,) = learner.lr_find(suggest_funcs=(rule,), show_plot=False)
            learner.fine_tune(setting["epochs"], base_lr=rate)
        columns = [int(label) for label in learner.dls.vocab]

        def predict(of: Sequence[str]) -> NDArray[np.floating]:
            with learner.no_bar(), learner.no_logging():
                found = learner.get_preds(dl=learner.dls.test_dl(list(of)))[0].numpy()
            probs = found.copy()
            probs[:, columns] = found
            return probs

        return predict

    return spend(task, SETTINGS, train)


if __name__ == "__main__":
    main("fastai", run)
