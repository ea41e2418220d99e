"""A model of several members: its files, and that they predict as they do apart."""

import copy
import csv
import dataclasses
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from biotune_optuna.cli import cli
from biotune_optuna.data.views import shown
from biotune_optuna.errors import ModelError
from biotune_optuna.export import Predictor, load_exported, write_csv
from biotune_optuna.finetune.calibration import Calibration, tempered
from tests.kit.cli import fails
from tests.kit.export import CLASSES, NAME, export, probabilities


@pytest.fixture(scope="module")
def whole(members, tmp_path_factory):
    """The export of all members."""
    return export(members, tmp_path_factory.mktemp("members") / "m", members=members["members"])


@pytest.fixture
def damaged(members, tmp_path):
    """An export to be spoilt."""
    return export(members, tmp_path / "m", members=members["members"])


@pytest.fixture
def predictor(members):
    facts = {name: members[name] for name in ("preprocessing", "recipe")}
    return Predictor(
        members["model"], members=members["members"], name=NAME, classes=CLASSES, **facts
    )


def test_members_predict_the_mean_of_what_they_predict_apart(members, whole, predictor):
    expected = np.mean(members["apart"], axis=0)
    assert not np.allclose(members["apart"][0], members["apart"][1], atol=1e-3)
    loaded = load_exported(whole, device="cpu")
    assert len(loaded.members) == 2
    for one in (predictor, loaded):
        found = one.predict(members["paths"])
        np.testing.assert_allclose(probabilities(found), expected, atol=1e-6)
        assert one.shared.blocks == len(members["recipe"].frozen)
        for prediction, row in zip(found, np.stack(members["apart"], axis=1), strict=True):
            says = [CLASSES[i] for i in row.argmax(1)]
            others = sum(label != prediction.label for label in says)
            assert prediction.disagreement == pytest.approx(others / 3)


def test_members_count_as_they_were_exported(members, tmp_path):
    folder = export(members, tmp_path / "m", members=members["members"], weights=(3, 1, 1))
    expected = np.average(members["apart"], axis=0, weights=(3, 1, 1))
    loaded = load_exported(folder, device="cpu")
    for one in (loaded, pickle.loads(pickle.dumps(loaded))):
        found = one.predict(members["paths"])
        np.testing.assert_allclose(probabilities(found), expected, atol=1e-6)
        for prediction, row in zip(found, np.stack(members["apart"], axis=1), strict=True):
            says = [CLASSES[i] for i in row.argmax(1)]
            others = [
                w for label, w in zip(says, (3, 1, 1), strict=True) if label != prediction.label
            ]
            assert prediction.disagreement == pytest.approx(sum(others) / 5)
    assert load_exported(folder, device="cpu", single=True).weights == ()


@pytest.mark.parametrize("weights", [[1, 2], [1, 2, 0], [1, 2, -1], [1, 2, "3"], [1, 2, True], 3])
def test_weights_that_fit_no_members_are_refused(damaged, weights):
    how = damaged / "members.json"
    how.write_text(json.dumps(json.loads(how.read_text()) | {"weights": weights}))
    with pytest.raises(ModelError, match="does not say how much each member counts"):
        load_exported(damaged, device="cpu")


def test_what_all_have_in_common_runs_once(members, predictor, monkeypatch):
    networks = (predictor.model, *predictor.members)
    names = {
        id(network.get_submodule(part)): (part, i)
        for i, network in enumerate(networks)
        for part in ("conv_stem", "classifier")
    }
    predictor.predict(members["paths"][:1])  # looks for the cut
    calls = []
    for kind in (torch.nn.Conv2d, torch.nn.Linear):

        def counted(self, *args, _forward=kind.forward):
            calls.append(names.get(id(self)))
            return _forward(self, *args)

        monkeypatch.setattr(kind, "forward", counted)
    predictor.predict(members["paths"][:1])
    known = [call for call in calls if call is not None]
    assert known == [("conv_stem", 0), *(("classifier", i) for i in range(3))]


def test_the_cost_of_predicting_is_counted_and_measured(members, predictor):
    cost = predictor.cost()
    frozen, blocks = len(members["recipe"].frozen), len(members["recipe"].blocks)
    assert cost[:3] == (3, frozen, blocks)
    assert 1 < cost.passes < 3
    assert cost.single_ms > 0
    assert cost.members_ms > 0
    assert f"the first {frozen} of {blocks} blocks run once, the rest 3 times" in cost.words
    assert type(cost).of(cost._asdict() | {"later": 1}) == cost
    assert type(cost).of({"members": 3}) is None
    alone = Predictor(
        members["model"], name=NAME, classes=CLASSES, preprocessing=members["preprocessing"]
    ).cost()
    assert (alone.members, alone.shared_blocks, alone.passes) == (1, 0, 1.0)


