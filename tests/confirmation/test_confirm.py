"""Confirmation: its trainings on fresh seeds, the one look at the test set, and the winner."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import timm
import torch
from threadpoolctl import threadpool_limits

from biotune_optuna.confirmation.calibrate import calibrations
from biotune_optuna.confirmation.confirm import confirm, train_winner
from biotune_optuna.confirmation.plan import ConfirmPlan
from biotune_optuna.confirmation.record import Confirmation, Contender, trainings
from biotune_optuna.confirmation.winner import check_export, export_winner
from biotune_optuna.errors import BioTuneError, StudyError
from biotune_optuna.export import load_exported
from biotune_optuna.finetune import metrics
from biotune_optuna.finetune.results import RunResult
from biotune_optuna.finetune.trainer import Trainer
from biotune_optuna.recipe import Recipe
from biotune_optuna.report.view import as_view
from biotune_optuna.report.words import cost_sentences, verdict
from biotune_optuna.sampler.sampler import BioTuneSampler
from biotune_optuna.schema import RecipeSummary, TrialRecord
from biotune_optuna.study.objective import Objective
from biotune_optuna.study.setup import Setup
from biotune_optuna.study.study import TuningStudy
from tests.kit.lab import Lab, evolve
from tests.kit.lab import confirm as drawn

PLAN = ConfirmPlan(top_k=2, n_runs=2, rates=(1e-3, 1e-2), more_rates=0, members=2)


def copy_of(study: TuningStudy) -> TuningStudy:
    storage = optuna.storages.InMemoryStorage()
    optuna.copy_study(
        from_study_name=study.study.study_name,
        from_storage=study.study._storage,
        to_storage=storage,
    )
    return TuningStudy(optuna.load_study(study_name=None, storage=storage), study.setup)


@pytest.fixture(scope="module")
def first_search(setup: Setup) -> TuningStudy:
    study = optuna.create_study(
        direction="maximize", sampler=BioTuneSampler(space=setup.space, seed=0)
    )
    study.optimize(Objective(setup), n_trials=4)
    return TuningStudy(study, setup)


@pytest.fixture(scope="module")
def first_confirmation(first_search: TuningStudy) -> TuningStudy:
    study = copy_of(first_search)
    with pytest.MonkeyPatch.context() as patch:
        lose_probe(patch)
        confirm(study, PLAN)
    return study


def lose_probe(patch: pytest.MonkeyPatch) -> None:
    """Have no fitted probe win, which would have one member."""
    fit = Trainer.fit

    def lost(self: Trainer, recipe: Recipe, *args: Any, **options: Any) -> RunResult:
        result = fit(self, recipe, *args, **options)
        result.score -= recipe.fitted
        return result

    patch.setattr(Trainer, "fit", lost)


@pytest.fixture
def searched(first_search: TuningStudy) -> TuningStudy:
    """A study of four trials."""
    return copy_of(first_search)


@pytest.fixture
def confirmed(first_confirmation: TuningStudy) -> TuningStudy:
    """A study that was confirmed with ``PLAN``; what its trainer holds is another model."""
    study = copy_of(first_confirmation)
    study.setup.trainer.reset(7)
    return study


@pytest.fixture
def lost_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    lose_probe(monkeypatch)


@pytest.mark.usefixtures("lost_probe")
def test_confirmation_end_to_end(searched: TuningStudy) -> None:
    result = confirm(searched, PLAN)
    setup = searched.setup
    assert [c.method for c in result.rivals] == ["full", "linear-probe"]
    assert len(result.candidates) == 2
    for entry in result.contenders:
        assert len(entry.scores) == 2
        assert entry.mean == pytest.approx(sum(entry.scores) / 2)
    full, probe = result.rivals
    assert full.grid is not None
    assert [point["lr"] for point in full.grid] == [1e-3, 1e-2]
    assert full.search_value == max(point["value"] for point in full.grid)
    assert (probe.grid, probe.recipe.fitted, probe.backward) == (None, True, 0)
    names = [test.name for test in result.tests]
    assert names[-1] == result.winner.name
    assert {"full", "linear-probe"} <= set(names)
    assert result.ensemble is not None
    assert (result.members, result.ensemble.name) == (2, result.chosen)
    for test in (*result.tests, result.ensemble):
        assert test.low <= test.score <= test.high
        assert test.n == len(setup.splits.test)
    assert [test.confusion for test in result.tests] == [None] * len(names)
    assert result.model_test == result.ensemble
    assert result.ensemble.confusion is not None
    assert sum(map(sum, result.ensemble.confusion)) == len(setup.splits.test)
    assert result.gain is not None
    assert result.gain.difference == pytest.approx(result.ensemble.score - result.tests[-1].score)
    trusted = result.calibration
    assert trusted is not None
    assert trusted.n == len(setup.splits.val)
    assert sum(n for n, _, _ in trusted.bins_after) == len(setup.splits.test)
    single, together = (calibrations(searched, result)[kind] for kind in ("single", "members"))
    assert len(single.right) == PLAN.n_runs * trusted.n
    assert together.temperature == trusted.temperature != single.temperature
    looks = searched.study.user_attrs["test_looks"]
    assert [look["what"] for look in looks] == names
    assert set(result.paired) == set(names[:-1])
    ledger = trainings(searched.study.user_attrs).values()
    assert len(ledger) == 1 * 2 + 4 * 2
    spent = [*ledger, *result.final_training.values()]
    spent += [TrialRecord(trial) for trial in searched.study.trials]
    view = as_view(searched.study)
    assert view.passes == tuple(
        sum(getattr(record, key) for record in spent) for key in ("forward", "backward")
    )
    drawn = keys(drawn_confirmation())
    assert keys(result.to_dict()) == drawn, "the report's tests draw another record"
    assert Confirmation.of(searched.study.user_attrs) == result
    assert keys(looks) == {"time", "what"}


def keys(value: object, path: str = "") -> set[str]:
    """Paths of all keys within a record, as ``"tests.score"``."""
    if isinstance(value, list):
        return set().union(*(keys(item, path) for item in value))
    if not isinstance(value, dict):
        return {path} - {""}
    if path in ("final_training", "tests.metrics", "ensemble.metrics") or path.endswith(
        "multipliers"
    ):
        return {path}  # of names and data
    value = {name: one for name, one in value.items() if name != "fitted"}  # where it is true
    return set().union(*(keys(item, f"{path}.{key}".strip(".")) for key, item in value.items()))


def drawn_confirmation() -> dict[str, object]:
    """What the report's tests take for a confirmation."""
    study = optuna.create_study(direction="maximize")
    with threadpool_limits(1):
        lab = Lab()
        evolve(lab, study, 5)
        return drawn(lab, study)


