"""Studies with genuinely computed numbers: a small numpy network fine-tuned block by block."""

from __future__ import annotations

import base64
import datetime as dt
import io
import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from biotune_optuna.finetune.calibration import Calibration, Trust, reliability, tempered

BLOCKS = ("stem", "layer1", "layer2", "head")
SIZES = (64, 48, 32, 24, 10)
EPOCHS = 6
TRAIN = 200
VALIDATED = slice(200, 500)
START = dt.datetime(2026, 1, 5, 9, 0, 0)


@dataclass
class Net:
    """A multi-layer perceptron whose layers are the blocks."""

    weights: list[np.ndarray]

    @classmethod
    def fresh(cls, seed: int) -> Net:
        rng = np.random.default_rng(seed)
        return cls([rng.normal(0, math.sqrt(2 / a), (a, b)) for a, b in itertools.pairwise(SIZES)])

    def forward(self, x: np.ndarray) -> list[np.ndarray]:
        layers = [x]
        for w in self.weights[:-1]:
            layers.append(np.maximum(layers[-1] @ w, 0))
        logits = layers[-1] @ self.weights[-1]
        e = np.exp(logits - logits.max(1, keepdims=True))
        return [*layers, e / e.sum(1, keepdims=True)]

    def epoch(self, x: np.ndarray, y: np.ndarray, rates: list[float], rng: Any) -> None:
        order = rng.permutation(len(x))
        for start in range(0, len(x), 25):
            i = order[start : start + 25]
            layers = self.forward(x[i])
            delta = (layers[-1] - np.eye(10)[y[i]]) / len(i)
            for k in reversed(range(len(self.weights))):
                step = layers[k].T @ delta
                if k:
                    delta = (delta @ self.weights[k].T) * (layers[k] > 0)
                self.weights[k] = self.weights[k] - rates[k] * step


@dataclass
class Lab:
    """Digits, a network pre-trained on digits upside down, and fine-tuning by multipliers."""

    x: np.ndarray = field(init=False)
    y: np.ndarray = field(init=False)
    base: Net = field(init=False)

    def __post_init__(self) -> None:
        digits = load_digits()
        self.x, self.y = digits.data / 16.0, digits.target
        self.base = Net.fresh(0)
        rng = np.random.default_rng(0)
        for _ in range(8):
            self.base.epoch(self.x[1000:, ::-1], self.y[1000:], [0.3] * 4, rng)

    def train(self, multipliers: list[float], lr: float, seed: int) -> tuple[Net, list[float]]:
        net = Net([w.copy() for w in self.base.weights])
        net.weights[-1] = Net.fresh(seed).weights[-1]
        rng = np.random.default_rng(seed)
        scores = []
        for _ in range(EPOCHS):
            net.epoch(self.x[:TRAIN], self.y[:TRAIN], [lr * m for m in multipliers], rng)
            scores.append(self.score(net, slice(300, 500)))
            if scores[-1] == max(scores):
                best = Net([w.copy() for w in net.weights])
        return best, scores

    def score(self, net: Net, part: slice) -> float:
        return float(balanced_accuracy_score(self.y[part], net.forward(self.x[part])[-1].argmax(1)))


def recipe_dict(multipliers: list[float], lr: float) -> dict[str, Any]:
    return {
        "lr": lr,
        "weight_decay": 0.0,
        "multipliers": dict(zip(BLOCKS, multipliers, strict=True)),
    }


def finished_trial(
    lab: Lab, number: int, multipliers: list[float], role: str, parents: str, generation: int
) -> FrozenTrial:
    """One evaluation: two runs, their curves, and every attribute of the contract."""
    lr = 0.2
    curves = [lab.train(multipliers, lr, seed)[1] for seed in (11, 12)]
    scores = [max(c) for c in curves]
    sizes = [a * b for a, b in itertools.pairwise(SIZES)]
    trained = sum(s for s, m in zip(sizes, multipliers, strict=True) if m > 0)
    pruned = number % 9 == 7
    if pruned:
        curves, scores = curves[:1], scores[:1]
    images = TRAIN * EPOCHS * len(curves)
    begin = START + dt.timedelta(seconds=4 * number)
    frozen = [i + 1 for i, m in enumerate(multipliers) if m == 0]
    trial = create_trial(
        state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        value=float(np.mean(scores)),
        params={f"gene.{b}": 0.5 for b in BLOCKS},
        distributions={
            f"gene.{b}": optuna.distributions.FloatDistribution(0.0, 1.0) for b in BLOCKS
        },
        intermediate_values={
            run * EPOCHS + e: s for run, c in enumerate(curves) for e, s in enumerate(c)
        },
        user_attrs={
            "generation": generation,
            "role": role,
            "parents": parents,
            "frozen": f"{', '.join(map(str, frozen)) or 'none'} of 4",
            "trainable_pct": 100 * trained / sum(sizes),
            "stderr": float(np.std(scores, ddof=1) / math.sqrt(2)) if len(scores) > 1 else 0.0,
            "seconds": 2.0 + 0.1 * sum(m > 0 for m in multipliers),
            "recipe": recipe_dict(multipliers, lr),
            "runs": [
                {
                    "fold": None,
                    "seed": s,
                    "score": v,
                    "best_epoch": 1,
                    "epochs": EPOCHS,
                    "seconds": 1.0,
                    "forward": TRAIN * EPOCHS,
                    "backward": TRAIN * EPOCHS,
                    "peak_mb": 1.0,
                    "cache_hits": 0,
                    "cache_misses": 0,
                    "stopped": "finished",
                }
                for s, v in zip((11, 12), scores, strict=False)
            ],
            "forward": images,
            "backward": images,
        },
    )
    trial.datetime_start = begin
    trial.datetime_complete = begin + dt.timedelta(seconds=3)
    return trial