def test_one_member_is_the_first(members, whole, exported):
    alone = load_exported(whole, device="cpu", single=True)
    assert not alone.members
    found = alone.predict(members["paths"])
    assert np.array_equal(probabilities(found), members["apart"][0])
    assert {one.disagreement for one in found} == {None}
    assert not load_exported(exported, device="cpu").members, "a folder of old"


def test_timm_reads_the_first_member(members, whole):
    model = timm.create_model(f"local-dir:{whole}", pretrained=True).eval()
    batch = torch.randn(3, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(model(batch), members["model"](batch))


def test_the_files_hold_only_what_differs(members, whole):
    stored = load_file(whole / "members.safetensors")
    training = {
        name
        for block in members["recipe"].blocks
        if not block.frozen
        for name in (*block.parameter_names, *block.buffer_names)
    }
    assert {name.partition("/")[0] for name in stored} == {"2", "3"}
    assert {name.partition("/")[2] for name in stored} <= training
    sizes = {file.name: file.stat().st_size for file in whole.glob("*.safetensors")}
    tensors = members["model"].state_dict()
    share = sum(t.nbytes for n, t in tensors.items() if n in training)
    share /= sum(t.nbytes for t in tensors.values())
    assert sizes["members.safetensors"] <= 1.1 * 2 * share * sizes["model.safetensors"]
    how = json.loads((whole / "members.json").read_text())
    assert how["members"] == 3
    assert set(how["others"]["tensors"]) == {name.partition("/")[2] for name in stored}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_shares_what_is_shared(members, predictor, copied):
    before = probabilities(predictor.predict(members["paths"]))
    again = copied(predictor)
    assert np.array_equal(probabilities(again.predict(members["paths"])), before)
    first, other = again.model, again.members[0]
    assert first is not predictor.model
    stem = "conv_stem.weight"
    assert first.get_parameter(stem) is other.get_parameter(stem)
    assert first.get_parameter("classifier.weight") is not other.get_parameter("classifier.weight")


def test_threads_do_not_disturb_one_another(members, predictor):
    before = probabilities(predictor.predict(members["paths"]))
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: predictor.predict(members["paths"]), range(8)):
            assert np.array_equal(probabilities(found), before)


def test_a_table_says_how_far_members_disagree(members, whole, exported, tmp_path):
    images = [members["paths"][0], "nowhere.png"]
    table = write_csv(load_exported(whole, device="cpu").predict(images), tmp_path / "a.csv")
    with table.open() as file:
        first, second = csv.DictReader(file)
    assert float(first["disagreement"]) in (0.0, 0.3333, 0.6667)
    assert second["disagreement"] == ""
    assert second["error"]
    alone = write_csv(load_exported(exported, device="cpu").predict(images), tmp_path / "b.csv")
    assert "disagreement" not in alone.read_text()


def spoil(folder, what):
    tensors, how = folder / "members.safetensors", folder / "members.json"
    config = json.loads(how.read_text())
    stored = load_file(tensors)
    name = config["others"]["tensors"][0]
    if what == "cut short":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif what == "no tensors":
        tensors.unlink()
    elif what == "no description":
        how.unlink()
    elif what == "one lost":
        del stored[f"3/{name}"]
        save_file(stored, tensors)
    elif what == "one too many":
        save_file(stored | {f"4/{name}": torch.zeros(1)}, tensors)
    elif what == "another shape":
        save_file(stored | {f"2/{name}": torch.zeros(7, 7)}, tensors)
    elif what == "other weights":
        weights = load_file(folder / "model.safetensors")
        save_file({n: t + 1 for n, t in weights.items()}, folder / "model.safetensors")
    elif what == "newer":
        how.write_text(json.dumps(config | {"schema_version": 2}))
    elif isinstance(what, list):
        config["others"]["tensors"] = what
        how.write_text(json.dumps(config))
    else:
        how.write_text(json.dumps(config | {"members": what}))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("cut short", "members.safetensors' cannot be read"),
        ("no tensors", "members.safetensors': no such file"),
        ("no description", "members.json' cannot be read"),
        ("one lost", "lacks '3/"),
        ("one too many", "has '4/"),
        ("another shape", "does not fit the model"),
        ("other weights", "belongs to other weights"),
        ("newer", "schema version 2; this version reads 1"),
        (0, "does not say which members"),
        (1.5, "does not say which members"),
        (10**9, "does not say which members"),
        ([["no name"]], "does not say which members"),
        (4, "lacks '4/"),
    ],
)
def test_members_that_do_not_fit_are_refused_and_the_first_still_predicts(damaged, what, said):
    spoil(damaged, what)
    with pytest.raises(ModelError, match=said) as caught:
        load_exported(damaged, device="cpu")
    assert "\n" not in str(caught.value)
    if what != "other weights":
        assert load_exported(damaged, device="cpu", single=True).model is not None


