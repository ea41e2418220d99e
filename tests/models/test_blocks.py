"""Blocks of well-known models, of models with traps, and of plain modules."""

import re

import pytest
import timm
import torch
from torch import nn

from biotune_optuna.errors import ModelError
from biotune_optuna.models.blocks import classifier_paths, model_blocks, output_layers


def build(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **{"num_classes": 10, **kwargs})


def assert_partition(model, blocks):
    parameters = [name for block in blocks for name in block.parameter_names]
    buffers = [name for block in blocks for name in block.buffer_names]
    assert sorted(parameters) == sorted(name for name, _ in model.named_parameters())
    assert sorted(buffers) == sorted(name for name, _ in model.named_buffers())
    assert len({block.name for block in blocks}) == len(blocks)
    sizes = {name: tensor.numel() for name, tensor in model.named_parameters()}
    for block in blocks:
        assert block.n_parameters == sum(sizes[name] for name in block.parameter_names) > 0
    owner = {}
    for block in blocks:
        for tensor in block.parameter_names + block.buffer_names:
            module = tensor.rpartition(".")[0]
            assert not module or owner.setdefault(module, block.name) == block.name


INCEPTION_CELLS = ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"]

PAPER = {
    "resnet50": ["stem", "layer1", "layer2", "layer3", "layer4", "head"],
    "densenet121": [
        "stem",
        "features.denseblock1",
        "features.transition1",
        "features.denseblock2",
        "features.transition2",
        "features.denseblock3",
        "features.transition3",
        "features.denseblock4",
        "head",
    ],
    "vgg19": [
        "stem",
        "features.5-7",
        "features.10-16",
        "features.19-25",
        "features.28-34",
        "head",
    ],
    "inception_v3": [
        "stem",
        "Conv2d_3b_1x1-Conv2d_4a_3x3",
        *(f"Mixed_{cell}" for cell in INCEPTION_CELLS),
        "head",
    ],
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_models_have_the_papers_blocks(name):
    model = build(name)
    blocks = model_blocks(model)
    assert [block.name for block in blocks] == PAPER[name]
    assert_partition(model, blocks)


def test_resnet_tensors_are_where_the_paper_puts_them():
    blocks = model_blocks(build("resnet50"))
    assert {name.split(".")[0] for name in blocks[0].parameter_names} == {"conv1", "bn1"}
    assert blocks[-1].parameter_names == ("fc.weight", "fc.bias")
    assert blocks[1].buffer_names[:2] == (
        "layer1.0.bn1.running_mean",
        "layer1.0.bn1.running_var",
    )


def test_vgg_keeps_all_three_classifier_layers_in_the_head():
    head = model_blocks(build("vgg19"))[-1]
    assert [n for n in head.parameter_names if n.endswith("weight")] == [
        "pre_logits.fc1.weight",
        "pre_logits.fc2.weight",
        "head.fc.weight",
    ]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vgg19_bn", 6),
        ("vit_small_patch16_224", 14),
        ("convnext_tiny", 6),
        ("swin_tiny_patch4_window7_224", 6),
        ("efficientnet_b0", 9),
        ("tf_efficientnet_lite0", 9),
        ("mobilenetv3_large_100", 10),
        ("vit_large_patch14_dinov2", 16),  # 24 layers merged
        ("poolformer_s12", 6),  # no group_matcher
        ("rdnet_tiny", 9),  # group_matcher refuses coarse=True
        ("coat_tiny", 16),  # parameters shared between modules
        ("levit_128", 5),  # configuration and get_classifier() disagree
        ("deit_tiny_distilled_patch16_224", 14),  # two heads
        ("efficientformer_l1", 6),
    ],
)
def test_partition_of_every_kind_of_model(name, count):
    model = build(name)
    blocks = model_blocks(model)
    assert_partition(model, blocks)
    assert len(blocks) == count
    assert (blocks[0].name, blocks[-1].name) == ("stem", "head")


@pytest.mark.parametrize("name", ["resnet50", "vit_large_patch14_dinov2", "vgg19", "coat_tiny"])
@pytest.mark.parametrize("max_blocks", [3, 4, 7, 12])
def test_coarser_lists_keep_stem_and_head(name, max_blocks):
    model = build(name)
    whole, coarse = model_blocks(model), model_blocks(model, max_blocks)
    assert_partition(model, coarse)
    assert len(coarse) == min(max_blocks, len(whole))
    assert coarse[0] == whole[0]
    assert coarse[-1] == whole[-1]