def evolve(lab: Lab, study: optuna.Study, n: int, seed: int = 0) -> None:
    """A plain evolution of multipliers, five evaluations a generation."""
    rng = np.random.default_rng(seed)
    done: list[tuple[float, int, list[float]]] = []
    for number in range(n):
        generation = number // 5
        if generation == 0:
            genes, role, parents = rng.uniform(0, 1, 4), "immigrant", ""
        else:
            best = sorted(done, key=lambda d: (-d[0], d[1]))[:4]
            a, b = (best[i] for i in rng.choice(len(best), 2, replace=False))
            role = "exploit" if number % 5 == 0 else "offspring"
            parents = str(best[0][1]) if role == "exploit" else f"{a[1]}, {b[1]}"
            genes = (np.array(a[2]) + np.array(b[2])) / 2 if role == "offspring" else best[0][2]
            genes = np.clip(np.array(genes) + rng.normal(0, 0.15, 4), 0, 1)
        multipliers = [float(10 ** (2 * (g - 0.5))) if g > 0.45 else 0.0 for g in genes]
        multipliers[-1] = float(10 ** (2 * (genes[-1] - 0.5)))
        trial = finished_trial(lab, number, multipliers, role, parents, generation)
        study.add_trial(trial)
        if trial.state == TrialState.COMPLETE:
            done.append((float(trial.value or 0), number, [float(g) for g in genes]))


SPEC = {
    "version": "0.1.0",
    "spec": {
        "model": "tiny-mlp",
        "data": "digits",
        "weights": "auto",
        "n_seeds": 2,
        "n_folds": 1,
        "lr": [0.001, 0.03],
        "preset": "default",
        "seed": 0,
        "train": {"epochs": EPOCHS, "metric": "macro_accuracy", "batch_size": 25},
    },
}


