"""A folder of artifacts from which no link leads out."""

from __future__ import annotations

from pathlib import Path

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound


class OwnFiles(FileSystemArtifactStore):
    """Optuna's store of files, which reads and writes ordinary files of its folder only.

    A study handed over with its folder may hold a link to a private key, or a pipe.
    """

    def _get_filepath(self, artifact_id: str) -> Path:
        path = super()._get_filepath(artifact_id)
        inside = path.parent.resolve().is_relative_to(self._base_path.resolve())
        if path.is_symlink() or not inside or (path.exists() and not path.is_file()):
            raise ArtifactNotFound("not an ordinary file of the folder of artifacts")
        return path
