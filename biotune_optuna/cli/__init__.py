"""The ``biotune`` command.

Only click is imported here: each command loads what it needs when it runs, so that help is fast.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import os
import signal
import sys
from typing import Any

import click

from biotune_optuna._version import __version__
from biotune_optuna.cli.terminal import show_text_only
from biotune_optuna.errors import BioTuneError

__all__ = ["cli", "main"]

# command -> module that defines it
_COMMANDS = {
    "demo": "tune",
    "check": "inspect",
    "models": "models",
    "probe": "probe",
    "tune": "tune",
    "worker": "workers",
    "launch": "workers",
    "proxy": "workers",
    "studies": "inspect",
    "status": "inspect",
    "report": "inspect",
    "dashboard": "inspect",
    "blocks": "inspect",
    "export": "model",
    "predict": "model",
    "evaluate": "model",
    "baseline": "baseline",
    "compare": "compare",
}


# A disk, a quota or a limit that standard output has reached; a broken pipe click sees to itself.
_FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)})


class _UserMistake(click.ClickException):
    """One clear line, and the error's exit code."""

    def __init__(self, error: BioTuneError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click's is no ClassVar


class _LazyGroup(click.Group):
    """Loads a command's module when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"biotune_optuna.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the one that was probably meant."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in _COMMANDS:
            near = difflib.get_close_matches(name, _COMMANDS, n=1, cutoff=0.5)
            cure = f"did you mean {near[0]}?" if near else "biotune --help lists all"
            ctx.fail(f"there is no command {name!r}; {cure}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BioTuneError as error:
            raise _UserMistake(error) from None
        except (KeyboardInterrupt, click.Abort):  # where a command does not see to it itself
            click.echo("Stopped.", err=True)
            raise SystemExit(128 + signal.SIGINT) from None


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="biotune")
def cli() -> None:
    """Search what to freeze and how fast to train when fine-tuning a vision model."""


def main() -> None:
    """Entry point of the ``biotune`` command."""
    show_text_only()
    try:
        sys.exit(cli(prog_name="biotune"))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        with contextlib.suppress(OSError):
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), 1
            )  # what is not written yet is written at exit
        with contextlib.suppress(OSError):
            click.echo(f"Error: the output cannot be written: {error.strerror}", err=True)
        sys.exit(2)
