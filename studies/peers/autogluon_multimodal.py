"""AutoGluon MultiModal with the same network; it uses the validation images as it likes.

    python autogluon_multimodal.py FOLDER

Each member has an equal share of the time, and a seed of its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import timm
import torch
from _peer import Images, Predict, Setting, Task, macro_accuracy, main
from autogluon.multimodal import MultiModalPredictor
from safetensors.torch import load_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def run(task: Task) -> tuple[list[Predict], Setting, float, int]:
    """Spend the time of a task."""
    network = write_network(task)

    def frame(images: Images) -> pd.DataFrame:
        return pd.DataFrame({"image": images[0], "label": images[1]})

    def train(share: float, seed: int) -> Predict:
        path = task.folder / "autogluon" / str(seed)
        shutil.rmtree(path, ignore_errors=True)
        predictor = MultiModalPredictor(
            label="label", problem_type="multiclass", path=str(path), verbosity=1
        )
        predictor.fit(
            frame(task.part("train")),
            tuning_data=frame(task.part("val")),
            presets="medium_quality",
            time_limit=share,
            seed=seed,
            hyperparameters={
                "model.names": ["timm_image"],
                "model.timm_image.checkpoint_name": str(network),
                "env.num_workers": 0,
                "env.num_workers_inference": 0,
                "env.num_gpus": 0,
            },
        )

        def predict(of: Sequence[str]) -> NDArray[np.floating]:
            found = predictor.predict_proba(pd.DataFrame({"image": list(of)}))
            return found[sorted(found.columns)].to_numpy()

        return predict

    share = task.seconds / task.members
    members = [train(share, task.seed + k) for k in range(task.members)]
    files, labels = task.part("val")
    return members, {"presets": "medium_quality"}, macro_accuracy(labels, members[0](files)), 1


def write_network(task: Task) -> Path:
    """Write the weights as AutoGluon reads its own networks: a folder with a configuration."""
    folder = task.folder / "network"
    folder.mkdir(exist_ok=True)
    torch.save(load_file(task.weights), folder / "pytorch_model.bin")
    model = timm.create_model(task.model, num_classes=0)
    own = {**model.default_cfg, "input_size": (3, task.size, task.size)}
    own |= {name: getattr(task, name) for name in ("mean", "std", "crop_pct", "interpolation")}
    found = {"architecture": task.model, "num_features": model.num_features, "pretrained_cfg": own}
    (folder / "config.json").write_text(json.dumps(found, default=str))
    return folder


if __name__ == "__main__":
    main("autogluon", run)