def test_the_search_alone_can_be_confirmed(searched: TuningStudy) -> None:
    result = confirm(searched, ConfirmPlan(top_k=2, n_runs=1, rivals=(), members=1))
    assert not result.rivals
    assert result.ensemble is None
    assert result.model_test == result.winner_test
    assert result.tests[-1].confusion is not None
    assert not result.paired
    (test,) = result.tests
    best = max(result.candidates, key=lambda c: c.mean)
    assert test.name == result.winner.name == best.name
    splits = searched.setup.splits
    passes = (len(splits.train) + len(splits.val)) * best.final_epochs
    cost = result.final_training[best.name]
    assert cost.forward == cost.backward == passes
    looks = searched.study.user_attrs["test_looks"]
    assert len(looks) == 1
    with pytest.raises(StudyError, match="'lora'"):
        ConfirmPlan(rivals=("lora",))


def test_exact_ties_leave_one_model_to_test(searched: TuningStudy) -> None:
    plan = ConfirmPlan(top_k=2, n_runs=1, rivals=(), members=1)
    confirm(searched, plan)
    ledger = {
        name: record.to_dict() | {"score": 0.5, "backward": 0 if number else 10**6}
        for number, (name, record) in enumerate(trainings(searched.study.user_attrs).items())
    }  # the second is the cheaper
    tied = TuningStudy(optuna.create_study(direction="maximize"), searched.setup)
    tied.study.add_trials(searched.study.trials)
    tied.study.set_user_attr("confirm_trainings", ledger)  # as it was once kept
    result = confirm(tied, plan)
    assert [c.mean for c in result.candidates] == [0.5, 0.5]
    assert result.winner == result.candidates[1]
    assert [test.name for test in result.tests] == [result.winner.name]


