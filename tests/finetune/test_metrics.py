from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from biotune_optuna.errors import DataError
from biotune_optuna.finetune import metrics


def predictions(n=200, n_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    logits = rng.normal(size=(n, n_classes)) + 1.5 * np.eye(n_classes)[y]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return y, probs.astype(np.float32)


def test_values_are_scikit_learns():
    y, p = predictions()
    guess = p.argmax(1)
    expected = {
        "macro_accuracy": sk.balanced_accuracy_score(y, guess),
        "accuracy": sk.accuracy_score(y, guess),
        "macro_f1": sk.f1_score(y, guess, average="macro"),
        "kappa": sk.cohen_kappa_score(y, guess),
        "average_precision": sk.average_precision_score(np.eye(4)[y], p, average="macro"),
    }
    for name, value in expected.items():
        assert metrics.score(name, y, p, 4) == pytest.approx(value, abs=1e-12), name


def test_two_classes():
    y, p = predictions(n_classes=2)
    assert metrics.score("roc_auc", y, p, 2) == pytest.approx(sk.roc_auc_score(y, p[:, 1]))
    assert metrics.score("average_precision", y, p, 2) == pytest.approx(
        sk.average_precision_score(y, p[:, 1])
    )


def test_macro_accuracy_ignores_classes_without_images_and_weighs_the_rest_equally():
    y = np.array([0, 0, 0, 0, 2])
    p = np.eye(3)[[0, 0, 0, 1, 2]]
    assert metrics.score("macro_accuracy", y, p, 3) == pytest.approx((0.75 + 1.0) / 2)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_the_worst_value_is_never_undercut_and_stands_for_non_finite_predictions(name):
    y, p = predictions(n_classes=2)
    wrong = np.eye(2, dtype=np.float32)[1 - y]
    assert metrics.score(name, y, wrong, 2) >= metrics.worst(name)
    p[3, 1] = np.nan
    assert metrics.score(name, y, p, 2) == metrics.worst(name)


def test_kappa_of_one_class_alone_is_zero():
    assert metrics.score("kappa", np.zeros(5, int), np.eye(2)[[0] * 5], 2) == 0.0


@pytest.mark.parametrize(
    ("name", "y", "n_classes", "words"),
    [
        ("f1", [0, 1], 2, "'f1' is not one of macro_accuracy"),
        ("roc_auc", [0, 1, 2], 3, "for two classes and there are 3"),
        ("roc_auc", [0, 0], 2, "both classes"),
        ("average_precision", [0, 0], 2, "the second class"),
        ("accuracy", [], 2, "no images"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(name, y, n_classes, words):
    y = np.array(y, dtype=np.int64)
    with pytest.raises(DataError, match=words) as caught:
        metrics.score(name, y, np.full((len(y), n_classes), 1 / n_classes), n_classes)
    assert "\n" not in str(caught.value)


def test_report_is_json_and_agrees_with_itself():
    y, p = predictions(n_classes=3)
    found = json.loads(json.dumps(metrics.report(y, p, ["a", "b", "c"])))
    confusion = np.array(found["confusion"])
    assert confusion.tolist() == sk.confusion_matrix(y, p.argmax(1)).tolist()
    assert found["n"] == confusion.sum() == 200
    assert found["recall"]["b"] == pytest.approx(confusion[1, 1] / confusion[1].sum())
    assert found["precision"]["b"] == pytest.approx(confusion[1, 1] / confusion[:, 1].sum())
    assert found["support"] == dict(zip("abc", confusion.sum(1).tolist(), strict=True))
    assert np.mean(list(found["recall"].values())) == pytest.approx(found["macro_accuracy"])
    assert "roc_auc" not in found
    assert "roc_auc" in metrics.report(*predictions(n_classes=2), ["a", "b"])


def test_report_gives_none_where_a_class_has_no_images():
    found = metrics.report(np.array([0, 0]), np.eye(2)[[0, 0]], ["a", "b"])
    assert found["recall"] == {"a": 1.0, "b": None}
    assert found["precision"] == {"a": 1.0, "b": None}
    assert not {"average_precision", "roc_auc"} & found.keys()
