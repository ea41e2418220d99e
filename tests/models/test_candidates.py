"""Which networks a ranking looks at."""

import pytest
import timm

from biotune_optuna.errors import ModelError
from biotune_optuna.models.candidates import Limits, select, short_list
from biotune_optuna.models.weights import meta_model


def test_the_short_list_names_pretrained_networks_and_what_they_take() -> None:
    known = set(timm.list_pretrained())
    for one in short_list():
        assert one.name in known
        assert one.licence == timm.get_pretrained_cfg(one.name).license
        assert one.source
        assert one.parameters < {"tiny": 6e6, "small": 30e6, "base": 100e6}[one.size]
    assert [one.parameters for one in short_list()] == sorted(o.parameters for o in short_list())
    for one in short_list()[:3]:
        assert one.parameters == sum(p.numel() for p in meta_model(one.name).parameters())


def test_the_list_can_be_narrowed_by_size() -> None:
    small = select(limits=Limits.parse("6M"))
    assert 0 < len(small) < len(short_list())
    assert all(one.parameters <= 6e6 for one in small)


def test_names_and_patterns_of_timm_are_taken() -> None:
    found = [one.name for one in select("resnet18, test_res*")]
    assert {"resnet18", "test_resnet"} <= set(found)
    tiny = [one.name for one in select("resnet1*")]
    assert "resnet18.a1_in1k" in tiny, "the short list's own weights come first"
    assert "resnet18" not in tiny


@pytest.mark.parametrize(
    ("among", "limits", "words"),
    [
        ("resnet5", "", "unknown model 'resnet5'; the nearest names are "),
        ("nothing*", "", "pattern 'nothing.*' fits no network"),
        (",", "", "among ',' names no network"),
        (None, "1k", "all 17 networks have more than 1,000 parameters; the smallest, tf_eff"),
    ],
)
def test_what_names_nothing_is_refused(among: str | None, limits: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        select(among, Limits.parse(limits))


def test_limits_are_read() -> None:
    assert Limits.parse("") == Limits()
    assert Limits.parse("1.5M, 20ms") == Limits(parameters=1.5e6, ms=20)
    assert Limits.parse("500") == Limits(parameters=500)
    assert (
        str(Limits.parse("30M,20ms")) == "at most 30,000,000 parameters and at most 20 ms an image"
    )
    for wrong in ("fast", "0M", "-3", "20 s"):
        with pytest.raises(ModelError, match="neither a number of parameters"):
            Limits.parse(wrong)