def test_trials_that_end_during_a_confirmation_are_left_to_the_next(searched: TuningStudy) -> None:
    class OneMore:
        def trial_started(self, trial: object) -> None: ...
        def epoch(self, run: object, record: object) -> None: ...
        def stage(self, name: str, detail: str, done: int, total: int) -> None:
            if done == 0:
                best = searched.study.best_trial
                searched.study.add_trial(
                    optuna.trial.create_trial(
                        params={**best.params, "lr": 2e-3},
                        distributions=best.distributions,
                        value=2.0,
                        user_attrs=best.user_attrs,
                    )
                )

    n = len(searched.study.trials)
    result = confirm(searched, PLAN, observer=OneMore())
    assert len(searched.study.trials) == n + 1
    assert f"trial {n}" not in {c.name for c in result.candidates}
    again = confirm(searched, PLAN)
    names = {c.name for c in again.candidates}
    assert names > {c.name for c in result.candidates}, "once confirmed, always a contender"
    assert f"trial {n}" in names


def test_a_late_result_is_no_reason_to_look_again(confirmed: TuningStudy) -> None:
    """As of a trial that was declared dead while its worker slept, told after the end."""
    stored, looks = (dict(confirmed.study.user_attrs)[key] for key in ("confirm", "test_looks"))
    best = confirmed.study.best_trial
    confirmed.study.add_trial(
        optuna.trial.create_trial(
            value=1.0,
            params={**best.params, "lr": best.params["lr"] * 0.9},
            distributions=best.distributions,
            system_attrs={"biotune:late_result_of": 0},
        )
    )
    assert confirm(confirmed, PLAN).to_dict() == Confirmation.from_dict(stored).to_dict()
    assert confirmed.study.user_attrs["test_looks"] == looks
    assert as_view(confirmed.study).unconfirmed is None


