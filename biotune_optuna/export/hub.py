"""A tuned model's folder on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from biotune_optuna.errors import BioTuneError
from biotune_optuna.export.folder import FILES
from biotune_optuna.models.states import one_line

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_name(name: str) -> None:
    """Refuse what is no name of a model on the hub.

    Raises:
        BioTuneError: If it is not ``USER/NAME``.
    """
    if not _NAME.fullmatch(name):
        raise BioTuneError(f"{name!r} is no name of a model on the hub; write USER/NAME")


def push(
    folder: str | Path, name: str, *, private: bool = True, endpoint: str | None = None
) -> str:
    """Put an exported model on the Hugging Face hub, its card included.

    What an earlier model of this package left there and this one lacks, such as further members, is
    removed in the same commit: it would belong to other weights. Other files stay.

    Who does so is whom `hf auth login` or ``$HF_TOKEN`` says.

    Args:
        folder: A folder that `export_model` wrote.
        name: ``USER/NAME``; the repository is created where it is not there.
        private: Whether a repository that is created is seen by its owner alone. One that is there
            stays as it is.
        endpoint: Address of the hub; None is the usual one.

    Returns:
        Address of the model's page.

    Raises:
        BioTuneError: If the name is none, or the hub refuses.
    """
    from huggingface_hub import HfApi

    check_name(name)
    hub = HfApi(endpoint=endpoint, library_name="biotune-optuna")
    try:
        present = {path.name for path in Path(folder).iterdir()}
        hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=sorted(FILES),
            delete_patterns=sorted(FILES - present),
            commit_message="Add the tuned model",
        )
    except Exception as error:
        raise BioTuneError(
            f"cannot put the model on the hub as {name!r}: {one_line(error)}; log in by "
            "`hf auth login`, or set HF_TOKEN"
        ) from error
    return f"{hub.endpoint}/{name}"
