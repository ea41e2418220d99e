"""Does a ranking of networks by a linear probe agree with what fine-tuning makes of them?

For each pair of network and data: the probe's cross-validated score on the training images, LogME
(You et al., 2021) and k nearest neighbours on the same features; then what it is compared with: the
better, by validation, of two fine-tunings (lower half frozen, and full, at one rate), tested. The
linear probe by gradient steps, at the best of five rates, is tested beside the fitted one.

    python studies/benchmarks/models.py --data-root FOLDER ...

Weights: pip packages for tf_efficientnet_lite0 to lite2; networks that are pre-trained here on
USPS; and random weights, which must come last. Everything is kept in a file of JSON lines; the same
command goes on where it stopped, and writes the page from what there is.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _tasks import Task
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from biotune_optuna.finetune.metrics import score
from biotune_optuna.page.parts import Markdown, Table, markdown
from biotune_optuna.recipe import Recipe
from biotune_optuna.study.probe import linear_probe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from biotune_optuna.page.parts import Part
    from biotune_optuna.study.setup import Setup

SETS = {  # the share kept for the test; the most images tested
    "trashnet5": 0.56,
    "tomato_leaf10": 0.38,
    "neu_steel": 0.58,
    "hymenoptera": 0.3,
    "dtd10": 0.4,
    "pneumoniamnist": 0.3,
}
SIZE, TRAIN, VAL, EPOCHS, RATE, TESTED = 64, 120, 80, 4, 3e-3, 200
PROBE_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
NEIGHBOURS = 5
FIRST = (1, 2, 3, 6)  # networks of a ranking that are fine-tuned
RANDOM = "lite0, random weights"
MODELS: dict[str, tuple[str, int | None]] = {  # timm's name; pixels, where it is pre-trained here
    "lite0": ("tf_efficientnet_lite0", None),
    "lite1": ("tf_efficientnet_lite1", None),
    "lite2": ("tf_efficientnet_lite2", None),
    "resnet10t, USPS": ("resnet10t", 32),
    "test_vit, USPS": ("test_vit", 64),
    RANDOM: ("tf_efficientnet_lite0", None),
}
RANKERS = {"probe": "linear probe", "knn": "nearest neighbours", "logme": "LogME", "size": "size"}


def main() -> None:
    """Measures the pairs that are missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, nargs="+", default=[])
    parser.add_argument("--cache", type=Path, default=Path("models-cache"))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--page-only", action="store_true", help="write the page, measure nothing")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/models.md"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    file = args.cache / "models.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["data"], row["model"], row["repeat"]) for row in rows}
    for repeat in range(args.repeats if not args.page_only else 0):
        for data in SETS:
            for model in MODELS:
                if (data, model, repeat) in done:
                    continue
                rows.append(measure(data, model, repeat, args))
                with file.open("a") as stream:
                    stream.write(json.dumps(rows[-1]) + "\n")
                print(rows[-1], flush=True)
    args.out.write_text(page(rows), encoding="utf-8")
    print(args.out)


# -- one pair ----------------------------------------------------------------------------------


def measure(data: str, model: str, repeat: int, args: argparse.Namespace) -> dict[str, Any]:
    """All rankings of one network on one data set, and what fine-tuning makes of it."""
    name, pixels = MODELS[model]
    options: dict[str, Any] = {"test_fraction": SETS[data], "seed": repeat}
    if model == RANDOM:
        options["weights"] = "none"
    elif pixels is not None:
        maker = Task(name, name, data, pixels, TRAIN, VAL, "usps")
        options["weights"] = str(maker.pretrain(args.data_root, args.cache))
    task = Task(model, name, data, SIZE, TRAIN, VAL, epochs=EPOCHS, pooled=True, options=options)
    setup = task.open(args.data_root, args.cache)
    start = time.perf_counter()
    probe = linear_probe(setup)
    row: dict[str, Any] = {
        "data": data,
        "model": model,
        "repeat": repeat,
        "parameters": sum(p.numel() for p in setup.trainer.model.parameters()),
        "probe": probe.folds.value,
        "probe_val": probe.validation.value,
        "probe_seconds": time.perf_counter() - start,
    }
    labels = setup.source.labels[setup.splits.train]
    features = setup.trainer.features(setup.splits.train)
    row |= {"knn": nearest(features, labels), "logme": log_me(features, labels)}
    row |= tested_trainings(setup)
    return row


