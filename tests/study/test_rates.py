"""The range of base rates: found once, kept with the study, lowered for networks that need it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from biotune_optuna.data.sources.arrays import open_array
from biotune_optuna.errors import StudyError
from biotune_optuna.finetune.batches import Loss, class_weights
from biotune_optuna.finetune.results import EpochRecord, RunResult
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.genome import USUAL_RATES
from biotune_optuna.models.blocks import model_blocks
from biotune_optuna.recipe import Recipe
from biotune_optuna.report.view import as_view
from biotune_optuna.report.words import search_sentences
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study import study as studies
from biotune_optuna.study.rates import find_rates, guessing_loss
from biotune_optuna.study.setup import Setup, prepare
from biotune_optuna.study.study import create_study, load_study, study_of
from tests.kit.studies import tiny_spec

TENTH, HUNDREDTH = (1e-4, 3e-3), (1e-5, 3e-4)


@pytest.fixture
def auto(setup: Setup) -> Setup:
    """A setup whose range is not known yet."""
    return dataclasses.replace(setup, spec=dataclasses.replace(setup.spec, lr="auto"))


class Loud(nn.Module):
    """A network that says thirty times what others say, so that it needs a lower rate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.relu(self.stem(x)))
        return 30 * logits


@given(
    arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 3)),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_nobody_guesses_better(labels: np.ndarray, balanced: bool, seed: int) -> None:
    """The trainer's own loss of a prediction that is the same for all images is no lower."""
    weights = class_weights(labels, 4) if balanced else None
    loss = Loss(label_smoothing=0.0, weights=weights, device=torch.device("cpu"))
    present = np.bincount(labels, minlength=4) > 0
    best = present / present.sum() if balanced else np.bincount(labels, minlength=4) / len(labels)
    other = np.random.default_rng(seed).dirichlet(np.ones(4))
    least = guessing_loss(labels, balanced=balanced)
    for prediction in (best, other):
        logits = torch.log(torch.tensor(np.maximum(prediction, 1e-9))).repeat(len(labels), 1)
        found = loss(logits, torch.from_numpy(labels)).item() / loss.mass(labels, mixed=False)
        assert found >= least - 1e-5
        assert prediction is other or found == pytest.approx(least, abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"mixup": 1.0, "cutmix": 1.0, "label_smoothing": 0.5},
        {"class_weights": "balanced", "label_smoothing": 0.1},
    ],
)
def test_what_only_makes_the_loss_another_one_is_left_out(
    cache_dir: Path, changes: dict[str, Any]
) -> None:
    """Of two classes, one of them rare, so that the loss of a good model would be far from 0."""
    rng = np.random.default_rng(0)
    labels = (np.arange(200) % 20 == 0).astype(int)
    pixels = rng.integers(0, 100, (200, 32, 32, 3)) + 150 * labels[:, None, None, None]
    train = TrainSettings(epochs=2, batch_size=20, **changes)
    setup = prepare(
        tiny_spec(lr="auto", train=train, train_size=120),
        source=open_array(pixels.astype(np.uint8), labels.astype(str)),
        device="cpu",
        cache_dir=cache_dir,
    )
    found = find_rates(setup)
    assert found.bounds == USUAL_RATES
    assert len(found.tried) == 1
    assert setup.trainer.settings == train


@pytest.mark.parametrize(
    ("losses", "bounds"),
    [
        ([0.8], USUAL_RATES),
        ([1.0, 0.8], TENTH),
        ([0.95, 1.2, 0.1], HUNDREDTH),
        ([float("nan"), 0.8], TENTH),
        ([1.0, 1.0, 1.0], USUAL_RATES),  # lower rates do not help
    ],
)
def test_the_range_is_lowered_until_the_network_learns(
    auto: Setup,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    losses: list[float],
    bounds: tuple[float, float],
) -> None:
    rates: list[float] = []

    def fit(self: Trainer, recipe: Recipe, images: Any, **options: Any) -> RunResult:
        assert not any(block.frozen for block in recipe.blocks)
        assert set(images) <= set(auto.splits.train)
        rates.append(recipe.lr)
        loss = losses[len(rates) - 1] * np.log(10)
        return RunResult(
            score=np.nan,
            epochs=[EpochRecord(1, 9.0, np.nan, 0.0), EpochRecord(2, loss, np.nan, 0.0)],
            images_forward=7,
            images_backward=5,
            seconds=2.0,
        )

    monkeypatch.setattr(Trainer, "fit", fit)
    found = find_rates(auto)
    assert found.bounds == bounds
    assert len(rates) == len(losses)
    assert rates == pytest.approx([np.sqrt(3e-5) / 10**k for k in range(len(losses))])
    assert (found.forward, found.backward, found.seconds) == tuple(
        len(losses) * n for n in (7, 5, 2.0)
    )
    told = [None if np.isnan(loss) else pytest.approx(loss * np.log(10)) for loss in losses]
    assert [run["loss"] for run in found.tried] == told
    said = [record.getMessage() for record in caplog.records]
    assert sum("trying a tenth" in line for line in said) == min(len(losses), 3) - 1
    assert sum("the usual range" in line for line in said) == (losses[-1] == 1.0)


