"""Hostile bytes against what reads other people's files: no crash, no hang, nothing outside.

    python tests/fuzz/fuzz.py SECONDS [TARGET...]

Each target gets mutations of sound files, drawn from a seed that is printed, for so many seconds of
CPU time each. A finding is any error but `BioTuneError`, an answer that takes over 10 seconds, a
file outside the target's folder, or a process of over a gibibyte more than it began with. The
offending bytes are printed, to become a test. Files lie in memory where the system has such a
folder: on a disk most of the time would be spent on waiting, which is no CPU time.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from biotune_optuna.data.decode import decode_image
from biotune_optuna.data.sources.manifest import open_manifest
from biotune_optuna.data.sources.open import open_images
from biotune_optuna.errors import BioTuneError
from biotune_optuna.export import Preprocessing, export_model, load_exported
from biotune_optuna.export.folder import CARD, FILES
from biotune_optuna.finetune.calibration import Calibration
from biotune_optuna.models.blocks import model_blocks
from biotune_optuna.models.states import read_state_dict
from biotune_optuna.models.weights import create_model
from biotune_optuna.recipe import BlockRecipe, Recipe
from biotune_optuna.storage.open import open_storage
from tests.kit.rasters import bmp, png, pnm, tiff

LONGEST = 10.0  # seconds for one input
MOST = 2**20  # KiB
SEEDS = (0, 1, 2, 3)
_ODD = (
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"../../x",
    b"=1+1",
    b"\x1b[2J",
    b"\r\n",
    b"{" * 40,
)

Target = tuple[list[bytes], Callable[[bytes, Path], object]]


def mutations(seed: int, corpus: list[bytes]) -> Iterator[bytes]:
    """Yield sound files with bytes turned, cut, doubled, moved and put in, for ever."""
    draw = random.Random(seed)
    while True:
        content = bytearray(draw.choice(corpus))
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(content) + 1)
            kind = draw.randrange(6)
            if kind == 0 and content:
                content[at - 1] = draw.randrange(256)
            elif kind == 1 and content:
                content[at - 1] ^= 1 << draw.randrange(8)
            elif kind == 2:
                del content[at : at + draw.randint(1, 64)]
            elif kind == 3:
                content[at:at] = draw.choice(_ODD)
            elif kind == 4:
                content[at:at] = content[at : at + draw.randint(1, 64)]
            else:
                del content[at:]
        yield bytes(content)


def images() -> list[bytes]:
    """Sound pictures of every format, made here."""
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    found = [
        png(values, colour=2, extra=[(b"tEXt", b"Comment\0x")]),
        png(values[..., :1], colour=3, palette=bytes(range(256)) * 3),
        tiff(values, photometric=2, deflate=True),
        tiff(values[..., :1], photometric=0, rows_per_strip=2),
        bmp(values[..., :1], bits=8, palette=bytes(1024)),
        pnm(values, kind=6),
        pnm(values, kind=3),
    ]
    Image.init()
    for kind in ("JPEG", "GIF", "WEBP", "JPEG2000", "AVIF"):
        if kind in Image.SAVE:
            stream = io.BytesIO()
            Image.fromarray(values.astype(np.uint8)).save(stream, kind)
            found.append(stream.getvalue())
    return found


def read_manifest(content: bytes, folder: Path) -> None:
    """Open a CSV file that lists pictures of its folder."""
    (folder / "m.csv").write_bytes(content)
    open_manifest(folder / "m.csv")


def read_journal(content: bytes, folder: Path) -> None:
    """Open a journal and look at all its studies."""
    (folder / "s.log").write_bytes(content)
    storage = open_storage(str(folder / "s.log"), read_only=True, retry_seconds=0.1)
    for study in storage.get_all_studies():
        storage.get_all_trials(study._study_id)


def read_database(content: bytes, folder: Path) -> None:
    """Open an SQLite file and look at all its studies."""
    (folder / "s.db").write_bytes(content)
    storage = open_storage(f"sqlite:///{folder}/s.db", read_only=True, retry_seconds=0.1)
    for study in storage.get_all_studies():
        storage.get_all_trials(study._study_id)
    storage.remove_session()


def read_weights(content: bytes, folder: Path) -> None:
    """Read a file of weights, by both readers."""
    for name in ("w.pth", "w.safetensors"):
        (folder / name).write_bytes(content)
        try:
            read_state_dict(folder / name)
        except BioTuneError:
            continue


def read_recipe(content: bytes, folder: Path) -> None:
    """Read a recipe."""
    (folder / "recipe.json").write_bytes(content)
    Recipe.load(folder / "recipe.json")


def read_dataset(content: bytes, folder: Path) -> None:
    """Look at a folder of images, one of which is the content, as a study does first."""
    place = folder / "images"
    for label in "ab":
        (place / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "0.png", place / label / "sound.png")
    (place / "a" / "other.png").write_bytes(content)
    source = open_images(place, skip_bad_images=True)
    for i in range(len(source)):
        source.load(i)


def exports(folder: Path) -> dict[str, Target]:
    """Return an exported model of two members: a target for each of its files that is read."""
    loaded = create_model("test_vit", num_classes=2, weights="none", seed=0)
    twin = copy.deepcopy(loaded.model)
    with torch.no_grad():
        twin.get_parameter("head.weight").add_(1.0)
    sound = export_model(
        folder / "sound",
        model=loaded.model,
        members=[twin],
        model_name="test_vit",
        classes=["a", "b"],
        preprocessing=Preprocessing(
            size=160, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bicubic"
        ),
        recipe=Recipe.full(model_blocks(loaded.model), lr=1e-3),
        calibration={name: Calibration.fit(*predictions()) for name in ("single", "members")},
    )

    def reader(name: str) -> Callable[[bytes, Path], object]:
        def read(content: bytes, place: Path) -> None:
            broken = place / "export"
            if not broken.exists():
                shutil.copytree(sound, broken)
            whole = (broken / name).read_bytes()
            try:
                (broken / name).write_bytes(content)
                load_exported(broken, device="cpu")
            finally:
                (broken / name).write_bytes(whole)

        return read

    read = [name for name in sorted(FILES) if (sound / name).exists() and name != CARD]
    return {f"export {name}": ([(sound / name).read_bytes()], reader(name)) for name in read}


def predictions() -> tuple[np.ndarray, np.ndarray]:
    """Return labels and probabilities to calibrate."""
    draw = np.random.default_rng(0)
    labels = np.arange(40) % 2
    right = np.clip(0.7 + 0.2 * draw.standard_normal(40), 0.05, 0.95)
    return labels, np.stack([np.where(labels == k, right, 1 - right) for k in (0, 1)], axis=1)


def study_files(kind: str) -> list[bytes]:
    """Return a small study, as a file."""
    import optuna

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"s.{kind}"
        url = f"sqlite:///{path}" if kind == "db" else str(path)
        study = optuna.create_study(study_name="s", storage=open_storage(url))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        study.set_user_attr("note", {"a": [1, "two"]})
        study._storage.remove_session()
        del study
        return [path.read_bytes()]


def weights() -> list[bytes]:
    """Return sound files of weights."""
    from safetensors.torch import save

    state = {"a.weight": torch.zeros(2, 3), "b.bias": torch.zeros(4)}
    stream = io.BytesIO()
    torch.save(state, stream)
    return [stream.getvalue(), save(state)]


def targets(folder: Path) -> dict[str, Target]:
    """Return every target by name: sound files, and what reads them in a folder."""
    for number in range(4):
        picture = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
    table = "path,label,split,group\n" + "".join(f"{i}.png,{'ab'[i % 2]},,g{i}\n" for i in range(4))
    blocks = [BlockRecipe(name, 1.0, (f"{name}.w",), (), "norms") for name in ("stem", "head")]
    recipe = Recipe(tuple(blocks), lr=0.01, training={"augment": "crop"}).to_dict()
    return {
        "image": (images(), lambda content, _: decode_image(content, name="x")),
        "manifest": ([table.encode(), table.replace(",", ";").encode()], read_manifest),
        "journal": (study_files("log"), read_journal),
        "database": (study_files("db"), read_database),
        "weights": (weights(), read_weights),
        "recipe": ([json.dumps(recipe).encode()], read_recipe),
        "dataset": (images(), read_dataset),
        **exports(folder),
    }


def fuzz(name: str, target: Target, folder: Path, seconds: float, seed: int) -> int:
    """Try one target for so much CPU time; return how many inputs that were.

    Raises:
        AssertionError: A finding; the input is in the message.
    """
    corpus, read = target
    began, tried = time.process_time(), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in mutations(seed, corpus):
        if time.process_time() - began >= seconds:
            break
        started = time.monotonic()
        try:
            read(content, folder)
        except BioTuneError as error:
            if "\n" in str(error):
                raise AssertionError(f"{name}: more than one line for {content!r}") from error
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__} for {content!r}") from error
        took = time.monotonic() - started
        assert took < LONGEST, f"{name}: {took:.1f} s for {content!r}"
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < MOST, f"{name}: {grown / 1024:.0f} MiB for {content!r}"
        tried += 1
    return tried


def main() -> None:
    """Fuzz the targets that are named, or all of them."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        os.environ["BIOTUNE_CACHE"] = f"{place}/cache"
        folder = Path(place) / "files"
        folder.mkdir()
        found = targets(folder)
        for name in sys.argv[2:] or found:
            tried = sum(
                fuzz(name, found[name], folder, seconds / len(SEEDS), seed) for seed in SEEDS
            )
            outside = {path.name for path in Path(place).iterdir()} - {"files", "cache"}
            assert not outside, f"{name} wrote {outside}"
            sys.stdout.write(f"{name}: {tried:,} inputs in {seconds:.0f} s of CPU, no finding\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
