"""Shards in S3: s3fs against moto's server on 127.0.0.1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from mobilefit.data import shard_remote
from mobilefit.data.shards import load_shards
from mobilefit.errors import InputError

from .shard_server import write_shards

s3fs = pytest.importorskip("s3fs", reason="S3 needs s3fs")
moto = pytest.importorskip("moto.server", reason="the stand-in for S3 is moto's server")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a bucket with six shards for training and one for validation."""
    settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
                "AWS_DEFAULT_REGION": "us-east-1", "MOBILEFIT_CACHE": str(tmp_path / "cache")}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(shard_remote, "FIRST_PAUSE", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    write_shards(tmp_path / "train", 6, 10)
    write_shards(tmp_path / "val", 1, 4)
    system = s3fs.S3FileSystem()
    system.mkdir("images")
    for path in tmp_path.rglob("*.tar"):
        system.put_file(str(path), f"images/{path.relative_to(tmp_path)}")
    yield "s3://images"
    system.rm("images", recursive=True)


def test_shards_in_s3_are_read_by_forked_workers_that_fetch_them(bucket: str, tmp_path: Path) -> None:
    pattern = "{train/shard-{000..005},val/shard-000}.tar"
    here = load_shards(f"{tmp_path}/{pattern}", seed=0, holdout=0)
    data = load_shards(f"{bucket}/{pattern}", seed=0, holdout=0)
    assert data.train.names[0] == "s3://images/train/shard-000.tar#00000"
    assert data.fingerprint == here.fingerprint
    for path in (tmp_path / "cache" / "shards").glob("*.tar"):
        path.unlink()  # s3fs is at work in this process already, and starts anew in each worker
    batches = np.random.default_rng(0).permutation(60).reshape(-1, 5)
    loader = DataLoader(list(batches), batch_size=None, num_workers=2,
                        collate_fn=lambda batch: data.train.squares(np.asarray(batch), 20, 1.0))  # fmt: skip
    for batch, pixels in zip(batches, loader, strict=True):
        np.testing.assert_array_equal(pixels, here.train.squares(batch, 20, 1.0))
    assert len(list((tmp_path / "cache" / "shards").glob("*.tar"))) == 6


def test_a_key_or_bucket_that_is_not_there_is_told(bucket: str) -> None:
    with pytest.raises(InputError, match=r"2 of 8 .*cannot read s3://images/train/shard-006\.tar: .*shard-007"):
        load_shards(f"{bucket}/train/shard-{{000..007}}.tar", seed=0, holdout=0)
    with pytest.raises(InputError, match=r"cannot read s3://nowhere/0\.tar"):
        load_shards("s3://nowhere/0.tar", seed=0, holdout=0)


def test_missing_credentials_are_told_with_what_to_do(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match=r"credentials.*FSSPEC_S3_ANON=true for public data"):
        load_shards(f"{bucket}/train/shard-000.tar", seed=0, holdout=0)
