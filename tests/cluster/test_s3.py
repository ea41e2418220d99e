"""Images in a bucket of S3, as moto's server has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from biotune_optuna.data.sources.open import open_images
from biotune_optuna.errors import DataError
from tests.kit.cli import tree

server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")


@pytest.fixture
def bucket(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    """A bucket ``flowers``; address and keys stand in the environment, as users have it."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abracadabra")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem(use_listings_cache=False)
    filesystem.makedirs("flowers", exist_ok=True)  # moto keeps them as long as the process lives
    yield filesystem
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def test_a_folder_in_a_bucket_is_what_it_is_here(
    bucket: s3fs.S3FileSystem, tmp_path: Path, home: Path
) -> None:
    local = tree(tmp_path / "local", {"rose": 3, "tulip": 2})
    bucket.put(f"{local}/", "flowers/all/", recursive=True)
    found, here = open_images("s3://flowers/all"), open_images(str(local))
    assert (found.name, found.classes) == ("s3://flowers/all", ("rose", "tulip"))
    assert found.fingerprint == here.fingerprint
    copies = home / "cache" / "remote"
    assert sum(path.is_dir() for path in copies.iterdir()) == 1

    image = (local / "rose" / "0.png").read_bytes()
    bucket.pipe("flowers/all/rose/more.png", image + b"\n")
    assert len(open_images("s3://flowers/all")) == 6, "what changes there is copied anew"
    for path in copies.rglob("*"):
        assert not path.is_file() or b"abracadabra" not in path.read_bytes()


@pytest.mark.parametrize("url", ["s3://flowers/none", "s3://flowers/none.zip", "s3://nobodys/x"])
def test_what_is_not_there_is_said(bucket: s3fs.S3FileSystem, url: str) -> None:
    with pytest.raises(DataError) as caught:
        open_images(url)
    assert url in str(caught.value)
    assert "abracadabra" not in str(caught.value)
