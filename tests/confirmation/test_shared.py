"""Workers share the trainings of a confirmation, and it is the same as one makes alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest

from biotune_optuna.confirmation.confirm import confirm, help_confirm, train_winner
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.record import Confirmation
from biotune_optuna.confirmation.shared import Sharing
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.schema import CELL_KEY
from biotune_optuna.storage.open import open_storage
from biotune_optuna.study.board import board_of, study_names
from biotune_optuna.study.kept import KeptWeights, digest_of
from biotune_optuna.study.objective import Objective
from biotune_optuna.study.setup import Setup, prepare
from biotune_optuna.study.study import TuningStudy
from tests.kit.processes import in_child, start_child
from tests.kit.studies import tiny_spec

RIVALS = ("full",)  # a fitted probe has one member
PLAN = ConfirmPlan(top_k=2, n_runs=2, rates=(1e-3, 1e-2), more_rates=0, members=2, rivals=RIVALS)
TIMES = {"seconds", "time"}


def load(url: str, setup: Setup, weights: Path) -> tuple[TuningStudy, Sharing]:
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    sharing = Sharing.of(study)
    assert sharing is not None
    sharing.weights = KeptWeights(weights)
    return TuningStudy(study, setup), sharing


@pytest.fixture(scope="module")
def searched(setup: Setup) -> optuna.Study:
    study = optuna.create_study(
        study_name="s", direction="maximize", sampler=BioTuneSampler(space=setup.space, seed=0)
    )
    study.optimize(Objective(setup), n_trials=4)
    return study


@pytest.fixture(scope="module")
def alone(searched: optuna.Study, setup: Setup) -> dict[str, Any]:
    """What one worker finds, without a board."""
    copied = optuna.storages.InMemoryStorage()
    optuna.copy_study(from_study_name="s", from_storage=searched._storage, to_storage=copied)
    study = TuningStudy(optuna.load_study(study_name="s", storage=copied), setup)
    return without_times(confirm(study, PLAN).to_dict())


@pytest.fixture
def shared_url(searched: optuna.Study, url: str) -> str:
    optuna.copy_study(
        from_study_name="s", from_storage=searched._storage, to_storage=open_storage(url)
    )
    return url


def without_times(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: without_times(one) for key, one in tree.items() if key not in TIMES}
    return [without_times(one) for one in tree] if isinstance(tree, list) else tree


def trained_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seeds: list[int] = []
    fit = Trainer.fit

    def count(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        seeds.append(kwargs["seed"])
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "fit", count)
    return seeds


def parts(study: TuningStudy) -> list[str]:
    """Names of the finished parts, each as often as it was finished."""
    trials = board_of(study.study).study.trials
    return [t.user_attrs[CELL_KEY] for t in trials if t.state.name == "COMPLETE"]


def test_what_a_helper_has_trained_nobody_trains_again(
    shared_url: str,
    setup: Setup,
    tmp_path: Path,
    alone: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, sharing = load(shared_url, setup, tmp_path / "w")
    help_confirm(study, PLAN, sharing)
    assert not Confirmation.of(study.study.user_attrs)  # one worker tests, and it is another one
    assert not study.study.user_attrs.get("test_looks")
    seeds = trained_here(monkeypatch)
    study, sharing = load(shared_url, setup, tmp_path / "w")
    assert without_times(confirm(study, PLAN, sharing=sharing).to_dict()) == alone
    assert len(train_winner(study).members) == 2
    assert not seeds
    done = parts(study)
    assert len(done) == len(set(done))
    help_confirm(study, PLAN, sharing)  # nothing is left
    sharing.forget_weights()
    assert not list((tmp_path / "w").iterdir())


def test_weights_that_are_not_to_be_had_are_made_again(
    shared_url: str,
    setup: Setup,
    tmp_path: Path,
    alone: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, sharing = load(shared_url, setup, tmp_path / "there")
    help_confirm(study, PLAN, sharing)
    seeds = trained_here(monkeypatch)
    study, sharing = load(shared_url, setup, tmp_path / "here")  # a host with a cache of its own
    assert without_times(confirm(study, PLAN, sharing=sharing).to_dict()) == alone
    assert seeds  # the final trainings, and nothing else
    assert set(seeds) <= set(setup.spec.final_seeds(5))


def claimed_and_killed(url: str, cache: Path) -> None:
    study, sharing = load(url, prepare(tiny_spec(), device="cpu", cache_dir=cache), cache / "w")

    def die(self: Trainer, *_args: Any, **_kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Trainer.fit = die  # type: ignore[method-assign, assignment]
    help_confirm(study, PLAN, sharing)


def test_a_training_lost_with_its_worker_is_taken_over(
    shared_url: str, setup: Setup, cache_dir: Path, tmp_path: Path, alone: dict[str, Any]
) -> None:
    assert in_child(claimed_and_killed, shared_url, cache_dir) == signal.SIGKILL
    study, sharing = load(shared_url, setup, tmp_path / "w")
    assert without_times(confirm(study, PLAN, sharing=sharing).to_dict()) == alone
    trials = sharing.board.study.trials
    assert [t.system_attrs["biotune:ended"] for t in trials if t.state.name == "FAIL"] == ["lost"]
    assert trials[0].user_attrs[CELL_KEY] in parts(study)


def helps(url: str, cache: Path) -> None:
    study, sharing = load(url, prepare(tiny_spec(), device="cpu", cache_dir=cache), cache / "w")
    help_confirm(study, PLAN, sharing)


def test_two_processes_at_once_train_nothing_twice(
    shared_url: str, setup: Setup, cache_dir: Path, alone: dict[str, Any]
) -> None:
    child = start_child(helps, shared_url, cache_dir)
    study, sharing = load(shared_url, setup, cache_dir / "w")
    assert without_times(confirm(study, PLAN, sharing=sharing).to_dict()) == alone
    child.join()
    assert child.exitcode == 0
    done = parts(study)
    assert len(done) == len(set(done))


def test_something_is_done_once(shared_url: str, setup: Setup, tmp_path: Path) -> None:
    _, sharing = load(shared_url, setup, tmp_path)
    _, other = load(shared_url, setup, tmp_path)
    done: list[str] = []
    assert sharing.once("end", lambda: done.append("one"), lambda: None)
    assert not other.once("end", lambda: done.append("two"), lambda: None)
    assert done == ["one"]
    with pytest.raises(ZeroDivisionError):
        other.once("another", lambda: 1 / 0, lambda: None)  # type: ignore[arg-type, return-value]
    assert sharing.once("another", lambda: done.append("three"), lambda: None)


def test_a_board_is_no_study_of_the_users(shared_url: str, setup: Setup, tmp_path: Path) -> None:
    study, _ = load(shared_url, setup, tmp_path)
    assert study_names(study.study._storage) == ["s"]
    assert len(study.study._storage.get_all_studies()) == 2


def test_a_study_in_memory_is_shared_with_nobody(searched: optuna.Study) -> None:
    assert Sharing.of(searched) is None


def test_a_plan_is_read_as_it_was_written() -> None:
    import json

    assert ConfirmPlan.from_dict(json.loads(json.dumps(PLAN.to_dict())) | {"new": 1}) == PLAN


def test_damaged_weights_are_none(tmp_path: Path) -> None:
    import torch

    changed = {"a": torch.arange(4.0), "n": torch.tensor(3)}
    kept = KeptWeights(tmp_path / "w")
    digest = kept.put(changed)
    assert digest == digest_of(changed) != digest_of({"a": torch.arange(4.0)})
    found = kept.get(digest)
    assert found is not None
    assert all(found[name].equal(changed[name]) for name in changed)
    (file,) = (tmp_path / "w").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert kept.get(digest) is None
    assert kept.get("0" * 64) is None


def test_a_claim_that_was_lost_meanwhile_ends_nobody(url: str) -> None:
    """As after a sleep that was longer than a lease: somebody else has the training."""
    study = optuna.create_study(study_name="lost", storage=open_storage(url))
    sharing = Sharing.of(study)
    assert sharing is not None
    trial = sharing.board.claim("full | 1")
    assert trial is not None
    with sharing.held(trial):
        study._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
        sharing.board.finish(trial, {"score": 0.9}, 0.9)
    assert sharing.board.look().done == {}
    assert sharing.board.claim("full | 1") is not None


@pytest.mark.parametrize("digest", ["../victim", "/victim", "victim", "A" * 64])
def test_no_text_of_a_database_names_another_file(tmp_path: Path, digest: str) -> None:
    victim = tmp_path / "victim.safetensors"
    victim.write_bytes(b"x")
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / f"{'A' * 64}.safetensors").write_bytes(b"x")
    digest = digest.replace("/victim", f"{tmp_path}/victim") if digest[0] == "/" else digest
    kept = KeptWeights(folder)
    kept.drop(digest)
    assert kept.get(digest) is None
    assert victim.exists()
    assert (folder / f"{'A' * 64}.safetensors").exists()