def tested_trainings(setup: Setup) -> dict[str, Any]:
    """Validation and test scores of the two fine-tunings and the two probes, and their seconds."""
    blocks, decay = setup.blocks, 0.01
    half = [0.0] * (len(blocks) // 2) + [1.0] * (len(blocks) - len(blocks) // 2)
    recipes = {
        "half": Recipe.from_multipliers(blocks, half, lr=RATE, weight_decay=decay),
        "full": Recipe.full(blocks, lr=RATE, weight_decay=decay),
        "fitted": Recipe.fitted_probe(blocks),
    }
    test, n = setup.splits.test[:TESTED], len(setup.classes)

    def run(recipe: Recipe) -> dict[str, Any]:
        start = time.perf_counter()
        result = setup.trainer.fit(recipe, *setup.splits.run(None), seed=1, keep_weights=True)
        return {"val": result.score, "seconds": time.perf_counter() - start}

    def tested(recipe: Recipe) -> dict[str, Any]:
        found = run(recipe)
        probs = setup.trainer.predict(test)
        return found | {"test": score("macro_accuracy", setup.source.labels[test], probs, n)}

    probes = [Recipe.linear_probe(blocks, lr=rate, weight_decay=decay) for rate in PROBE_RATES]
    best = max(probes, key=lambda recipe: run(recipe)["val"])
    return {name: tested(recipe) for name, recipe in (recipes | {"steps": best}).items()}


def nearest(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Macro-accuracy of the nearest neighbours by cosine, each image by all others."""
    unit = normalize(features)
    votes = KNeighborsClassifier(NEIGHBOURS).fit(unit, labels)
    others = votes.kneighbors(return_distance=False)  # without the image itself
    said = [np.bincount(labels[few]).argmax() for few in others]
    return float(balanced_accuracy_score(labels, said))


def log_me(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """LogME (You et al., 2021, algorithm 1 by its fixed point): the mean over the classes."""
    x = features.astype(np.float64)
    n, d = x.shape
    left, singular, _ = np.linalg.svd(x, full_matrices=False)
    square = singular**2
    found = []
    for label in np.unique(labels):
        y = (labels == label).astype(np.float64)
        along = (left.T @ y) ** 2
        rest = float(y @ y - along.sum())
        alpha = beta = 1.0
        for _ in range(50):
            gamma = float((beta * square / (alpha + beta * square)).sum())
            norm = float((beta**2 * square * along / (alpha + beta * square) ** 2).sum())
            left_over = rest + float((along * (alpha / (alpha + beta * square)) ** 2).sum())
            new_alpha, new_beta = gamma / max(norm, 1e-12), (n - gamma) / max(left_over, 1e-12)
            settled = abs(np.log(new_alpha / alpha)) + abs(np.log(new_beta / beta)) < 1e-4
            alpha, beta = new_alpha, new_beta
            if settled:
                break
        determinant = float(np.log(alpha + beta * square).sum()) + (d - len(square)) * np.log(alpha)
        evidence = n * np.log(beta) + d * np.log(alpha) - n * np.log(2 * np.pi)
        evidence -= beta * left_over + alpha * norm + determinant
        found.append(evidence / (2 * n))
    return float(np.mean(found))


# -- the page ----------------------------------------------------------------------------------


def outcome(row: dict[str, Any]) -> float:
    """The test score of the better of the two fine-tunings, by validation."""
    return float(max((row["half"], row["full"]), key=lambda run: run["val"])["test"])


def page(rows: list[dict[str, Any]]) -> str:
    """The page, from the pairs that were measured."""
    for row in rows:
        row["size"] = 0.0 if row["model"] == RANDOM else float(row["parameters"])
    groups = [
        [row for row in rows if (row["data"], row["repeat"]) == key]
        for key in sorted({(row["data"], row["repeat"]) for row in rows})
    ]
    whole = [group for group in groups if len(group) == len(MODELS)]
    parts: list[Part] = [
        Markdown(INTRODUCTION),
        Markdown("## Does the ranking agree?"),
        agreement(whole),
        Markdown(f"{AGREEMENT} {control(whole)}"),
        Markdown("## Is one short training of the first few enough?"),
        after_training(whole),
        Markdown(TRAINED),
        Markdown("## The pairs"),
        pairs(whole),
        Markdown(PAIRS),
        Markdown("## The probe, fitted and by steps"),
        Markdown(probes(rows)),
        Markdown("## What was not run"),
        Markdown(left_out(groups, rows)),
    ]
    return "# Which network? Rankings against fine-tuning\n\n" + markdown(parts)


INTRODUCTION = f"""\
Up to {TRAIN} images to train on, {VAL} to validate, {SIZE} pixels, {EPOCHS} epochs. What a
network is worth: the test macro-accuracy (up to {TESTED} images) of the better, by validation,
of two fine-tunings at rate {RATE:g}: lower half of the blocks frozen, and all trained. Each
ranking sees the training images alone. Made by `python studies/benchmarks/models.py`."""
AGREEMENT = """\
Rank correlation: Spearman's, between the ranking and the tested scores of the networks of a
set, mean over the sets. Regret: the best tested score minus that of the network ranked first,
in points. Size ranks by parameters, random weights last."""
TRAINED = """\
Mean regret in points where the first networks of a ranking get both fine-tunings and the best
validation score chooses; in brackets the sets on which it is below one point. `--model auto` does
so with three of the probe's ranking, at the middle of the searched rates, and trains the better
recipe of each once more.

The aim was a regret below one point on five of six sets. **It is missed**: three of the probe's
ranking come to three sets, with two more at 1.5 points, and the ranking alone to two. Training all
six networks would not have reached it either: it comes to four sets, since 80 validation images and
one training each do not tell near-equal networks apart. LogME chooses its three somewhat better on
these sets; six are too few to change the default for that."""
PAIRS = """\
Tested score after fine-tuning, in brackets the cross-validated score of the linear probe, and which
network the probe ranks first."""
LEFT_OUT = """\
One training a recipe and one rate: with so few, a difference of some points between two
fine-tunings is luck. The short list of `biotune models` holds larger networks, whose weights come
from the hub: these were not measured."""


def left_out(groups: list[list[dict[str, Any]]], rows: list[dict[str, Any]]) -> str:
    """What the page does not say."""
    missing = [data for data in SETS if data not in {row["data"] for row in rows}]
    missing += [group[0]["data"] for group in groups if len(group) < len(MODELS)]
    if not missing:
        return LEFT_OUT
    return f"Not measured on all networks, and left out: {', '.join(missing)}. {LEFT_OUT}"


def agreement(groups: list[list[dict[str, Any]]]) -> Table:
    """Rank correlation and regret of each ranking."""
    body = []
    for key, words in RANKERS.items():
        everyone, known, regrets = [], [], []
        for group in groups:
            truth, guess = [outcome(row) for row in group], [row[key] for row in group]
            everyone.append(spearmanr(truth, guess).statistic)
            trained = [i for i, row in enumerate(group) if row["model"] != RANDOM]
            known.append(
                spearmanr([truth[i] for i in trained], [guess[i] for i in trained]).statistic
            )
            regrets.append(100 * (max(truth) - truth[int(np.argmax(guess))]))
        last = sum(min(group, key=lambda row: row[key])["model"] == RANDOM for group in groups)
        body.append(
            (
                words,
                f"{np.mean(everyone):.2f}",
                f"{np.mean(known):.2f}",
                f"{np.mean(regrets):.1f} (worst {max(regrets):.1f})",
                f"{sum(r < 1 for r in regrets)} of {len(groups)}",
                f"{last} of {len(groups)}",
            )
        )
    head = ("Ranking", "Rank correlation", "without random weights", "Regret", "below one point")
    return Table((*head, "random weights last"), body)


def after_training(groups: list[list[dict[str, Any]]]) -> Table:
    """Regret where the first few of a ranking are fine-tuned, and validation chooses."""

    def regret(group: list[dict[str, Any]], key: str, most: int) -> float:
        few = sorted(group, key=lambda row: -row[key])[:most]
        chosen = max(few, key=lambda row: max(row["half"]["val"], row["full"]["val"]))
        return 100 * (max(map(outcome, group)) - outcome(chosen))

    body = []
    for key, words in RANKERS.items():
        cells = []
        for most in FIRST:
            found = [regret(group, key, most) for group in groups]
            below = sum(one < 1 for one in found)
            cells.append(f"{np.mean(found):.1f} ({below} of {len(groups)})")
        body.append((words, *cells))
    head = [f"first {most}" if most > 1 else "the first" for most in FIRST]
    head[-1] = "all"
    return Table(("Ranking", *head), body)


def control(groups: list[list[dict[str, Any]]]) -> str:
    """Where random weights come after fine-tuning, and whom the probe puts below them."""
    last = sum(min(group, key=outcome)["model"] == RANDOM for group in groups)
    below: set[str] = set()
    for group in groups:
        (chance,) = (row["probe"] for row in group if row["model"] == RANDOM)
        below |= {row["model"] for row in group if row["probe"] < chance}
    words = (
        f" The probe puts {' and '.join(sorted(below))} below them on some sets." if below else ""
    )
    return f"After fine-tuning, random weights are last on {last} of {len(groups)} sets.{words}"


def pairs(groups: list[list[dict[str, Any]]]) -> Table:
    """The tested score of each pair."""
    body = []
    for group in groups:
        first = max(group, key=lambda row: row["probe"])
        cells = []
        for model in MODELS:
            (row,) = (row for row in group if row["model"] == model)
            mark = ", first" if row is first else ""
            cells.append(f"{outcome(row):.3f} ({row['probe']:.3f}{mark})")
        body.append((group[0]["data"], *cells))
    return Table(("Data", *MODELS), body)


def probes(rows: list[dict[str, Any]]) -> str:
    """The fitted probe against the best of five rates by steps, on pre-trained networks."""
    gains = [
        100 * (row["fitted"]["test"] - row["steps"]["test"])
        for row in rows
        if row["model"] != RANDOM
    ]
    error = np.std(gains, ddof=1) / len(gains) ** 0.5
    seconds = np.median([row["probe_seconds"] for row in rows])
    return (
        f"On {len(gains)} pairs with pre-trained weights, the fitted probe minus the one by"
        f" gradient steps ({EPOCHS} epochs, the best of {len(PROBE_RATES)} rates), tested:"
        f" {np.mean(gains):+z.1f}"
        f" points (standard error {error:.1f}), better on {sum(g > 0 for g in gains)}. Features,"
        f" folds and fit took {seconds:.1f} s for {TRAIN + VAL} images (median over all pairs, one"
        " slow core that other work shared)."
    )


if __name__ == "__main__":
    main()