def test_thirty_steps_on_training_images_show_it(auto: Setup) -> None:
    """A real network that learns at the usual rates, and one that needs lower ones."""
    found = find_rates(auto)
    assert found.bounds == USUAL_RATES
    assert found.forward == found.backward == 30 * auto.spec.train.batch_size
    assert find_rates(auto).tried == found.tried
    torch.manual_seed(0)
    loud = Loud()
    blocks = model_blocks(loud, patterns={"stem": "^stem", "head": "^head"})
    trainer = Trainer(loud, blocks, auto.images, auto.spec.train, device="cpu")
    space = auto.spec.space(blocks)
    other = dataclasses.replace(auto, trainer=trainer, blocks=tuple(blocks), space=space)
    assert find_rates(other).bounds == TENTH


def test_a_study_finds_its_range_once(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    lowered = []

    def find(setup: Setup, **_options: Any) -> Any:
        lowered.append(setup)
        return dataclasses.replace(find_rates(setup), bounds=TENTH)

    monkeypatch.setattr(studies, "find_rates", find)
    options: dict[str, Any] = {"storage": storage, "name": "s", "device": "cpu"}
    options["cache_dir"] = cache_dir
    spec = tiny_spec(lr="auto")
    first = create_study(spec, **options)
    assert first.setup.space.lr == first.spec.lr_found == TENTH
    first.search(2)
    again = create_study(spec, **options)
    worker = load_study("s", storage=storage, device="cpu", cache_dir=cache_dir)
    assert len(lowered) == 1
    assert again.spec == worker.spec == first.spec
    assert again.setup.space == worker.setup.space == first.setup.space
    worker.search(3)
    assert all(1e-4 <= trial.params["lr"] <= 3e-3 for trial in first.study.trials)
    with pytest.raises(StudyError, match=r"lr: 'auto', not \[0.0001, 0.003\]"):
        create_study(tiny_spec(lr=TENTH), **options)


def test_what_finding_the_range_took_is_told(auto: Setup) -> None:
    study = study_of(auto, storage=open_storage("memory://"), name="s")
    study.search(1)
    view = as_view(study.study)
    (trial,) = study.study.trials
    assert view.passes[0] == trial.user_attrs["forward"] + 30 * 20
    assert "Base rates" not in " ".join(search_sentences(view))
    stored = study.study.user_attrs["biotune"]
    tried = [{"lr": 0.0055, "loss": 2.3}, {"lr": 0.00055, "loss": 1.0}]
    for bounds, words in (
        (TENTH, "between 0.0001 and 0.003: in a short training at 0.0055 the whole network"),
        (USUAL_RATES, "lower ones may suit: in a short training at 0.0055, at 0.00055 the whole"),
    ):
        check = {**stored["rates"], "bounds": list(bounds), "tried": tried}
        study.study.set_user_attr("biotune", {**stored, "rates": check})
        assert words in " ".join(search_sentences(as_view(study.study)))


def test_of_two_who_begin_a_study_the_first_ones_range_counts(
    auto: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, fast = (open_storage(tmp_path / "study.db") for _ in range(2))

    def find_late(setup: Setup, **_options: Any) -> Any:
        monkeypatch.setattr(studies, "find_rates", find_rates)
        study_of(setup, storage=fast, name="s")
        return dataclasses.replace(find_rates(setup), bounds=TENTH)

    monkeypatch.setattr(studies, "find_rates", find_late)
    second = study_of(auto, storage=slow, name="s")
    assert second.spec.lr_found == second.setup.space.lr == USUAL_RATES
    assert second.study.user_attrs["biotune"]["rates"]["bounds"] == list(USUAL_RATES)
    second.search(1)


def test_a_spec_that_is_used_for_another_network_brings_no_range_along(
    auto: Setup, cache_dir: Path
) -> None:
    study = study_of(auto, storage=open_storage("memory://"), name="s")
    other = dataclasses.replace(study.spec, model="test_resnet", lr_found=TENTH)
    assert prepare(other, device="cpu", cache_dir=cache_dir).spec.lr_found is None


def test_finding_the_range_can_be_stopped(auto: Setup) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    storage = open_storage("memory://")
    with pytest.raises(Stop):
        study_of(auto, storage=storage, name="s", checkpoint=stop)
    assert storage.get_all_studies() == []


def test_a_rate_in_words_is_refused() -> None:
    with pytest.raises(StudyError, match="lr 'fast' is unknown; give a rate, two bounds or auto"):
        tiny_spec(lr="fast")
