"""The report file: what it says, that it stands alone, that nothing escapes into its markup."""

from __future__ import annotations

import json
import re
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import create_trial

from biotune_optuna.confirmation.record import Confirmation
from biotune_optuna.errors import StudyError
from biotune_optuna.report.html import page, write_report
from biotune_optuna.report.view import as_view
from biotune_optuna.report.words import label, verdict
from biotune_optuna.storage.open import open_storage
from biotune_optuna.storage.urls import parse_url


class Reader(HTMLParser):
    """Collects visible text, and every address that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.figures: list[str] = []
        self._mute = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._mute += tag in ("script", "style")
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action") and value:
                self.addresses.append(value)
            if name == "class" and value == "plot":
                self.figures.append(str(dict(attrs)["id"]))

    def handle_endtag(self, tag: str) -> None:
        self._mute -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._mute:
            self.text.append(data)


def commands(html: str) -> list[list[str]]:
    """The commands that a report tells to type, as a shell reads them."""
    blocks = map(unescape, re.findall(r"<pre>(.*?)</pre>", html, re.DOTALL))
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("biotune ")]


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def text_of(html: str) -> str:
    return " ".join(" ".join(read(html).text).replace("\u00a0", " ").split())


def test_confirmed_study_reads_well(confirmed_study: optuna.Study, tmp_path: Path) -> None:
    path = write_report(confirmed_study, tmp_path / "sub" / "out.html")
    html = path.read_text("utf-8")
    words = text_of(html)
    confirm = confirmed_study.user_attrs["confirm"]
    test = confirm["tests"][0]
    assert (
        f"On 500 test images that no choice had seen it reached {100 * test['score']:.1f} %"
        in words
    )
    assert f"(95 % interval {100 * test['low']:.1f} to {100 * test['high']:.1f} %)" in words
    looks = [f"{test['name']} at 2026-01-05 09:10" for test in confirm["tests"]]
    assert f"The test data was looked at in 3 tests: {'; '.join(looks)}." in words
    assert "Each model was tested once, after the choice had been made." in words
    assert "40 recipes were evaluated (36 complete, 4 stopped early)." in words
    assert (
        "full fine-tuning had its base rate chosen on the same validation images" in words.lower()
    )
    assert len(read(html).figures) == 11


def test_report_needs_nothing_else(confirmed_study: optuna.Study) -> None:
    html = page(as_view(confirmed_study))
    assert [a for a in read(html).addresses if not a.startswith("data:")] == []
    assert html.count("plotly.js v") == 1
    blocks = re.findall(
        r'<script type="application/json" id="[^"]*">(.*?)</script>', html, re.DOTALL
    )
    assert len(blocks) == 11
    for block in blocks:
        assert json.loads(block)["data"]


def test_rival_that_wins_is_named_plainly(make_study: Any) -> None:
    study = make_study(12, confirmed=True, rival_wins=True)
    found = verdict(as_view(study))
    assert found.tone == "lost"
    assert found.headline == "Full fine-tuning won; BioTune did not beat it."
    words = text_of(page(as_view(study)))
    assert "the simpler method is the one to use" in words
    assert "The winner is full fine-tuning" in words


def paired(low: float, high: float, *, winner: str = "trial 3") -> dict[str, Any]:
    other = "full" if winner != "full" else "trial 3"
    return {
        "metric": "accuracy",
        "winner": winner,
        "candidates": [{"name": "trial 3", "method": "biotune"}],
        "rivals": [{"name": "full", "method": "full"}],
        "tests": [{"name": winner, "score": 0.9, "low": 0.87, "high": 0.93, "n": 400}],
        "paired": [{"against": other, "difference": (low + high) / 2, "low": low, "high": high}],
    }


@pytest.mark.parametrize(
    ("low", "high", "tone", "headline"),
    [
        (0.01, 0.03, "won", "BioTune's recipe won, clearly ahead of full fine-tuning."),
        (
            -0.01,
            0.03,
            "level",
            "BioTune's recipe was chosen, but the test cannot tell it from full fine-tuning.",
        ),
        (
            -0.03,
            -0.01,
            "lost",
            "BioTune's recipe was chosen on validation,"
            " but full fine-tuning did better on the test.",
        ),
    ],
)
def test_verdict_follows_the_interval(low: float, high: float, tone: str, headline: str) -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("confirm", paired(low, high))
    found = verdict(as_view(study))
    assert (found.tone, found.headline) == (tone, headline)
    assert "90.0\u00a0% accuracy (95\u00a0% interval 87.0 to 93.0\u00a0%)" in found.sentences[0]


@pytest.mark.parametrize(
    ("low", "high", "tone", "words"),
    [
        (-0.02, 0.01, "level", "cannot tell it from BioTune's recipe, and it is cheaper"),
        (-0.08, -0.04, "level", "but BioTune's recipe did better on the test"),
    ],
)
def test_a_rival_chosen_for_its_cost_is_not_said_to_have_won(
    low: float, high: float, tone: str, words: str
) -> None:
    study = optuna.create_study(direction="maximize")
    record = paired(low, high, winner="full")
    record["candidates"][0]["scores"], record["rivals"][0]["scores"] = [0.92], [0.91]
    study.set_user_attr("confirm", record)
    found = verdict(as_view(study))
    assert found.tone == tone
    assert words in found.headline
    assert "did not beat" not in " ".join([found.headline, *found.sentences])


def test_a_rival_is_compared_with_whom_the_numbers_say() -> None:
    """The probe is chosen as the cheapest equal of full fine-tuning; BioTune is no part of it."""
    study = optuna.create_study(direction="maximize")
    record = paired(-0.01, 0.01, winner="linear-probe")
    record["candidates"][0]["scores"] = [0.80]
    record["rivals"] = [
        {"name": "full", "method": "full", "scores": [0.92]},
        {"name": "linear-probe", "method": "linear-probe", "scores": [0.91]},
    ]
    study.set_user_attr("confirm", record)
    headline = verdict(as_view(study)).headline
    assert "validation cannot tell it from full fine-tuning, and it is cheaper" in headline
    record["paired"].append({"against": "full", "difference": -0.05, "low": -0.08, "high": -0.02})
    study.set_user_attr("confirm", record)
    headline = verdict(as_view(study)).headline
    assert headline.endswith("but full fine-tuning did better on the test.")


@pytest.mark.parametrize("n", [0, 1, 3])
def test_young_studies_have_a_report(make_study: Any, n: int, tmp_path: Path) -> None:
    html = write_report(make_study(n), tmp_path / "r.html").read_text("utf-8")
    words = text_of(html)
    assert "The winner has not been confirmed on test data yet." in words
    assert "test data has not been looked at yet" in words
    if n == 0:
        assert "No trial is complete yet." in words
        assert read(html).figures == []


def test_running_study_says_so(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize", study_name="live")
    study.ask()
    words = text_of(write_report(study, tmp_path).read_text("utf-8"))
    assert "running · 1 trial " in words
    assert "1 trial is running." in words


def test_plain_study_is_reported_without_inventing(plain_study: optuna.Study) -> None:
    html = page(as_view(plain_study))
    words = text_of(html)
    assert "The study holds 12 trials (12 complete)." in words
    assert "validation images" not in words
    assert read(html).figures == ["search-history", "accuracy-against-cost", "where-time-went"]


def test_names_cannot_break_out_of_the_page() -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    study = optuna.create_study(direction="maximize", study_name=f"s{evil}")
    study.set_user_attr("biotune", {"spec": {"model": evil, "data": evil}})
    recipe = {"lr": 0.1, "multipliers": {evil: 1.0, "head": 2.0}}
    study.add_trial(
        create_trial(
            value=0.5, params={}, user_attrs={"recipe": recipe, "frozen": evil, "role": evil}
        )
    )
    study.set_user_attr(
        "confirm",
        {
            **paired(-0.1, 0.1),
            "why": evil,
            "classes": [evil, "b"],
            "tests": [
                {
                    "name": "trial 3",
                    "score": 0.9,
                    "low": 0.8,
                    "high": 1.0,
                    "n": 4,
                    "confusion": [[1, 1], [0, 2]],
                }
            ],
        },
    )
    html = page(as_view(study))
    assert "<img" not in html.replace(_plotly(), "")
    assert read(html).figures[:1] == ["search-confirmed-test"]


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def test_commands_can_be_typed_as_they_are_shown(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/my studies.db")
    study = optuna.create_study(direction="maximize", study_name="wild bees", storage=storage)
    study.set_user_attr("biotune", {"spec": {"model": "m", "data": "d"}})
    export, predict = commands(page(as_view(study)))
    assert export[:4] == ["biotune", "export", "--study", "wild bees"]
    assert predict == ["biotune", "predict", "my-model", "photo.jpg"]
    assert export[4:] == ["--storage", f"sqlite:///{tmp_path}/my studies.db", "--to", "my-model"]
    study.set_user_attr("model_dir", {"path": '/my results/"best"'})
    html = page(as_view(study))
    assert commands(html) == [
        ["biotune", "predict", '/my results/"best"', "photo.jpg", "another.png"]
    ]
    assert r'create_model("local-dir:/my results/\"best\"", pretrained=True)' in text_of(html)


def test_no_server_stands_in_a_report() -> None:
    study = optuna.create_study(direction="maximize")
    study._storage.url = parse_url("postgresql://me:abracadabra@host/db")  # type: ignore[attr-defined]
    assert as_view(study).storage_url is None
    assert as_view(optuna.create_study()).storage_url is None


def test_old_report_stays_when_the_new_one_cannot_be_made(
    make_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(StudyError, match="No space left on device"):
        write_report(make_study(1), target)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_place_that_is_no_folder_is_one_clear_line(make_study: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StudyError, match=r"cannot be written .*give a path in a folder") as caught:
        write_report(make_study(1), tmp_path / "file" / "report.html")
    assert "\n" not in str(caught.value)


def test_looks_beyond_this_confirmation_are_said_to_flatter() -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("confirm", paired(-0.1, 0.1))
    look = {"time": "2026-01-05T09:10:00", "what": "full"}
    study.set_user_attr("test_looks", [look])
    assert "tested once, after the choice" in text_of(page(as_view(study)))
    study.set_user_attr("test_looks", [look, look])
    assert "looked at in 2 tests" in text_of(page(as_view(study)))
    assert "a little more optimistic" in text_of(page(as_view(study)))


def test_rival_that_won_is_shown_beside_the_best_confirmed_recipe(make_study: Any) -> None:
    study = make_study(12, confirmed=True, rival_wins=True)
    stored = study.user_attrs["confirm"]
    better = dict(stored["candidates"][0], name="trial 2", trial=2, scores=[0.99])
    study.set_user_attr("confirm", {**stored, "candidates": [*stored["candidates"], better]})
    chosen = as_view(study).chosen_trial
    assert chosen is not None
    assert chosen.number == 2


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.012, "+1.2\u00a0points"), (-0.0301, "−3.0\u00a0points"), (-0.0001, "0.0\u00a0points")],
)
def test_differences_read_in_points(value: float, words: str) -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("confirm", {"metric": "accuracy"})
    assert as_view(study).say_difference(value) == words


def test_no_difference_is_called_level() -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("confirm", paired(-0.01, 0.01))
    assert "It is level with full fine-tuning;" in " ".join(verdict(as_view(study)).sentences)


def test_differences_without_an_interval_are_left_out() -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("confirm", paired(float("nan"), float("nan")))
    words = text_of(page(as_view(study)))
    assert "nan" not in words
    assert "90.0 %" in words


def test_the_images_most_often_wrong_are_shown_with_their_names(
    confirmed_study: optuna.Study,
) -> None:
    mistakes = confirmed_study.user_attrs["confirm"]["mistakes"]
    html = page(as_view(confirmed_study))
    for one in mistakes:
        assert one["id"] in html
        assert one["thumbnail"] in html
        said = f"{one['label']}, said {one['predicted']} ({one['probability']:.0%})"
        assert said in html


def test_methods_are_sorted_by_the_mean_that_decides(confirmed_study: optuna.Study) -> None:
    html = page(as_view(confirmed_study))
    table = html.partition('<table class="cards">')[2].partition("</table>")[0]
    names = re.findall(r'data-head="Method">([^<]*)<', table)
    means = {
        label(c.name, c.method): c.mean
        for c in Confirmation.of(confirmed_study.user_attrs).contenders
    }
    ranked = [means[name] for name in names if name in means]
    assert len(ranked) == len(means) > 1
    assert ranked == sorted(ranked, reverse=True)
