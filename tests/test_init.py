"""The public names: complete, lazy and where they say they are."""

from __future__ import annotations

import pytest

import biotune_optuna


@pytest.mark.parametrize("name", biotune_optuna.__all__)
def test_public_name_resolves(name: str) -> None:
    value = getattr(biotune_optuna, name)
    assert value is not None
    if name != "__version__":
        assert value.__doc__, f"{name} has no docstring"
        assert value.__module__.startswith("biotune_optuna.")


def test_only_public_names_are_shown() -> None:
    assert set(dir(biotune_optuna)) == set(biotune_optuna.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"attribute '?Sampler'?"):
        _ = biotune_optuna.Sampler


def test_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from biotune_optuna import *", names)
    assert {*names} - {"__builtins__"} == {*biotune_optuna.__all__}