def test_an_export_of_members_gives_way_to_one_without(members, damaged):
    export(members, damaged)
    assert not (damaged / "members.json").exists()
    assert not (damaged / "members.safetensors").exists()


# -- views -------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [True, False])
def test_views_are_exported_predicted_and_charged(members, tmp_path, *, several):
    seen = dataclasses.replace(members["preprocessing"], views=("mirror", "zoom"))
    others = members["members"] if several else []
    folder = export(members, tmp_path / "m", members=others, preprocessing=seen)
    loaded = load_exported(folder, device="cpu")
    assert loaded.preprocessing == seen
    plain = Predictor(
        members["model"], members=others, name=NAME, classes=CLASSES, **members_facts(members)
    )
    pixels = np.stack([plain._pixels(str(path), path) for path in members["paths"]])
    batch = plain._device_images(pixels).batch(np.arange(len(pixels)))
    with torch.no_grad():
        rows = [
            network(shown(batch, view)).softmax(1).numpy()
            for network in (members["model"], *others)
            for view in ("", "mirror", "zoom")
        ]
    found = probabilities(loaded.predict(members["paths"]))
    np.testing.assert_allclose(found, np.mean(rows, axis=0), atol=1e-6)
    assert not np.allclose(found, probabilities(plain.predict(members["paths"])), atol=1e-3)
    cost = loaded.cost()
    assert (cost.views, cost.members) == (3, 1 + len(others))
    assert cost.passes == pytest.approx(3 * plain.cost().passes)
    assert "shown 3 times" in cost.words
    assert type(cost).of(cost._asdict()) == cost
    alone = load_exported(folder, device="cpu", single=True)
    assert np.allclose(probabilities(alone.predict(members["paths"])), np.mean(rows[:3], axis=0))


def members_facts(members):
    return {name: members[name] for name in ("preprocessing", "recipe")}


# -- probabilities that can be trusted --------------------------------------------------------


SURE = Calibration(2.0, (0.8, 0.6, 0.4), (True, True, False))
ALONE = Calibration(0.5, (0.9,), (False,))


@pytest.fixture(scope="module")
def calibrated(members, tmp_path_factory):
    """The export of all members with temperatures."""
    trusted = {"members": SURE, "single": ALONE}
    folder = tmp_path_factory.mktemp("calibrated") / "m"
    return export(members, folder, members=members["members"], calibration=trusted)


def test_probabilities_are_tempered_as_they_were_exported(members, calibrated):
    for single, trusted, apart in (
        (False, SURE, np.mean(members["apart"], axis=0)),
        (True, ALONE, members["apart"][0]),
    ):
        loaded = load_exported(calibrated, device="cpu", single=single)
        assert loaded.calibration == trusted
        found = probabilities(loaded.predict(members["paths"]))
        np.testing.assert_allclose(found, tempered(apart, trusted.temperature), atol=1e-5)
        assert pickle.loads(pickle.dumps(loaded)).calibration == trusted


def test_images_below_the_confidence_that_an_accuracy_takes_are_left_out(
    members, calibrated, tmp_path
):
    paths = [str(path) for path in members["paths"]]
    sure = [p.probability for p in load_exported(calibrated, device="cpu").predict(paths)]
    table = tmp_path / "sure.csv"
    line = ["predict", str(calibrated), *paths, "--abstain", "0.9", "--csv", str(table)]
    result = CliRunner().invoke(cli, [*line, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    left = sum(p < 0.6 for p in sure)
    assert 0 < left < len(paths), "the test needs both kinds"
    said = f"{left} of {len(paths)} images left out: an accuracy of 0.9 takes a confidence of 0.600"
    assert said in result.stderr
    with table.open() as file:
        assert len(list(csv.DictReader(file))) == len(paths) - left


def test_accuracies_that_cannot_be_had_are_one_clear_line(members, calibrated, whole):
    image = str(members["paths"][0])
    assert "is no share" in fails("predict", str(calibrated), image, "--abstain", "95")
    reached = fails("predict", str(calibrated), image, "--abstain", "0.9", "--single")
    assert "no confidence reached an accuracy of 0.9" in reached
    unknown = fails("predict", str(whole), image, "--abstain", "0.9")
    assert "does not know what its confidences are worth" in unknown


@pytest.mark.parametrize("content", ["{", "[]", '{"members": {"temperature": -1}}'])
def test_a_damaged_calibration_is_refused(calibrated, tmp_path, content):
    folder = shutil.copytree(calibrated, tmp_path / "m")
    (folder / "calibration.json").write_text(content)
    with pytest.raises(ModelError, match=r"calibration\.json"):
        load_exported(folder, device="cpu")
