"""Sphinx settings; ``nox -s docs`` builds the pages."""

from pathlib import Path

import click

from biotune_optuna import __version__
from biotune_optuna.cli import cli

project = "biotune-optuna"
author = "The biotune-optuna developers"
copyright = "The biotune-optuna developers"
release = __version__
version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "_generated"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"biotune-optuna {__version__}"


def _command_reference() -> str:
    """Every command of ``biotune`` with its options, as Markdown."""
    parts = []
    context = click.Context(cli, info_name="biotune")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        inner = click.Context(command, info_name=name, parent=context)
        usage = " ".join(command.collect_usage_pieces(inner))
        parts += [f"## {name}", command.help or "", f"```text\nbiotune {name} {usage}\n```"]
        records = (parameter.get_help_record(inner) for parameter in command.get_params(inner))
        rows = [record for record in records if record]
        cells = [(left, right.replace("|", "\\|").replace("  ", " ")) for left, right in rows]
        parts.append(
            "\n".join(
                [
                    "| Option | |",
                    "|---|---|",
                    *(f"| `{left}` | {right} |".replace("`|", "` |") for left, right in cells),
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


generated = Path(__file__).parent / "_generated"
generated.mkdir(exist_ok=True)
(generated / "commands.md").write_text(_command_reference())
