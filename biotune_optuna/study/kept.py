"""What trainings have made of a model, kept in files that are named by what they hold.

Those of final trainings lie in the cache folder until the model is exported. Workers that share it,
on one host or by ``BIOTUNE_CACHE``, take over each other's trainings; without, who exports trains
again what others have trained, on the same seeds and so, on a CPU, to the same bits. For those of a
search see `biotune_optuna.study.keeping`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import torch
from safetensors.torch import load_file, save_file

from biotune_optuna.data.cache_dir import default_cache_dir

if TYPE_CHECKING:
    from torch import Tensor


_log = logging.getLogger("biotune_optuna.study")


def digest_of(changed: Mapping[str, Tensor]) -> str:
    """Return a text that two trainings share only if they made the same of a model, to the bit.

    Args:
        changed: See `biotune_optuna.finetune.trainer.Trainer.changed`.
    """
    found = hashlib.sha256()
    for name in sorted(changed):
        tensor = changed[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class KeptWeights:
    """Weights by their digest.

    Args:
        folder: Where they lie; None is ``final`` in the cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_cache_dir() / "final"

    def put(self, changed: Mapping[str, Tensor]) -> str:
        """Keep weights; return their digest. Where there is no room, they are only not kept."""
        digest = digest_of(changed)
        target = self._path(digest)
        if target.exists():
            return digest
        part = target.with_suffix(f".{uuid.uuid4().hex}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({name: one.contiguous() for name, one in changed.items()}, part)
            part.replace(target)
        except (OSError, safetensors.SafetensorError) as error:
            part.unlink(missing_ok=True)
            _log.warning("weights are not kept in %s (%s)", self.folder, error)
        return digest

    def get(self, digest: str) -> dict[str, Tensor] | None:
        """Return weights, None where they are not here or are damaged."""
        if not _is_digest(digest):
            return None
        try:
            found: dict[str, Tensor] = load_file(self._path(digest))
        except (OSError, safetensors.SafetensorError):
            return None
        return found if digest_of(found) == digest else None

    def drop(self, digest: str) -> None:
        """Keep weights no longer, as far as they can be removed."""
        if _is_digest(digest):
            with contextlib.suppress(OSError):
                self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"


def _is_digest(text: str) -> bool:
    """Whether a text from a database may be the name of a file here."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def files_by_digest(folder: Path) -> dict[str, list[Path]]:
    """Return the files of weights in a folder, halves of some too, by the digest in their names.

    Args:
        folder: The folder; it may be missing. Links and files of other names are passed over.
    """
    try:
        paths = [] if folder.is_symlink() else list(folder.iterdir())
    except OSError:
        paths = []
    found: dict[str, list[Path]] = {}
    for path in paths:
        digest, _, ending = path.name.partition(".")
        ours = _is_digest(digest) and re.fullmatch(r"safetensors|[0-9a-f]{32}", ending)
        if ours and path.is_file() and not path.is_symlink():
            found.setdefault(digest, []).append(path)
    return found
