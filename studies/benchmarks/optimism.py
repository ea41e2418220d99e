"""What confirmation changes: how far the value that a study reports lies above the test.

For each study seed (a fresh stratified split, a search, a confirmation) two ways of choosing are
compared on the same search. Without confirmation the recipe with the best search value is chosen
and that value reported. With it, the winner on fresh seeds is chosen and its confirmed mean
reported. Both are trained on training and validation images and tested on the same test images.

    python studies/benchmarks/optimism.py --data FOLDER --seeds 10

Studies are kept in an SQLite file; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from _parts import kept

from biotune_optuna import (
    ConfirmPlan,
    Recipe,
    StudySpec,
    TrainSettings,
    TuningStudy,
    confirm,
    create_study,
)
from biotune_optuna.compare.statistics import mean_interval
from biotune_optuna.finetune.metrics import score
from biotune_optuna.finetune.results import epochs_of_final_run
from biotune_optuna.page.parts import Markdown, Table, markdown

KEY = "optimism"
TEST_FRACTION = 0.5


def main() -> None:
    """Runs the studies that are missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="folder with a folder per class")
    parser.add_argument("--about", default="", help="what the data are, for the page")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", type=int, nargs="*", help="run these seeds, write no table")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--storage", default="sqlite:///optimism.db")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/optimism.md"))
    args = parser.parse_args()
    seeds = args.only if args.only is not None else range(args.seeds)
    rows = [one_study(args, seed) for seed in seeds]
    if args.only is None:
        others = kept(args.out)
        args.out.write_text(f"{page(rows, args)}\n{others}".rstrip() + "\n", encoding="utf-8")
        print(args.out)


def one_study(args: argparse.Namespace, seed: int) -> dict[str, float]:
    """One search and both ways of choosing; the result is kept in the study."""
    study = create_study(
        StudySpec(
            model="tf_efficientnet_lite0",
            data=args.data,
            image_size=64,
            train_size=300,
            val_size=100,
            test_fraction=TEST_FRACTION,
            n_seeds=1,
            lr=(1e-3, 3e-2),
            train=TrainSettings(epochs=6),
            seed=seed,
        ),
        storage=args.storage,
        name=f"optimism-{Path(args.data).name}-{seed}",
    )
    known = study.study.user_attrs.get(KEY)
    if known:
        return dict(known)
    study.search(args.trials)
    result = confirm(study, ConfirmPlan(top_k=3, n_runs=3))
    tests = {test.name: test.score for test in result.tests}
    winner = result.winner
    row = {
        "seed": seed,
        "search": study.study.best_value,
        "search_test": test_of_best_trial(study),
        "confirmed": winner.mean,
        "confirmed_test": tests[winner.name],
        "winner_is_rival": float(winner.is_rival),
        "full_test": tests["full"],
    }
    study.study.set_user_attr(KEY, row)
    print(json.dumps(row), flush=True)
    return row


def test_of_best_trial(study: TuningStudy) -> float:
    """Test score of the recipe with the best search value, trained for its best epoch."""
    setup, trial = study.setup, study.study.best_trial
    recipe: Recipe = setup.space.genome(trial.params).decode()
    splits = setup.splits
    epochs = epochs_of_final_run([run["best_epoch"] for run in trial.user_attrs["runs"]])
    images = np.concatenate([splits.train, splits.val])
    setup.trainer.fit(recipe, images, None, seed=study.spec.final_seeds(1)[0], epochs=epochs)
    labels = setup.source.labels[splits.test]
    return score(
        study.spec.train.metric, labels, setup.trainer.predict(splits.test), len(setup.classes)
    )


def interval(values: np.ndarray) -> str:
    """Mean and its 95 % interval; the seeds' test parts overlap."""
    mean, low, high, *_ = mean_interval(values.tolist(), ratio=TEST_FRACTION / (1 - TEST_FRACTION))
    return f"{mean:+z.3f} ({low:+z.3f} to {high:+z.3f})"


def page(rows: list[dict[str, float]], args: argparse.Namespace) -> str:
    """The table as Markdown."""
    column = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    without = column["search"] - column["search_test"]
    with_ = column["confirmed"] - column["confirmed_test"]
    gain = column["confirmed_test"] - column["search_test"]
    over_full = column["confirmed_test"] - column["full_test"]
    n_rivals = int(column["winner_is_rival"].sum())
    ways = (
        ("best search value, no confirmation", column["search"], column["search_test"], without),
        ("confirmed on fresh seeds", column["confirmed"], column["confirmed_test"], with_),
    )
    keys = ("search", "search_test", "confirmed", "confirmed_test", "full_test")
    name = Path(args.data).name
    return markdown(
        [
            Markdown(f"""
                # What confirmation changes

                {len(rows)} study seeds on `{name}`, each a fresh stratified split (300 images to
                train on, 100 to validate on, half of all images as test) and a search of
                {args.trials} trials, one training each: `tf_efficientnet_lite0`, 64 px, up to 6
                epochs. *Optimism* is the reported validation value minus the test value of the
                model it chose. Means over seeds; 95 % t intervals with the correction of Nadeau and
                Bengio, because test parts that are drawn anew from the same images overlap.
            """),
            *([Markdown(f"`{name}`: {args.about}.")] if args.about else []),
            Table(
                ("", "reported", "test", "optimism"),
                [
                    (way, f"{said.mean():.3f}", f"{test.mean():.3f}", interval(apart))
                    for way, said, test, apart in ways
                ],
            ),
            Markdown(f"""
                Difference in optimism: {interval(without - with_)}. Test value of the confirmed
                choice minus that of the best search value: {interval(gain)}. A rival was chosen in
                {n_rivals} of {len(rows)} studies. Tuned full fine-tuning has
                {column["full_test"].mean():.3f} on the test; the confirmed choice minus that:
                {interval(over_full)}.

                Before the test each model is trained again on training and validation images
                together, which lowers the measured optimism of both rows alike.
            """),
            Table(
                ("seed", "search", "its test", "confirmed", "its test", "full, test"),
                [(f"{row['seed']:.0f}", *(f"{row[key]:.3f}" for key in keys)) for row in rows],
            ),
            Markdown(
                "Made by `python studies/benchmarks/optimism.py --data FOLDER "
                f"--seeds {len(rows)} --trials {args.trials}`."
            ),
        ]
    )


if __name__ == "__main__":
    main()