def test_a_second_confirmation_does_not_look_again(
    confirmed: TuningStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = Confirmation.of(confirmed.study.user_attrs)
    looks = len(confirmed.study.user_attrs["test_looks"])

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained or predicted again")

    monkeypatch.setattr(type(confirmed.setup.trainer), "fit", refuse)
    monkeypatch.setattr(type(confirmed.setup.trainer), "predict", refuse)
    assert confirm(confirmed, PLAN) == result
    assert len(confirmed.study.user_attrs["test_looks"]) == looks


def test_an_interrupted_confirmation_goes_on(searched: TuningStudy) -> None:
    class Stop(Exception):
        pass

    begun = 0

    class StopAtFive:
        def trial_started(self, trial: object) -> None: ...
        def epoch(self, run: object, record: object) -> None: ...
        def stage(self, name: str, detail: str, done: int, total: int) -> None:
            nonlocal begun
            begun += 1
            if begun == 6:
                raise Stop

    with pytest.raises(Stop):
        confirm(searched, PLAN, observer=StopAtFive())
    ledger = trainings(searched.study.user_attrs)
    assert len(ledger) == 5
    result = confirm(searched, PLAN)
    after = trainings(searched.study.user_attrs)
    assert {key: after[key] for key in ledger} == ledger
    assert result.seconds > sum(record.seconds for record in after.values())
    assert len(after) == 1 * 2 + 4 * 2
    fresh = TuningStudy(optuna.create_study(direction="maximize"), searched.setup)
    fresh.study.add_trials(searched.study.trials)
    again = confirm(fresh, PLAN)
    assert again.chosen == result.chosen
    assert again.tests == result.tests


def test_two_confirmations_at_once_share_their_trainings(searched: TuningStudy) -> None:
    trained: list[str] = []
    other: list[Confirmation] = []

    class OtherIsFaster:
        """Another process confirms everything while the third training runs here."""

        def trial_started(self, trial: object) -> None: ...

        def epoch(self, run: object, record: object) -> None: ...

        def stage(self, name: str, detail: str, done: int, total: int) -> None:
            trained.append(name)
            if len(trained) == 3:
                other.append(confirm(TuningStudy(searched.study, searched.setup), PLAN))

    result = confirm(searched, PLAN, observer=OtherIsFaster())
    assert [result] == other
    assert "final training" not in trained
    tests = [test.name for test in result.tests]
    assert [look["what"] for look in searched.study.user_attrs["test_looks"]] == tests
    assert len(trainings(searched.study.user_attrs)) == 1 * 2 + 4 * 2


def test_who_trains_on_which_seed_at_which_rate(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates are chosen on the search's first seed, contenders compared on seeds it never used."""
    study = TuningStudy(optuna.create_study(direction="maximize"), setup)
    study.study.sampler = BioTuneSampler(space=setup.space, seed=0)
    study.study.optimize(Objective(setup), n_trials=2)
    runs, fit = [], Trainer.fit

    def noted(
        self: Trainer, recipe: Recipe, train: Any, val: Any = None, *, seed: int, **options: Any
    ) -> RunResult:
        result = fit(self, recipe, train, val, seed=seed, **options)
        runs.append((recipe, seed))
        if len(runs) == 2:  # the second of three rates
            result.score = 0.99
        return result

    monkeypatch.setattr(Trainer, "fit", noted)
    result = confirm(study, ConfirmPlan(top_k=2, n_runs=2, rates=(1e-3, 1e-2, 3e-2), members=2))
    seeds = [seed for _, seed in runs]
    assert seeds[:3] == [setup.spec.search_runs()[0].seed] * 3
    assert seeds[3:11] == [run.seed for run in setup.spec.confirm_runs(2)] * 4
    assert not set(seeds[:3]) & set(seeds[3:])
    assert {recipe.weight_decay for recipe, _ in runs} == {setup.space.base_weight_decay}
    assert result.rivals[0].recipe.lr == 1e-2
    assert [recipe.lr for recipe, _ in runs[7:9]] == [1e-2] * 2
    assert [recipe.fitted for recipe, _ in runs[9:11]] == [True] * 2
    scores = {test.name: test.score for test in result.tests}
    for other, pair in result.paired.items():
        assert pair.difference == pytest.approx(scores[result.chosen] - scores[other])
    assert any(pair.difference for pair in result.paired.values())


def test_a_linear_probe_that_wins_is_exported_as_it_was_tested(
    searched: TuningStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Trainer.fit

    def kind(self: Trainer, recipe: Recipe, *args: Any, **options: Any) -> RunResult:
        result = fit(self, recipe, *args, **options)
        result.score = 0.9 if recipe.fitted else 0.1
        return result

    monkeypatch.setattr(Trainer, "fit", kind)
    result = confirm(searched, PLAN)
    assert result.winner.name == "linear-probe"
    setup = searched.setup
    tested = setup.trainer.predict(setup.splits.test)
    setup.trainer.reset(7)
    folder = export_winner(TuningStudy(searched.study, setup), tmp_path / "model")
    assert (setup.trainer.predict(setup.splits.test) == tested).all()
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.inference_mode():
        logits = model(setup.images.batch(setup.splits.test)).softmax(1).numpy()
    np.testing.assert_allclose(logits, tested, atol=1e-5)
    head, trunk = setup.blocks[-1].parameter_names, setup.blocks[0].parameter_names
    states = dict(model.named_parameters()), setup.trainer.model.state_dict()
    for name in (*head, *trunk):
        assert torch.equal(states[0][name], states[1][name])
    assert Recipe.load(folder / "recipe.json").fitted
    card = (folder / "README.md").read_text()
    assert "fitted by logistic regression" in card
    assert "has one member, and no members that could disagree" in card
    loaded = load_exported(folder, device="cpu")
    assert loaded.calibration == calibrations(searched, result)["single"]
    assert result.calibration is not None
    assert result.calibration.temperature == loaded.calibration.temperature != 1
    (row,) = loaded.predict(setup.source.load(int(setup.splits.test[0])))
    assert row.disagreement is None
    view = as_view(searched.study)
    assert "has one member" in " ".join(verdict(view).sentences)


def test_a_probe_that_was_trained_by_steps_is_rebuilt_so(searched: TuningStudy) -> None:
    """Older versions stored a linear probe with its rate under the name that a fitted one has."""
    setup, recipe = searched.setup, Recipe.linear_probe(searched.setup.blocks, lr=1e-2)
    old = Contender(
        name="linear-probe",
        method="linear-probe",
        recipe=RecipeSummary(recipe.lr, recipe.weight_decay, recipe.multipliers),
        best_epochs=(1,),
    )
    assert "fitted" not in old.to_dict()["recipe"]
    assert Contender.from_dict(old.to_dict()).rebuild(setup.blocks) == recipe


@pytest.mark.usefixtures("lost_probe")
def test_the_winner_is_the_model_that_was_tested(
    searched: TuningStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = confirm(searched, PLAN)
    trainer, index = searched.setup.trainer, searched.setup.splits.test
    tested = trainer.predict(index)
    fits: list[Any] = []
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda *a, **k: fits.append(a) or fit(*a, **k))
    trainer.fit(Recipe.full(searched.setup.blocks, lr=1e-3), [0, 1, 2], seed=0)
    here = train_winner(searched)
    assert len(fits) == 1, "what this process has trained is not trained again"
    assert (trainer.predict(index) == tested).all()
    elsewhere = train_winner(TuningStudy(searched.study, searched.setup))
    assert len(fits) == 1 + PLAN.members
    assert (trainer.predict(index) == tested).all()
    for winner in (here, elsewhere):
        assert winner.recipe.multipliers == result.winner.recipe.multipliers
        assert len(winner.members) == PLAN.members
    for one, other in zip(here.members, elsewhere.members, strict=True):
        assert one.keys() == other.keys()
        assert all(tensor.equal(other[name]) for name, tensor in one.items())


@pytest.mark.usefixtures("lost_probe")
def test_the_export_predicts_what_was_tested(searched: TuningStudy, tmp_path: Path) -> None:
    result = confirm(searched, PLAN)
    setup = searched.setup
    folder = export_winner(searched, tmp_path / "all")
    alone = export_winner(searched, tmp_path / "one", single=True)
    images = [setup.source.load(int(i)) for i in setup.splits.test]
    labels = setup.source.labels[setup.splits.test]

    def score(folder: Path, *, single: bool = False) -> float:
        found = load_exported(folder, device="cpu", single=single).predict(images)
        probs = np.stack([one.probabilities for one in found])
        return metrics.score(result.metric, labels, probs, len(setup.classes))

    assert result.ensemble is not None
    assert score(folder) == pytest.approx(result.ensemble.score)
    kept = calibrations(searched, result)
    for single, kind in ((False, "members"), (True, "single")):
        assert load_exported(folder, device="cpu", single=single).calibration == kept[kind]
    told = (folder / "README.md").read_text()
    assert "With its 2 members" in told
    assert "With its 2 members" in " ".join(cost_sentences(as_view(searched.study)))
    assert "members" not in (alone / "README.md").read_text().partition("## Metrics")[0]
    assert load_exported(alone, device="cpu").calibration == kept["single"]
    assert score(folder, single=True) == score(alone) == pytest.approx(result.tests[-1].score)
    assert {file.name for file in folder.iterdir()} - {file.name for file in alone.iterdir()} == {
        "members.safetensors",
        "members.json",
    }
    export_winner(searched, folder, single=True)
    assert not (folder / "members.json").exists(), "it was asked for otherwise"


def test_an_export_is_made_again_only_where_another_model_lies(
    confirmed: TuningStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = export_winner(confirmed, tmp_path) / "model.safetensors"
    tuned = weights.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            "biotune_optuna.confirmation.winner.train_winner", None
        )  # would be called and fail
        export_winner(confirmed, tmp_path)
    weights.write_bytes(tuned[:-4] + b"else")  # another study's, say
    export_winner(confirmed, tmp_path)
    assert weights.read_bytes() == tuned
    (tmp_path / "members.json").unlink()
    (tmp_path / "members.safetensors").unlink()
    export_winner(confirmed, tmp_path)
    assert (tmp_path / "members.safetensors").exists()


def test_a_model_of_other_images_is_left_alone(
    confirmed: TuningStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export_winner(confirmed, tmp_path / "m")
    before = (folder / "model.safetensors").stat()
    spec = confirmed.setup.spec
    other = dataclasses.replace(spec, fingerprints=spec.fingerprints | {"data": "others"})
    monkeypatch.setattr(confirmed, "setup", dataclasses.replace(confirmed.setup, spec=other))
    confirmed.study.set_user_attr("model_dir", None)  # as a study of another database has
    monkeypatch.setattr(
        "biotune_optuna.confirmation.winner.train_winner", None
    )  # would be called and fail
    for refused in (check_export, export_winner):
        with pytest.raises(BioTuneError, match="holds a model of other images"):
            refused(confirmed, folder)
    assert (folder / "model.safetensors").stat() == before


def test_an_export_says_what_was_not_confirmed(
    confirmed: TuningStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    n = len(confirmed.study.trials)
    export_winner(confirmed, tmp_path)
    assert "Confirmed on" not in caplog.text
    confirmed.study.add_trial(optuna.trial.create_trial(value=0.99))
    export_winner(confirmed, tmp_path)
    assert f"Confirmed on {n} of {n + 1} trials; run the same tune or demo" in caplog.text


def test_a_folder_with_something_else_is_refused_before_training(
    confirmed: TuningStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(
        "biotune_optuna.confirmation.winner.train_winner", None
    )  # would be called and fail
    with pytest.raises(BioTuneError, match=r"holds notes\.txt"):
        export_winner(confirmed, tmp_path)


def test_a_contender_that_did_not_win_is_exported_as_it_was_tested(
    confirmed: TuningStudy, tmp_path: Path
) -> None:
    result, setup = Confirmation.of(confirmed.study.user_attrs), confirmed.setup
    before = dict(confirmed.study.user_attrs)
    what = "full" if result.chosen != "full" else "probe"
    name = {"full": "full", "probe": "linear-probe"}[what]
    folder = export_winner(confirmed, tmp_path / "rival", what=what)
    assert confirmed.study.user_attrs == before, "the winner stays what it is"
    tested = result.test(name)
    assert tested is not None
    images = [setup.source.load(int(i)) for i in setup.splits.test]
    found = load_exported(folder, device="cpu", single=True).predict(images)
    labels = setup.source.labels[setup.splits.test]
    probs = np.stack([one.probabilities for one in found])
    score = metrics.score(result.metric, labels, probs, len(setup.classes))
    assert score == pytest.approx(tested.score)
    card = (folder / "README.md").read_text()
    assert f"asked for; the confirmation chose {result.chosen}" in card


def test_a_contender_is_trained_where_it_was_not_confirmed(
    searched: TuningStudy, tmp_path: Path
) -> None:
    folder = export_winner(searched, tmp_path / "trial", what="trial:0", single=True)
    trial = searched.study.trials[0]
    recipe = Recipe.load(folder / "recipe.json")
    assert recipe.key() == searched.setup.space.genome(trial.params).decode().key()
    trained = trainings(searched.study.user_attrs)
    assert len(trained) == ConfirmPlan().n_runs
    assert all(name.startswith("trial 0 |") for name in trained)
    assert not Confirmation.of(searched.study.user_attrs), "nothing was confirmed"
    assert "test_looks" not in searched.study.user_attrs


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("trial:99", "has no finished trial 99; it has finished 0, 1, 2, 3"),
        ("trial:x", "there is no 'trial:x' to export; give best, full, probe or trial:N"),
        ("lora", "give best, full, probe or trial:N"),
        ("best", "no confirmed winner"),
    ],
)
def test_what_cannot_be_exported_is_said(
    searched: TuningStudy, tmp_path: Path, what: str, said: str
) -> None:
    with pytest.raises(StudyError, match=said):
        export_winner(searched, tmp_path / "model", what=what)


def test_nothing_to_confirm_is_said(setup: Setup) -> None:
    empty = TuningStudy(optuna.create_study(direction="maximize"), setup)
    with pytest.raises(StudyError, match="no finished trial"):
        confirm(empty)
    with pytest.raises(StudyError, match="no confirmed winner"):
        train_winner(empty)


def test_the_best_by_value_is_confirmed_whatever_the_model_believes(confirmed: TuningStudy) -> None:
    result = Confirmation.of(confirmed.study.user_attrs)
    assert result is not None
    names = [c.name for c in result.candidates]
    assert f"trial {confirmed.study.best_trial.number}" in names
    assert len(set(names)) == len(names) == PLAN.top_k
