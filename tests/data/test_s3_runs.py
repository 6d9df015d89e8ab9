"""``run`` reads tar files from S3 and writes its output there, in the protocol of moto's server."""

from __future__ import annotations

import csv
import io
import re
import tarfile
import urllib.request
from pathlib import Path
from typing import Any, Iterator, Optional

import pytest

import repvgg_zoo
from repvgg_zoo.data.manifest import Manifest, ShardRecord, begin, commit, finished_shard
from repvgg_zoo.data.output_folder import OutputFolder
from repvgg_zoo.errors import ArgumentError, MissingFileError
from tests.hub.test_s3 import S3, needs_moto

from . import runs


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    pytest.importorskip("boto3")
    pytest.importorskip("megfile")
    running = S3(tmp_path_factory.mktemp("s3"))
    yield running
    running.close()


@pytest.fixture
def bucket(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The server, with megfile's settings for it."""
    for name, value in {
        "OSS_ENDPOINT": s3.url,
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    yield s3
    allow(s3, float("inf"))


def allow(s3: S3, requests: float) -> None:
    """Let the server answer so many requests, and refuse the credentials of all that follow."""
    plain = {"Content-Type": "text/plain"}
    url, body = f"{s3.url}/moto-api/reset-auth", str(requests).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, plain)):
        pass


@needs_moto
def test_tar_files_in_a_bucket_are_predicted_into_a_bucket(bucket: S3, tmp_path: Path) -> None:
    images = sorted(runs.write_digits(tmp_path / "images").rglob("*.png"))
    for number in range(2):
        body = io.BytesIO()
        with tarfile.open(fileobj=body, mode="w") as tar:
            for path in images[number::2]:
                tar.add(path, path.name)
        bucket.put(f"digits/part-{number}.tar", body.getvalue())
    sources = [f"s3://acme-models/digits/part-{number}.tar" for number in range(2)]

    def run() -> Any:
        return repvgg_zoo.run("predict", sources, "s3://acme-models/run-1", model="RepVGG_N0", workers=1)

    assert (run().images, run().resumed) == (runs.IMAGES, 2)  # the second call finds all shards finished
    rows = []
    for index in range(2):
        body = bucket.client.get_object(Bucket="acme-models", Key=f"run-1/00000{index}.csv")["Body"].read()
        rows += list(csv.reader(io.StringIO(body.decode())))[1:]
    assert len({row[0] for row in rows}) == len(rows) == runs.IMAGES


MANIFEST = Manifest("predict", "RepVGG_N0", "0" * 64, "csv", {}, (("x.tar", "1" * 64),), "0.1.0")
ROWS = {"000000.csv": b"key,error\nx,\n", "000000.npy": bytes(100)}
RECORD = ShardRecord(0, 1, {name: len(data) for name, data in ROWS.items()})


def finish_shard(folder: OutputFolder) -> None:
    """Do what a run does with its folder: begin it, list it, and commit a shard."""
    begin(folder, MANIFEST)
    if finished_shard(folder, MANIFEST.sha256, 0, folder.sizes()) is None:
        commit(folder, MANIFEST.sha256, RECORD, ROWS)
    assert finished_shard(folder, MANIFEST.sha256, 0, folder.sizes()) == RECORD


def error_of(folder: OutputFolder) -> Optional[ArgumentError]:
    try:
        finish_shard(folder)
    except ArgumentError as error:
        return error
    return None


@needs_moto
def test_a_bucket_that_refuses_a_request_ends_in_an_error_and_no_file_in_part(bucket: S3) -> None:
    """Each request of a run in turn is the first that is refused, until all are allowed."""
    whole = {"manifest.json": len(MANIFEST.to_json()), **RECORD.files}
    for allowed in range(100):
        folder = OutputFolder(f"s3://acme-models/refused-{allowed}")
        allow(bucket, allowed)
        error = error_of(folder)
        allow(bucket, float("inf"))
        if error is None:
            break
        assert folder.path in str(error) and "cannot be" in str(error) and "credentials" in str(error.hint)
        assert "s3cret" not in str(error)
        sizes = folder.sizes()
        is_finished = sizes.pop("000000.json", 0) > 0
        assert sizes.items() <= whole.items()
        assert not is_finished or sizes == whole
    assert allowed > len(ROWS) + 4
    finish_shard(OutputFolder(f"s3://acme-models/refused-{allowed - 5}"))


@needs_moto
@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_a_large_file_of_which_a_part_is_refused_does_not_appear(bucket: S3, allowed: int) -> None:
    folder = OutputFolder(f"s3://acme-models/large-{allowed}")
    allow(bucket, allowed)
    with pytest.raises(ArgumentError, match=r"large-\d/features\.npy cannot be written"):
        folder.write("features.npy", bytes(9 << 20))
    allow(bucket, float("inf"))
    assert folder.sizes() == {}


@needs_moto
def test_a_bucket_that_does_not_exist_is_an_error_before_anything_is_computed(bucket: S3, tmp_path: Path) -> None:
    images = runs.write_digits(tmp_path / "images")
    for url in ("s3://acme-nothing/run-1", "s3:///run-1"):
        with pytest.raises(MissingFileError, match=r"the bucket of s3://.*does not exist") as caught:
            repvgg_zoo.run("predict", images, url, model="RepVGG_N0")
        assert caught.value.url and "create it" in str(caught.value.hint)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/run-1", "nonsense://acme/run-1"])
def test_an_output_that_megfile_cannot_write_is_an_error(url: str, tmp_path: Path) -> None:
    pytest.importorskip("megfile")
    images = runs.write_digits(tmp_path / "images")
    with pytest.raises(ArgumentError, match=re.escape(f"{url}/manifest.json cannot be read")) as caught:
        repvgg_zoo.run("predict", images, url, model="RepVGG_N0")
    assert caught.value.hint


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    images = runs.write_digits(tmp_path / "images")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArgumentError, match="cannot be written") as caught:
        repvgg_zoo.run("predict", images, tmp_path / "file" / "run-1", model="RepVGG_N0")
    assert caught.value.path and caught.value.hint
