"""Options that several commands share."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from biotune_optuna.effort import EFFORTS, Effort, effort_of

if TYPE_CHECKING:
    from collections.abc import Callable

    FloatType = click.ParamType[float]
    RangeType = click.ParamType["float | tuple[float, float] | str"]
else:  # in older releases of click it is not generic
    FloatType = RangeType = click.ParamType


F = TypeVar("F", bound="Callable[..., Any]")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(FloatType):
    """A length of time with its unit: ``90s``, ``20m``, ``1h30m``."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        text = str(value).strip().lower()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            self.fail(f"{value!r} of what? Write {text}s, {text}m or {text}h", param, ctx)
        elif re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
            parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
            seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        else:
            self.fail(f"{value!r} is no duration; write 90s, 20m or 1h30m", param, ctx)
        if seconds <= 0:
            self.fail(f"{value!r} is no time at all; give more than 0 seconds", param, ctx)
        return seconds


DURATION = Duration()


class JobTime(Duration):
    """The same, or as Slurm writes it: ``4:00:00``, ``1-12:00:00``."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Seconds, two minutes at least."""
        found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", str(value).strip())
        if found is None:
            seconds = super().convert(value, param, ctx)
        else:
            days, hours, minutes, rest = (int(part or 0) for part in found.groups())
            seconds = 86400.0 * days + 3600 * hours + 60 * minutes + rest
        if seconds < 120:
            self.fail(
                f"{value!r} is too short for a job, which is told a minute before; give 2m or more",
                param,
                ctx,
            )
        return seconds


JOB_TIME = JobTime()


class Rates(RangeType):
    """A rate, or the bounds it is searched in: ``1e-3`` or ``1e-4,3e-3``.

    Args:
        zero: Whether the rate may be 0.
        auto: Whether ``auto`` may stand for bounds.
    """

    name = "rates"

    def __init__(self, *, zero: bool = False, auto: bool = False) -> None:
        self.zero, self.auto = zero, auto

    def convert(self, value: Any, param: Any, ctx: Any) -> float | tuple[float, float] | str:
        """Return the rate, or the lower and the upper bound."""
        if not isinstance(value, str) or (self.auto and value == "auto"):
            return value  # type: ignore[no-any-return]
        try:
            numbers = [float(part) for part in value.split(",")]
        except ValueError:
            numbers = []
        if self.zero and numbers == [0.0]:
            return 0.0
        if not 1 <= len(numbers) <= 2 or not all(0 < number < math.inf for number in numbers):
            least = "of at least 0" if self.zero else "above 0"
            self.fail(
                f"{value!r} is neither a rate {least} nor two bounds above 0; write 1e-3, or "
                "1e-4,3e-3",
                param,
                ctx,
            )
        low, *high = numbers
        if not high:
            return low
        if low >= high[0]:
            self.fail(f"{value!r} has no low and high bound; write 1e-4,3e-3", param, ctx)
        return low, high[0]


class RivalsCommand(click.Command):
    """A command whose help lists BioTune's rivals, those of other packages too."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list; it is put together when somebody asks for it."""
        from biotune_optuna.methods.registry import methods

        with formatter.section("Rivals (* also with an equal budget, in a comparison)"):
            formatter.write_dl(
                [(one.name + " *" * one.equal_budget, one.words) for one in methods().values()]
            )
        super().format_epilog(ctx, formatter)


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return one decorator for several options, which the help lists in this order."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


storage_option = click.option(
    "--storage",
    envvar="BIOTUNE_STORAGE",
    show_envvar=True,
    help="Database URL.  [default: sqlite:///biotune.db]",
)
elsewhere_options = together(
    click.option("--data", help="Where this machine has the images, if elsewhere."),
    click.option("--weights", help="Where this machine has the weights, if elsewhere."),
)
study_options = together(storage_option, click.option("--study", "name", help="Name of the study."))
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Where to compute: auto, cpu, cuda:N or mps.",
)
display_option = together(
    click.option(
        "--json",
        "display",
        flag_value="json",
        default=None,
        help="Tell progress in JSON lines, for machines.",
    ),
    click.option(
        "--plain", "display", flag_value="plain", help="Tell progress in one line a trial."
    ),
)
"""``--json`` and ``--plain``: how progress is told, handed on as ``display``."""
log_option = click.option(
    "--log",
    multiple=True,
    metavar="KIND:PLACE",
    help="Log each trial: tensorboard:FOLDER, mlflow:URI or wandb:PROJECT; may be repeated.",
)
members_option = click.option(
    "--members",
    type=int,
    default=5,
    show_default=True,
    help="Final trainings of the winner, which predict together; 1 is a single model.",
)
effort_option = click.option(
    "--effort",
    type=click.Choice(list(EFFORTS)),
    help="All that costs, set together; single options override it.  "
    + "  ".join(f"{one.name}: {one.words}." for one in EFFORTS.values())
    + "  [default: normal]",
)


def effort_for(context: click.Context, preset: str) -> Effort:
    """Return the effort asked for.

    Raises:
        UsageError: If the preset is the paper's, which says itself what is done.
    """
    asked = context.params["effort"]
    if asked is not None and preset == "paper":
        raise click.UsageError(
            f"--effort {asked} and --preset paper both say what is done; give one of them"
        )
    return effort_of(asked)


def is_given(context: click.Context, name: str) -> bool:
    """Whether somebody has set a parameter, so that nothing else may."""
    return context.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)


out_option = click.option(
    "--out",
    type=click.Path(file_okay=False),
    default="biotune-out",
    show_default=True,
    help="Folder that gets a folder with the study's report and model.",
)
