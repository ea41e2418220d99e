"""Which images are listed as most often wrong."""

import numpy as np
import pytest

from biotune_optuna.confirmation.mistakes import list_mistakes
from biotune_optuna.errors import DataError
from biotune_optuna.study.setup import Setup


def test_images_that_most_models_get_wrong_come_first(setup: Setup) -> None:
    index = setup.splits.test[:5]
    labels = setup.source.labels[index]
    n = len(setup.classes)

    def model(sure: dict[int, float]) -> np.ndarray:
        """Right everywhere but on these images, wrong there with these probabilities."""
        probs = np.eye(n)[labels]
        for image, p in sure.items():
            probs[image] = (1 - p) / (n - 1)
            probs[image, (labels[image] + 1) % n] = p
        return probs

    ours, theirs = model({0: 0.9, 2: 0.6, 3: 0.7}), model({2: 0.8, 4: 0.9})
    found = list_mistakes(setup.source, index, ours, [theirs], most=9)
    assert [item.id for item in found] == [setup.source.ids[index[i]] for i in (2, 0, 3)]
    assert [(item.wrong, item.models) for item in found] == [(2, 2), (1, 2), (1, 2)]
    assert [item.probability for item in found] == pytest.approx([0.6, 0.9, 0.7])
    assert found[0].predicted == setup.classes[(labels[2] + 1) % n]
    assert all(item.thumbnail.startswith("data:image/jpeg;base64,") for item in found)
    assert len(list_mistakes(setup.source, index, ours, most=2)) == 2


def test_an_image_that_is_gone_has_no_thumbnail(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_index: int) -> None:
        raise DataError("image 'x' cannot be read: No such file")

    monkeypatch.setattr(setup.source, "load", gone)
    index = setup.splits.test[:2]
    probs = np.eye(len(setup.classes))[(setup.source.labels[index] + 1) % len(setup.classes)]
    found = list_mistakes(setup.source, index, probs, most=9)
    assert [one.thumbnail for one in found] == ["", ""]
