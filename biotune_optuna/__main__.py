"""``python -m biotune_optuna`` is the ``biotune`` command."""

from biotune_optuna.cli import main

main()
