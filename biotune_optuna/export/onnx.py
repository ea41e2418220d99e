"""A tuned model as one ONNX graph: from images to probabilities, members and mean inside."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from biotune_optuna.data.views import shown
from biotune_optuna.errors import BioTuneError, ModelError
from biotune_optuna.models.states import one_line

if TYPE_CHECKING:
    from biotune_optuna.export.predict import Predictor


PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE: Final = 1e-4
"""Largest difference of a probability between graph and network."""

_CHECKED_IMAGES = 3


def check_packages() -> None:
    """Refuse an export for which a package is missing.

    Raises:
        ModelError: If one is.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"an ONNX graph needs {' and '.join(missing)}: pip install 'biotune-optuna[onnx]'"
        )


def export_onnx(predictor: Predictor, path: str | Path) -> Path:
    """Write a model as an ONNX graph, and compare it with the model.

    Its input is ``images``, (n, H, W, 3) uint8, RGB, of the size that the network was trained with;
    its output ``probabilities``, (n, C) float32. Normalisation, all members and views, their mean
    and the temperature are inside; resizing and cropping are not. What all members have in common
    is there once. Nothing is written unless ONNX Runtime gives the model's probabilities, within
    1e-4.

    Args:
        predictor: The model, on the CPU.
        path: The file; an existing one is replaced.

    Returns:
        The file.

    Raises:
        ModelError: If a package is missing, the network has no ONNX graph, or the graph's
            probabilities are others.
        BioTuneError: If the file cannot be written.
    """
    check_packages()
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    side = predictor.preprocessing.size
    images = np.random.default_rng(0).integers(
        0, 256, (_CHECKED_IMAGES, side, side, 3), dtype=np.uint8
    )
    try:
        _write(_Graph(predictor).eval(), torch.from_numpy(images), scratch)
        _check(predictor, scratch, images)
        scratch.replace(target)
    except OSError as error:
        raise BioTuneError(
            f"cannot write {str(target)!r}: {error.strerror or error}; give another folder"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
    return target


class _Graph(nn.Module):
    """What the graph computes."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.networks = nn.ModuleList([predictor.model, *predictor.members])
        settings, trusted = predictor.preprocessing, predictor.calibration
        shares = torch.tensor(predictor.weights or [1.0] * len(self.networks))
        self.shares: torch.Tensor
        self.register_buffer("shares", (shares / shares.sum()).reshape(-1, 1, 1))
        self.views = ("", *settings.views)
        self.temperature = 1.0 if trusted is None else trusted.temperature
        self.mean: torch.Tensor
        self.std: torch.Tensor
        for name, values in (("mean", settings.mean), ("std", settings.std)):
            self.register_buffer(name, 255 * torch.tensor(values).reshape(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities (n, C) of images (n, H, W, 3)."""
        pixels = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        mean = torch.stack([self._member_mean(shown(pixels, view)) for view in self.views]).mean(0)
        return (mean.clamp_min(1e-12).log() / self.temperature).softmax(dim=1)

    def _member_mean(self, pixels: torch.Tensor) -> torch.Tensor:
        members = [network(pixels).softmax(dim=1) for network in self.networks]
        return (torch.stack(members) * self.shares).sum(dim=0)


def _write(graph: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Trace the graph and write it to a file.

    Raises:
        ModelError: If it cannot be traced.
    """
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("n")},),
                input_names=["images"],
                output_names=["probabilities"],
                verbose=False,
            )
    except Exception as error:
        raise ModelError(
            f"this network has no ONNX graph ({one_line(error)}); leave out --onnx"
        ) from error
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    assert program is not None
    program.save(path, external_data=False)


def _check(predictor: Predictor, path: Path, images: NDArray[np.uint8]) -> None:
    """Compare the graph's probabilities with the model's.

    Raises:
        ModelError: If they are others.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images})
    expected = np.stack(
        [row.probabilities for row in predictor.predict_pixels(images.transpose(0, 3, 1, 2))]
    )
    apart = float(np.abs(found - expected).max())
    if not apart <= TOLERANCE:
        raise ModelError(
            f"the ONNX graph's probabilities are {apart:.2g} from the model's; leave out --onnx"
        )
