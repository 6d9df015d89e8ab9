"""``run`` reads tar files from S3 and writes its output there, in the protocol of moto's server."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path
from typing import Any, Iterator

import pytest

import repvgg_zoo
from tests.hub.test_s3 import S3, needs_moto

from . import runs


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    pytest.importorskip("boto3")
    pytest.importorskip("megfile")
    running = S3(tmp_path_factory.mktemp("s3"))
    yield running
    running.close()


@needs_moto
def test_tar_files_in_a_bucket_are_predicted_into_a_bucket(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "OSS_ENDPOINT": s3.url,
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    images = sorted(runs.write_digits(tmp_path / "images").rglob("*.png"))
    for number in range(2):
        body = io.BytesIO()
        with tarfile.open(fileobj=body, mode="w") as tar:
            for path in images[number::2]:
                tar.add(path, path.name)
        s3.put(f"digits/part-{number}.tar", body.getvalue())
    sources = [f"s3://acme-models/digits/part-{number}.tar" for number in range(2)]

    def run() -> Any:
        return repvgg_zoo.run("predict", sources, "s3://acme-models/run-1", model="RepVGG_N0", workers=1)

    assert (run().images, run().resumed) == (runs.IMAGES, 2)  # the second call finds all shards finished
    rows = []
    for index in range(2):
        body = s3.client.get_object(Bucket="acme-models", Key=f"run-1/00000{index}.csv")["Body"].read()
        rows += list(csv.reader(io.StringIO(body.decode())))[1:]
    assert len({row[0] for row in rows}) == len(rows) == runs.IMAGES
