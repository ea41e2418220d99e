"""Views of an image besides the image as it is."""

from __future__ import annotations

import pytest
import torch

from biotune_optuna.data.preprocessing import Preprocessing
from biotune_optuna.data.views import is_views, shown, views_words
from biotune_optuna.errors import DataError


def test_views_are_what_they_are_called() -> None:
    batch = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).reshape(2, 3, 16, 16)
    assert shown(batch, "") is batch
    mirrored = shown(batch, "mirror")
    assert torch.equal(mirrored[..., 0], batch[..., -1])
    assert torch.equal(shown(mirrored, "mirror"), batch)
    zoomed = shown(batch, "zoom")
    assert zoomed.shape == batch.shape
    assert zoomed[0, 0, 0, 0] > batch[0, 0, 0, 0]
    assert float(zoomed.mean()) == pytest.approx(float(batch.mean()), rel=1e-4)


def test_words() -> None:
    assert views_words(()) == "as it is"
    assert views_words(("zoom",)) == "as it is and with its middle enlarged"
    said = views_words(("mirror", "zoom"))
    assert said == "as it is, mirrored and with its middle enlarged"


@pytest.mark.parametrize("views", ["zoom", ("zoom", "zoom"), ("turn",), (3,), None, {"zoom": 1}])
def test_what_is_no_list_of_views_is_refused(views: object) -> None:
    assert not is_views(views)
    facts = {"schema_version": 1, "size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    facts |= {"crop_pct": 1.0, "interpolation": "bicubic", "batch_size": 4}
    facts |= {"channels_last": True, "amp": "off"}
    assert Preprocessing.from_dict(facts).views == ()
    found = Preprocessing.from_dict(facts | {"views": ["zoom"]})
    assert found.to_dict()["views"] == ("zoom",)
    assert "views" not in Preprocessing.from_dict(facts).to_dict()
    with pytest.raises(DataError, match=r"views .* unknown; known are mirror, zoom"):
        Preprocessing.from_dict(facts | {"views": views})
