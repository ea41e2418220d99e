"""One trial: the genome's recipe is really applied, and what it leaves behind is true."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState, create_trial
from torch.optim.optimizer import register_optimizer_step_post_hook

from biotune_optuna.finetune.results import RunResult
from biotune_optuna.finetune.settings import TrainSettings
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.genome import Genome, GenomeSpace
from biotune_optuna.recipe import Recipe
from biotune_optuna.sampler.sampler import BioTuneSampler, slot_of
from biotune_optuna.schema import RUNS_KEY, TRAINABLE_KEY, TrialRecord
from biotune_optuna.study.objective import Objective
from biotune_optuna.study.setup import Setup, prepare
from biotune_optuna.study.study import TuningStudy
from tests.kit.studies import tiny_spec


def new_study(setup: Setup, **options) -> optuna.Study:
    return optuna.create_study(
        direction="maximize", sampler=BioTuneSampler(space=setup.space, seed=0), **options
    )


def with_spec(setup: Setup, **changes: Any) -> Setup:
    return dataclasses.replace(setup, spec=dataclasses.replace(setup.spec, **changes))


def fit_as(monkeypatch: pytest.MonkeyPatch, result: Callable[[int], RunResult]) -> None:
    """Makes a training give the result for its seed, untrained."""

    def fit(*args: object, seed: int, **options: object) -> RunResult:
        return result(seed)

    monkeypatch.setattr(Trainer, "fit", fit)


def half_frozen(setup: Setup) -> Genome:
    n = setup.space.n_blocks
    genes = [0.2] * (n // 2) + [0.35 + 0.1 * i for i in range(n - n // 2)] + [0.3]
    return Genome(setup.space, tuple(genes), {"lr": 2e-3})


def test_the_recipe_reaches_optimiser_and_model(setup: Setup) -> None:
    study = new_study(setup)
    genome = half_frozen(setup)
    study.enqueue_trial(genome.params)
    block_of = {name: b.name for b in setup.blocks for name in b.parameter_names}
    names = {id(p): n for n, p in setup.trainer.model.named_parameters()}
    first_rates: dict[str, float] = {}
    held: set[str] = set()

    def look(optimiser: torch.optim.Optimizer, *_: object) -> None:
        for group in optimiser.param_groups:
            for p in group["params"]:
                held.add(names[id(p)])
                assert p.requires_grad
                first_rates.setdefault(block_of[names[id(p)]], group["initial_lr"])

    class Watch:
        def trial_started(self, trial: optuna.Trial) -> None:
            pass

        def epoch(self, run: object, record: object) -> None:
            for name, p in setup.trainer.model.named_parameters():
                assert p.requires_grad == (recipe.multipliers[block_of[name]] > 0), name

        def stage(self, *args: object) -> None:
            raise AssertionError

    recipe = genome.decode()
    assert 0 < len(recipe.frozen) < len(setup.blocks)
    hook = register_optimizer_step_post_hook(look)
    try:
        study.optimize(Objective(setup, observer=Watch()), n_trials=1)
    finally:
        hook.remove()
    expected = {b: 2e-3 * m for b, m in recipe.multipliers.items() if m}
    assert first_rates == pytest.approx(expected)
    assert held == {n for n, b in block_of.items() if recipe.multipliers[b]}


def test_frozen_blocks_and_their_buffers_are_bit_identical_after_a_trial(setup: Setup) -> None:
    study = new_study(setup)
    genome = half_frozen(setup)
    study.enqueue_trial(genome.params)
    setup.trainer.reset(0)
    before = {k: v.clone() for k, v in setup.trainer.model.state_dict().items()}
    study.optimize(Objective(setup), n_trials=1)
    after = setup.trainer.model.state_dict()
    multipliers = genome.decode().multipliers
    buffers = 0
    for block in setup.blocks:
        frozen = multipliers[block.name] == 0
        names = [*block.parameter_names, *block.buffer_names]
        same = [torch.equal(before[name], after[name]) for name in names]
        assert all(same) if frozen else not all(same), block.name
        buffers += len(block.buffer_names) if frozen else 0
    assert buffers > 0


def test_value_and_attributes_agree(setup: Setup) -> None:
    study = new_study(setup)
    study.optimize(Objective(setup), n_trials=1)
    trial = study.trials[0]
    runs = trial.user_attrs["runs"]
    assert {run["device"] for run in runs} == {setup.trainer.kind} == {"CPU, float32"}
    scores = [run["score"] for run in runs]
    assert len(runs) == len(setup.spec.search_runs()) == 2
    assert [r["seed"] for r in runs] == [r.seed for r in setup.spec.search_runs(index=0)]
    assert trial.value == pytest.approx(np.mean(scores))
    assert trial.user_attrs["stderr"] == pytest.approx(np.std(scores, ddof=1) / 2**0.5)
    epochs = setup.spec.train.epochs
    for i, run in enumerate(runs):
        curve = [
            v for s, v in trial.intermediate_values.items() if i * epochs < s <= (i + 1) * epochs
        ]
        assert len(curve) == run["epochs"]
        assert max(curve) == run["score"]
    recipe = setup.space.genome(trial.params).decode()
    assert trial.user_attrs["recipe"]["multipliers"] == recipe.multipliers
    assert trial.user_attrs["frozen"] == recipe.frozen_summary()
    trainable = sum(b.n_parameters for b in setup.blocks if recipe.multipliers[b.name])
    total = sum(b.n_parameters for b in setup.blocks)
    assert trial.user_attrs["trainable_pct"] == pytest.approx(100 * trainable / total, abs=1e-3)
    n_train, n_val = len(setup.splits.train), len(setup.splits.val)
    done = sum(run["epochs"] for run in runs)
    assert trial.user_attrs["backward"] == done * n_train
    assert trial.user_attrs["forward"] == done * (n_train + n_val)


def test_trainings_on_another_kind_of_device_are_told_of(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    study = optuna.create_study(direction="maximize")
    for device in ("", setup.trainer.kind):
        study.add_trial(create_trial(value=0.5, user_attrs={RUNS_KEY: [{"device": device}]}))
    TuningStudy(study, setup)._warn_of_other_devices()
    assert not caplog.text
    other = [{"device": "NVIDIA H200, bf16"}]
    study.add_trial(create_trial(value=0.5, user_attrs={RUNS_KEY: other}))
    TuningStudy(study, setup)._warn_of_other_devices()
    assert "trainings on NVIDIA H200, bf16, and this worker trains on CPU, float32" in caplog.text


def test_the_same_seed_gives_the_same_study(setup: Setup) -> None:
    one, two = new_study(setup), new_study(setup)
    for study in (one, two):
        study.optimize(Objective(setup), n_trials=3)
    assert [t.params for t in one.trials] == [t.params for t in two.trials]
    assert [t.values for t in one.trials] == [t.values for t in two.trials]
    assert [t.intermediate_values for t in one.trials] == [
        t.intermediate_values for t in two.trials
    ]


def test_a_pruner_ends_a_trial_and_its_cost_is_kept(setup: Setup) -> None:
    study = new_study(setup, pruner=optuna.pruners.ThresholdPruner(lower=1.1))
    study.optimize(Objective(setup), n_trials=1)
    trial = study.trials[0]
    assert trial.state == TrialState.PRUNED
    assert [run["stopped"] for run in trial.user_attrs["runs"]] == ["callback"]
    assert trial.user_attrs["backward"] == len(setup.splits.train)


def study_with_incumbents(setup: Setup) -> optuna.Study:
    """A study of six genomes that are all but perfect on all runs."""
    study = new_study(setup)
    for i in range(6):
        study.add_trial(
            optuna.trial.create_trial(
                value=1.0,
                params=half_frozen(setup).params,
                distributions=setup.space.distributions(),
                user_attrs={
                    "runs": [
                        {"fold": r.fold, "seed": r.seed, "score": 1.0 - 0.001 * i}
                        for r in setup.spec.search_runs()
                    ]
                },
            )
        )
    return study


def test_a_beaten_genome_gets_no_second_run(setup: Setup) -> None:
    study = study_with_incumbents(setup)
    study.optimize(Objective(setup), n_trials=1)
    trial = study.trials[-1]
    assert trial.state == TrialState.PRUNED
    assert len(trial.user_attrs["runs"]) == 1


def test_without_racing_a_beaten_genome_gets_all_its_runs(setup: Setup) -> None:
    study = study_with_incumbents(setup)
    study.optimize(Objective(with_spec(setup, racing=False)), n_trials=1)
    trial = study.trials[-1]
    assert trial.state == TrialState.COMPLETE
    assert len(trial.user_attrs["runs"]) == 2
    assert trial.value < 0.9, "it was beaten"


@pytest.mark.parametrize(
    ("score", "state"),
    [
        (0.94, TrialState.COMPLETE),  # not 2 · √2 / 40 = 0.071 behind
        (0.92, TrialState.PRUNED),
    ],
)
def test_a_race_is_decided_by_no_less_than_a_validation_image(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, score: float, state: TrialState
) -> None:
    assert (len(setup.splits.val), len(setup.splits.train)) == (40, 60)
    study = study_with_incumbents(setup)
    fit_as(monkeypatch, lambda seed: RunResult(score))
    study.optimize(Objective(setup), n_trials=1)
    assert study.trials[-1].state == state


def test_a_diverging_recipe_is_a_finished_bad_trial(setup: Setup) -> None:
    study = new_study(setup)
    genome = Genome(setup.space, (1.0,) * setup.space.n_blocks + (0.0,), {"lr": 1e-2})
    study.enqueue_trial(genome.params)
    model = setup.trainer.model

    def explode(_module: torch.nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        return output * float("nan")

    hook = model.register_forward_hook(explode)
    try:
        study.optimize(Objective(setup), n_trials=1)
    finally:
        hook.remove()
    trial = study.trials[0]
    assert trial.state == TrialState.COMPLETE
    assert trial.value == 0.0
    assert trial.user_attrs["diverged"] is True
    assert len(trial.user_attrs["runs"]) == 1


def test_runs_that_a_diverged_one_cut_off_count_as_the_worst_score(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = TrainSettings(metric="kappa")
    changed = with_spec(setup, n_seeds=4, train=train)
    diverges = changed.spec.search_runs(index=0)[1].seed
    results = {diverges: RunResult(-1.0, diverged=True)}
    fit_as(monkeypatch, lambda seed: results.get(seed, RunResult(0.8)))
    study = new_study(setup)
    study.optimize(Objective(changed), n_trials=1)
    assert len(study.trials[0].user_attrs["runs"]) == 2
    assert study.trials[0].value == pytest.approx((0.8 - 3) / 4)


def test_rows_of_the_confusion_are_the_true_classes(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    labels = setup.source.labels[setup.splits.val]
    always = RunResult(0.1, predictions=np.full(len(labels), 3))
    fit_as(monkeypatch, lambda seed: always)
    objective = Objective(setup, on_evaluated=lambda trial, confusion: told.append(confusion))
    new_study(setup).optimize(objective, n_trials=1)
    expected = np.zeros((10, 10), dtype=int)
    expected[:, 3] = np.bincount(labels, minlength=10)
    assert told == [expected.tolist()]


def noted_runs(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, n_trials: int
) -> list[tuple[optuna.trial.FrozenTrial, list[tuple[int | None, int]]]]:
    """Trials of a search whose trainings cost nothing, and the fold and seed of each training."""
    folds = {part.tobytes(): i for i, part in enumerate(setup.splits.folds)}
    folds[setup.splits.train.tobytes()] = None
    runs: list[tuple[int | None, int]] = []

    def fit(
        self: Trainer, recipe: Recipe, train: Any, val: Any, *, seed: int, **options: object
    ) -> RunResult:
        runs.append((folds[train.tobytes()], seed))
        return RunResult(1 / (1 + sum(recipe.multipliers.values())))

    monkeypatch.setattr(Trainer, "fit", fit)
    sampler = BioTuneSampler(space=setup.space, seed=0, preset=setup.spec.preset, population_size=4)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    found = []
    for _ in range(n_trials):
        runs.clear()
        study.optimize(Objective(setup), n_trials=1)
        found.append((study.trials[-1], [*runs]))
    return found


def test_the_papers_generations_take_turns_on_the_folds(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(preset="paper", n_folds=2, racing=False)
    setup = prepare(spec, device="cpu", cache_dir=cache_dir)
    found = noted_runs(setup, monkeypatch, 20)
    generations = [slot_of(trial).generation for trial, _ in found]
    assert set(generations) >= {0, 1, 2}
    for generation, (_, runs) in zip(generations, found, strict=True):
        assert {fold for fold, _ in runs} == {generation % 2}
        assert runs == [(r.fold, r.seed) for r in spec.search_runs(generation=generation)]


@pytest.mark.parametrize("own_seeds", [True, False])
def test_a_genome_evaluated_again_gets_seeds_of_its_own(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, own_seeds: bool
) -> None:
    changed = with_spec(setup, racing=False, own_seeds=own_seeds)
    found = noted_runs(changed, monkeypatch, 40)
    slots = [slot_of(trial) for trial, _ in found]
    assert max(slot.repeat for slot in slots) >= 1
    for slot, (_, runs) in zip(slots, found, strict=True):
        where = {"generation": slot.generation, "repeat": slot.repeat, "index": slot.index}
        wanted = changed.spec.search_runs(**where)
        assert runs == [(r.fold, r.seed) for r in wanted]
    every = {seed for _, runs in found for _, seed in runs}
    assert len(every) == len(changed.spec.search_runs()) * (
        len(found) if own_seeds else 1 + max(slot.repeat for slot in slots)
    )
    seeds: dict[tuple[Any, ...], list[int]] = {}
    for trial, runs in found:
        own = seeds.setdefault(tuple(trial.params.values()), [])
        own += [seed for _, seed in runs]
    for own in seeds.values():
        assert len(set(own)) == len(own)


def test_a_genome_that_trains_nothing_is_pruned_untrained(setup: Setup) -> None:
    names = setup.space.gene_names
    genes = {name: 0.9 if name == "gene.threshold" else 0.1 for name in names}
    paper = GenomeSpace(setup.blocks, head_trains=False, lr=setup.space.lr)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    study.enqueue_trial(genes | {"lr": 2e-3})
    study.enqueue_trial(genes | {"lr": 2e-3, "gene.threshold": 0.0})
    study.optimize(Objective(dataclasses.replace(setup, space=paper)), n_trials=2)
    assert study.trials[0].state == TrialState.PRUNED
    assert "runs" not in study.trials[0].user_attrs
    assert study.trials[1].state == TrialState.COMPLETE


def test_a_stop_abandons_the_trial(setup: Setup) -> None:
    class StopNow(Exception):
        pass

    def checkpoint() -> None:
        raise StopNow

    study = new_study(setup)
    with pytest.raises(StopNow):
        study.optimize(Objective(setup, checkpoint=checkpoint), n_trials=1)
    assert study.trials[0].state == TrialState.FAIL


def test_modes_and_training_genes_reach_the_training_and_are_stored(tmp_path: Path) -> None:
    """One trial of a short training, whose average of weights and moving norms are seen."""
    spec = tiny_spec(genes=("mode", "length", "ema"), n_seeds=1, train=TrainSettings(epochs=2))
    setup = prepare(spec, device="cpu", cache_dir=tmp_path)
    n = setup.space.n_blocks
    recipe = Recipe.from_multipliers(
        setup.blocks,
        [0.0, *[1.0] * (n - 1)],
        lr=2e-3,
        modes=["full", *["norms"] * (n - 2), "full"],
        training={"length": 2.0, "ema": 0.9},
    )
    study = new_study(setup)
    study.enqueue_trial(setup.space.encode(recipe).params)
    study.optimize(Objective(setup), n_trials=1)
    trial = study.trials[0]
    assert len(trial.intermediate_values) == 4, "twice as long"
    stored = TrialRecord(trial).recipe
    assert dict(stored.training) == {"length": 2.0, "ema": 0.9}
    assert set(stored.modes.values()) == {"norms"}
    vectors = sum(
        setup.loaded.model.get_parameter(name).numel()
        for i, block in enumerate(setup.blocks)
        for name in block.parameter_names
        if i == n - 1 or (i and setup.loaded.model.get_parameter(name).ndim <= 1)
    )
    total = sum(p.numel() for p in setup.loaded.model.parameters())
    assert trial.user_attrs[TRAINABLE_KEY] == pytest.approx(100 * vectors / total, abs=1e-3)