def thumbnail(row: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray((row.reshape(8, 8) * 255).astype(np.uint8)).resize((48, 48), 0).save(
        stream, "PNG"
    )
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _contender(lab: Lab, name: str, method: str, mult: list[float], **extra: Any) -> dict[str, Any]:
    nets, scores, lr, grid = [], [], 0.2, None
    if method != "biotune":
        grid = [{"lr": r, "value": max(lab.train(mult, r, 11)[1])} for r in (0.05, 0.1, 0.2, 0.4)]
        lr = max(grid, key=lambda g: g["value"])["lr"]
    for seed in (101, 102, 103):
        net, curve = lab.train(mult, lr, seed)
        nets.append(net)
        scores.append(max(curve))
    probabilities = [net.forward(lab.x[500:1000])[-1] for net in nets]
    record = {
        "name": name,
        "method": method,
        "trial": None,
        "lr": lr,
        "recipe": recipe_dict(mult, lr),
        "describe": ", ".join(
            f"{b} at {m:.2g}×" if m else f"{b} frozen" for b, m in zip(BLOCKS, mult, strict=True)
        ),
        "search_value": max(g["value"] for g in grid) if grid else None,
        "search_stderr": None,
        "grid": grid,
        "scores": scores,
        "mean": float(np.mean(scores)),
        "stderr": float(np.std(scores, ddof=1) / math.sqrt(3)),
        "best_epochs": [EPOCHS] * 3,
        "final_epochs": EPOCHS,
        "trainable_pct": 100.0 * sum(m > 0 for m in mult) / 4,
        "backward_cost": 3.0 * TRAIN * EPOCHS,
        "forward": 3 * TRAIN * EPOCHS,
        "backward": 3 * TRAIN * EPOCHS,
        "seconds": 3.5,
        **extra,
    }
    validation = np.mean([net.forward(lab.x[VALIDATED])[-1] for net in nets], axis=0)
    return {"record": record, "probabilities": probabilities, "validation": validation}


def _tested(record: dict[str, Any], probabilities: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    predicted = probabilities.argmax(1)
    score = float(balanced_accuracy_score(truth, predicted))
    half = 1.96 * math.sqrt(score * (1 - score) / len(truth))
    return {
        "name": record["name"],
        "method": record["method"],
        "score": score,
        "low": score - half,
        "high": score + half,
        "n": len(truth),
        "metrics": {},
        "confusion": confusion_matrix(truth, predicted).tolist(),
    }


def _calibration(
    validation: np.ndarray, labels: np.ndarray, together: np.ndarray, truth: np.ndarray
) -> dict[str, Any]:
    found = Calibration.fit(labels, validation)
    after = tempered(together, found.temperature)
    return {
        "temperature": found.temperature,
        "n": len(labels),
        "before": list(Trust.of(truth, together)),
        "after": list(Trust.of(truth, after)),
        "bins_before": [list(one) for one in reliability(truth, together)],
        "bins_after": [list(one) for one in reliability(truth, after)],
    }


def _difference(ours: np.ndarray, theirs: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    gap = (ours.argmax(1) == truth).astype(float) - (theirs.argmax(1) == truth)
    spread, mean = 1.96 * float(gap.std() / math.sqrt(len(gap))), float(gap.mean())
    return {"difference": mean, "low": mean - spread, "high": mean + spread, "p": 0.01}


def confirm(lab: Lab, study: optuna.Study, *, rival_wins: bool = False) -> dict[str, Any]:
    """A confirmation whose numbers are measured, written as the study module writes it.

    tests/confirmation/test_confirm.py compares its keys with those of a real one.
    """
    ranked = sorted(
        (t for t in study.trials if t.state == TrialState.COMPLETE), key=lambda t: -(t.value or 0)
    )
    best = ranked[-1] if rival_wins else ranked[0]  # a poor candidate loses fairly
    mult = list(best.user_attrs["recipe"]["multipliers"].values())
    made = [
        _contender(
            lab,
            f"trial {best.number}",
            "biotune",
            mult,
            trial=best.number,
            search_value=best.value,
            search_stderr=best.user_attrs["stderr"],
        ),
        _contender(lab, "full", "full", [1.0] * 4),
        _contender(lab, "linear-probe", "linear-probe", [0.0, 0.0, 0.0, 1.0], grid=None),
    ]
    truth = lab.y[500:1000]
    winner = made[1] if rival_wins else made[0]
    name = winner["record"]["name"]
    firsts = {one["record"]["name"]: one["probabilities"][0] for one in made}
    together = np.mean(winner["probabilities"], axis=0)
    tests = [_tested(one["record"], firsts[one["record"]["name"]], truth) for one in made]
    ensemble = _tested(winner["record"], together, truth)
    paired = [
        {"against": against, **_difference(firsts[name], theirs, truth)}
        for against, theirs in firsts.items()
        if against != name
    ]
    predicted = together.argmax(1)
    wrong = np.flatnonzero(predicted != truth)
    wrong = sorted(wrong, key=lambda i: -together[i].max())[:10]
    return {
        "basis": {"trials": len(ranked), "top_k": 1, "n_runs": 3, "rates": [0.05, 0.1, 0.2, 0.4]}
        | {"members": 3, "prefer": "best", "reuse": True},
        "metric": "macro_accuracy",
        "classes": [str(c) for c in range(10)],
        "candidates": [made[0]["record"]],
        "rivals": [made[1]["record"], made[2]["record"]],
        "winner": name,
        "why": "it has the best confirmed mean",
        "plateau": [name],
        "tests": tests,
        "paired": paired,
        "members": 3,
        "ensemble": ensemble,
        "gain": _difference(together, firsts[name], truth),
        "calibration": _calibration(winner["validation"], lab.y[VALIDATED], together, truth),
        "final_training": {
            one["record"]["name"]: {"forward": TRAIN, "backward": TRAIN, "seconds": 1.0}
            for one in made
        },
        "time": "2026-01-05T09:10:00+00:00",
        "n_train": TRAIN,
        "n_val": 200,
        "n_test": len(truth),
        "seconds": 31.5,
        "mistakes": [
            {
                "id": f"digit-{500 + i:04d}.png",
                "label": str(truth[i]),
                "predicted": str(predicted[i]),
                "probability": float(together[i].max()),
                "wrong": sum(int(one[i].argmax() != truth[i]) for one in firsts.values()),
                "models": len(made),
                "thumbnail": thumbnail(lab.x[500 + i]),
            }
            for i in wrong
        ],
    }
