"""Recipes applied to real modules."""

import dataclasses
import json

import pytest
import timm
import torch
from torch import nn

from biotune_optuna.errors import ModelError
from biotune_optuna.models.blocks import model_blocks
from biotune_optuna.recipe import BlockRecipe, Recipe, describe


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Dropout(0.5)
        )
        self.body = nn.Sequential(
            nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Dropout(0.5)
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def blocks_of(model: nn.Module) -> list[BlockRecipe]:
    return [
        BlockRecipe(
            name,
            1.0,
            tuple(f"{name}.{p}" for p, _ in child.named_parameters()),
            tuple(f"{name}.{b}" for b, _ in child.named_buffers()),
        )
        for name, child in model.named_children()
    ]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_apply_gives_real_rates_and_frees_norms_of_weight_decay(net: Net) -> None:
    recipe = Recipe.from_multipliers(blocks_of(net), [0, 0.1, 10], lr=1e-3, weight_decay=0.05)
    groups = recipe.apply(net)
    optimiser = torch.optim.AdamW(groups)
    of = {p: n for n, p in net.named_parameters()}
    seen = {
        of[p]: (g["lr"], g["weight_decay"]) for g in optimiser.param_groups for p in g["params"]
    }
    assert seen == {
        "body.0.weight": (pytest.approx(1e-4), 0.05),
        "body.1.weight": (pytest.approx(1e-4), 0.0),
        "body.1.bias": (pytest.approx(1e-4), 0.0),
        "head.weight": (pytest.approx(1e-2), 0.05),
        "head.bias": (pytest.approx(1e-2), 0.0),
    }
    assert {n for n, p in net.named_parameters() if not p.requires_grad} == {
        "stem.0.weight",
        "stem.1.weight",
        "stem.1.bias",
    }
    assert {g["lr"] for g in recipe.apply(net, lr=1.0)} == {0.1, 10.0}


def test_what_a_networks_authors_exempt_from_weight_decay_gets_none() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    recipe = Recipe.full(model_blocks(model), lr=1.0, weight_decay=0.1)
    decay = {p: group["weight_decay"] for group in recipe.apply(model) for p in group["params"]}
    parameters = dict(model.named_parameters())
    exempt = {name for name in model.no_weight_decay() if name in parameters}
    assert {"pos_embed", "cls_token"} <= exempt
    matrices = {name for name, p in parameters.items() if p.ndim > 1}
    assert {name for name in matrices if decay[parameters[name]] == 0.0} == exempt
    assert {decay[parameters[name]] for name in matrices - exempt} == {0.1}


def test_applying_another_recipe_undoes_the_first(net: Net) -> None:
    Recipe.linear_probe(blocks_of(net), lr=1e-3).apply(net)
    Recipe.full(blocks_of(net), lr=1e-3).apply(net)
    assert all(p.requires_grad for p in net.parameters())


def test_train_mode_keeps_frozen_blocks_in_eval(net: Net) -> None:
    recipe = Recipe.from_multipliers(blocks_of(net), [0, 1, 1], lr=1e-3)
    recipe.train_mode(net)
    assert not any(m.training for m in net.stem.modules())
    assert all(m.training for m in net.body.modules())
    recipe.train_mode(net, frozen_norm="train")
    assert net.stem[1].training
    assert not net.stem[2].training


def test_frozen_blocks_are_bit_identical_after_a_step(net: Net) -> None:
    recipe = Recipe.from_multipliers(blocks_of(net), [0, 1, 1], lr=1e-1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimiser = torch.optim.SGD(recipe.apply(net))
    recipe.train_mode(net)
    net(torch.randn(8, 3, 8, 8)).square().mean().backward()
    optimiser.step()
    after = net.state_dict()
    for key, value in before.items():
        assert torch.equal(value, after[key]) == key.startswith("stem."), key


def test_words(net: Net) -> None:
    blocks = blocks_of(net)
    assert (
        Recipe.from_multipliers(blocks, [0, 0, 6], lr=3e-3).describe()
        == "stem to body frozen; head at 6×; base rate 0.003"
    )
    assert (
        Recipe.from_multipliers(blocks, [0, 0.31, 6], lr=3e-3).describe()
        == "stem frozen; body at 0.31×; head at 6×; base rate 0.003"
    )
    assert Recipe.full(blocks, lr=1e-3).describe() == "full fine-tuning; base rate 0.001"
    assert (
        Recipe.from_multipliers(blocks, [0, 1, 0], lr=1.0).frozen_summary() == "stem, head (2 of 3)"
    )
    assert Recipe.full(blocks, lr=1.0).frozen_summary() == "none of 3"
    assert describe({"stem": 0.0, "body": 1.0, "head": 0.0}) == "stem, head frozen; body at 1×"


def test_layer_decay_falls_towards_the_input(net: Net) -> None:
    recipe = Recipe.layer_decay(blocks_of(net), lr=1.0, decay=0.5)
    assert list(recipe.multipliers.values()) == [0.25, 0.5, 1.0]


def test_keys_tell_apart_what_trains_apart(net: Net) -> None:
    blocks = blocks_of(net)
    one = Recipe.from_multipliers(blocks, [0, 1, 2], lr=1e-3)
    assert one.key() == Recipe.from_multipliers(blocks, [0, 0.5, 1], lr=2e-3).key()
    assert one.key() != Recipe.from_multipliers(blocks, [0, 1, 2.1], lr=1e-3).key()
    assert one.key() != Recipe.from_multipliers(blocks, [0, 1, 2], lr=1e-3, weight_decay=1e-2).key()


def test_saved_recipe_comes_back_equal(net: Net, tmp_path) -> None:
    recipe = Recipe.from_multipliers(blocks_of(net), [0, 1 / 3, 2], lr=1e-3, weight_decay=0.1)
    path = recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(path) == recipe
    assert json.loads(path.read_text())["schema_version"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as a recipe"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "cannot be read as a recipe: it is nested too deep"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1, "blocks": [{}]}', "lacks or garbles"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content: str, message: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(content)
    with pytest.raises(ModelError, match=message):
        Recipe.load(path)


def test_a_recipe_of_another_model_is_refused(net: Net) -> None:
    recipe = Recipe.full(blocks_of(net), lr=1e-3)
    with pytest.raises(ModelError, match=r"does not have 'stem\.0\.weight'"):
        recipe.apply(nn.Linear(2, 2))


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_rates_are_refused(net: Net, lr: float) -> None:
    with pytest.raises(ModelError, match="learning rate"):
        Recipe.full(blocks_of(net), lr=lr)
    with pytest.raises(ModelError, match="multiplier"):
        Recipe.from_multipliers(blocks_of(net), [0, 1, float("nan")], lr=1.0)


def with_genes(net: Net) -> Recipe:
    return Recipe.from_multipliers(
        blocks_of(net),
        [0.0, 0.5, 1.0],
        lr=1e-2,
        modes=["norms", "norms", "full"],
        training={"augment": "trivial-noflip", "length": 2.0, "mix": "none"},
    )


def test_modes_and_training_are_said_and_kept(net: Net, tmp_path) -> None:
    recipe = with_genes(net)
    names = [block.name for block in recipe.blocks]
    assert recipe.describe() == (
        f"{names[0]} frozen; {names[1]} norms only at 0.5×; {names[2]} at 1×; base rate 0.01; "
        "TrivialAugment; 2x as long"
    )
    assert recipe.modes == {names[1]: "norms"}, "a frozen block has none"
    again = Recipe.load(recipe.save(tmp_path / "recipe.json"))
    assert again.key() == recipe.key()
    assert again.describe() == recipe.describe()
    data = recipe.to_dict()
    assert data["schema_version"] == 2
    assert data["training"] == recipe.training


def test_a_recipe_without_them_is_written_as_before(net: Net) -> None:
    data = Recipe.full(blocks_of(net), lr=1e-3).to_dict()
    assert data["schema_version"] == 1
    assert "training" not in data
    assert "mode" not in data["blocks"][0]


def test_what_changes_nothing_is_no_part_of_the_key(net: Net) -> None:
    plain = Recipe.full(blocks_of(net), lr=1e-3)
    unused = dataclasses.replace(plain, training={"augment": "none", "ema": 0.0})
    used = dataclasses.replace(plain, training={"augment": "none", "ema": 0.9})
    norms = dataclasses.replace(
        plain, blocks=tuple(dataclasses.replace(b, mode="norms") for b in plain.blocks)
    )
    assert unused.key() == plain.key()
    assert len({plain.key(), used.key(), norms.key()}) == 3


def test_norms_alone_get_gradients_where_nothing_else_shall_train(net: Net) -> None:
    recipe = with_genes(net)
    groups = recipe.apply(net)
    held = {id(p) for group in groups for p in group["params"]}
    for block in recipe.blocks:
        for name in block.parameter_names:
            parameter = net.get_parameter(name)
            trains = not block.frozen and (block.mode == "full" or parameter.ndim <= 1)
            assert parameter.requires_grad == trains, name
            assert (id(parameter) in held) == trains, name


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"training": {"hue": 1}}, "training gene 'hue' is not one of augment, length"),
        ({"blocks": [{"name": "a", "multiplier": 1.0, "mode": "half"}]}, "mode 'half' is not one"),
    ],
)
def test_a_file_with_unknown_genes_is_refused(data, message) -> None:
    whole = {"schema_version": 2, "lr": 1e-3, "weight_decay": 0.0, "blocks": []}
    with pytest.raises(ModelError, match=message):
        Recipe.from_dict({**whole, **data})
