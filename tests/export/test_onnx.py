"""The model as an ONNX graph."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch

from biotune_optuna.errors import ModelError
from biotune_optuna.export import Predictor, onnx
from biotune_optuna.finetune.calibration import Calibration
from tests.kit.export import CLASSES, NAME, SIZE

installed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in onnx.PACKAGES),
    reason="the extra onnx is not installed",
)


def predictor(made, views=(), **options):
    seen = dataclasses.replace(made["preprocessing"], views=views)
    facts = {"preprocessing": seen, "recipe": made["recipe"]}
    return Predictor(made["model"], name=NAME, classes=CLASSES, device="cpu", **facts, **options)


@installed
@pytest.mark.parametrize("views", [(), ("mirror", "zoom")])
def test_the_graph_gives_the_model_s_probabilities(members, tmp_path, views):
    import onnx as library
    import onnxruntime

    trusted = Calibration(1.7, (), ())
    options = {"members": members["members"], "weights": (2, 1, 1)}
    whole = predictor(members, views, calibration=trusted, **options)
    file = onnx.export_onnx(whole, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    shape = (5, SIZE, SIZE, 3)  # another number of images than it was made with
    images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    (found,) = session.run(["probabilities"], {"images": images})
    expected = whole.predict_pixels(images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(found, np.stack([p.probabilities for p in expected]), atol=1e-4)
    counted = sum(node.op_type == "Conv" for node in library.load(file).graph.node)
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in members["model"].modules())
    assert counted < 3 * (1 + len(views)) * convolutions, (
        "what the members have in common is there once"
    )


@installed
def test_a_graph_that_says_something_else_is_not_kept(members, tmp_path, monkeypatch):
    write = onnx._write

    def another(graph, *rest):
        graph.temperature = 3.0
        write(graph, *rest)

    monkeypatch.setattr(onnx, "_write", another)
    with pytest.raises(ModelError, match="from the model's"):
        onnx.export_onnx(predictor(members), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(members, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'biotune-optuna\[onnx\]'") as caught:
        onnx.export_onnx(predictor(members), tmp_path / "model.onnx")
    assert "onnx and onnxscript and onnxruntime" in str(caught.value)