def test_merged_chunks_differ_by_one_layer_at_most():
    blocks = model_blocks(build("vit_large_patch14_dinov2"))
    layers = [
        len({n.split(".")[1] for n in block.parameter_names if n.startswith("blocks.")})
        for block in blocks[1:-1]
    ]
    assert sum(layers) == 24
    assert set(layers) == {1, 2}


def test_finer_lists_reach_single_residual_blocks():
    model = build("resnet50")
    fine = model_blocks(model, 64)
    assert_partition(model, fine)
    assert len(fine) == 18  # stem, 3 + 4 + 6 + 3 residual blocks, head
    assert [block.name for block in fine[1:4]] == ["layer1.0", "layer1.1", "layer1.2"]
    assert len(model_blocks(model, 17)) == 17


@pytest.mark.parametrize("max_blocks", [16, 64])
def test_a_matcher_that_hardly_divides_is_passed_over(monkeypatch, max_blocks):
    model = build("levit_128")
    monkeypatch.setattr(model, "group_matcher", lambda coarse=False: {"stem": r"^stem|stages"})
    blocks = model_blocks(model, max_blocks)
    assert_partition(model, blocks)
    assert [block.name for block in blocks] == ["stem", "stages.0", "stages.1", "stages.2", "head"]


def test_max_blocks_too_small_is_refused():
    with pytest.raises(ModelError, match="max_blocks=2 is too small"):
        model_blocks(build("resnet18"), 2)


def test_models_without_a_head_are_refused():
    with pytest.raises(ModelError, match=r"no classifier.*num_classes"):
        model_blocks(build("resnet18", num_classes=0))


def first_entered(model, blocks, size):
    """Block numbers in the order in which a forward pass first enters their layers."""
    place = {
        name.rpartition(".")[0]: index
        for index, block in enumerate(blocks)
        for name in block.parameter_names + block.buffer_names
    }
    order = {}
    for path, module in model.named_modules():
        if path and path in place:
            module.register_forward_pre_hook(lambda *_, path=path: order.setdefault(path))
    model.eval()(torch.zeros(1, 3, size, size, device="meta"))
    return [place[path] for path in order]


@pytest.mark.parametrize("name", [*PAPER, "vit_small_patch16_224", "poolformer_s12", "levit_128"])
@pytest.mark.parametrize("max_blocks", [5, 16, 64])
def test_blocks_stand_in_execution_order(name, max_blocks):
    model = build(name)
    blocks = model_blocks(model, max_blocks)
    order = first_entered(model, blocks, 299 if name == "inception_v3" else 224)
    assert order == sorted(order)
    assert set(order) == set(range(len(blocks)))


def test_blocks_do_not_depend_on_the_number_of_classes():
    ten, two = (
        model_blocks(build("convnext_tiny")),
        model_blocks(build("convnext_tiny", num_classes=2)),
    )
    assert [b.parameter_names for b in ten] == [b.parameter_names for b in two]


@pytest.mark.parametrize(
    ("name", "paths", "outputs"),
    [
        ("resnet18", ("fc",), ["fc"]),
        ("convnext_tiny", ("head.fc",), ["head.fc"]),
        ("levit_128", ("head", "head_dist"), ["head.linear", "head_dist.linear"]),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist"), ["head", "head_dist"]),
    ],
)
def test_classifiers_are_found(name, paths, outputs):
    model = build(name)
    assert classifier_paths(model) == paths
    assert list(output_layers(model)) == outputs


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.first = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.second = nn.Linear(8, 8)
        self.out = nn.Linear(8, 2)


def test_patterns_give_blocks_of_any_module():
    model = Plain()
    blocks = model_blocks(model, patterns={"in": "scale|first", "mid": "second", "out": "out"})
    assert_partition(model, blocks)
    assert [block.name for block in blocks] == ["in", "mid", "out"]
    assert blocks[0].parameter_names[0] == "scale"
    assert "first.1.running_mean" in blocks[0].buffer_names


def test_first_matching_pattern_wins():
    blocks = model_blocks(Plain(), patterns={"mid": "second", "rest": ".*"})
    assert blocks[0].parameter_names == ("second.weight", "second.bias")


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (None, "Plain has no classifier as timm's models have one: create it with num_classes=N"),
        ({}, "no block pattern matches"),
        ({"in": "first", "out": "out"}, "no block pattern matches 'scale', 'second.weight'"),
        ({"a": ".*", "b": "second"}, "block 'b' matches no tensor"),
        ({"a": "second.weight", "b": ".*"}, "cut a layer in two"),
        ({"a": "("}, "no regular expression"),
    ],
)
def test_bad_patterns_are_named(patterns, message):
    with pytest.raises(ModelError, match=re.escape(message)):
        model_blocks(Plain(), patterns=patterns)
