"""``s3://bucket/key``: a signed URL for each request, with the partial files, ranges and checks of every other source.

One part runs against moto's server, which answers as S3 does; the other against a scripted one, for the answers that
moto does not give (another region, damaged bytes).
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator
from urllib.parse import parse_qs, urlsplit

import pytest

from repvgg_zoo.errors import ArgumentError, DependencyError, DownloadError, IntegrityError, OfflineError
from repvgg_zoo.hub import Settings
from repvgg_zoo.hub.filenames import cache_key
from repvgg_zoo.hub.sources import sources_of

from .conftest import BODY, FILE, NAME, OTHER, Zoo, spec
from .server import Answer, Server

has_moto = importlib.util.find_spec("moto") is not None
needs_moto = pytest.mark.skipif(not has_moto, reason="moto is not installed (test group of pyproject.toml)")


@pytest.fixture(autouse=True)
def _aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("botocore")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def with_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")


class S3:
    """A running S3 server with the bucket ``acme-models``."""

    def __init__(self, folder: Path) -> None:
        import botocore.session

        self._log = folder / "log"
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not re.search(r"http://127\.0\.0\.1:\d+", self.log()):
            assert self._process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.05)
        self.url = re.findall(r"http://127\.0\.0\.1:\d+", self.log())[0]
        session = botocore.session.get_session()
        session.set_credentials("AKIDEXAMPLE", "s3cret")
        self.client: Any = session.create_client("s3", region_name="us-east-1", endpoint_url=self.url)
        self.client.create_bucket(Bucket="acme-models")

    def log(self) -> str:
        return self._log.read_text()

    def put(self, key: str, body: bytes) -> str:
        self.client.put_object(Bucket="acme-models", Key=key, Body=body)
        return f"s3://acme-models/{key}"

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture(scope="module")
def running_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    running = S3(tmp_path_factory.mktemp("s3"))
    yield running
    running.close()


@pytest.fixture
def s3(running_s3: S3, monkeypatch: pytest.MonkeyPatch, with_keys: None) -> S3:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running_s3.url)
    return running_s3


@needs_moto
def test_an_object_is_downloaded_and_verified(zoo: Zoo, s3: S3) -> None:
    file = spec(s3.put("zoo/a b@1.bin", BODY).replace(" ", "%20"))
    assert zoo.fetch(file).read_bytes() == BODY
    assert zoo.parts() == []


@needs_moto
def test_an_unfinished_download_of_an_object_is_resumed(zoo: Zoo, s3: S3) -> None:
    file = spec(s3.put("resumed.bin", BODY))
    zoo.root.mkdir()
    (zoo.root / f"{cache_key(file)}.released.{'0' * 12}.part").write_bytes(BODY[:1_000_000])
    assert zoo.fetch(file).read_bytes() == BODY
    answers = re.findall(r"GET /acme-models/resumed\.bin\S* HTTP/1\.1\S* (\d+)", s3.log())
    assert answers == ["206"]


@needs_moto
def test_another_object_than_the_registrys_is_refused(zoo: Zoo, s3: S3) -> None:
    with pytest.raises(IntegrityError):
        zoo.fetch(spec(s3.put("other.bin", OTHER)))
    assert zoo.names() == []


@needs_moto
def test_a_missing_object_or_bucket_is_a_failed_source(zoo: Zoo, s3: S3) -> None:
    there = s3.put("there.bin", BODY)
    assert zoo.fetch(spec("s3://acme-models/none", "s3://no-such-bucket/a.bin", there)).read_bytes() == BODY


@needs_moto
def test_a_bucket_can_be_a_mirror(zoo: Zoo, s3: S3) -> None:
    s3.put(f"zoo/{NAME}", BODY)
    settings = Settings(cache_dir=zoo.root, mirrors=("s3://acme-models/zoo/",))
    assert zoo.fetch(FILE, settings=settings).read_bytes() == BODY


@pytest.fixture
def scripted(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url(""))
    return server


def signed_for(path: str) -> str:
    (credential,) = parse_qs(urlsplit(path).query)["X-Amz-Credential"]
    return credential.split("/")[2]


def test_each_request_is_signed_and_a_broken_body_resumed(zoo: Zoo, scripted: Server, with_keys: None) -> None:
    scripted.serve("/acme-models/x/a.bin", Answer(BODY, cut=1_000_000, etag='"1"'), Answer(BODY, etag='"1"'))
    assert zoo.fetch(spec("s3://acme-models/x/a.bin")).read_bytes() == BODY
    assert [request.headers.get("Range") for request in scripted.requests] == [None, "bytes=1000000-"]
    assert scripted.requests[1].headers["If-Range"] == '"1"'
    for request in scripted.requests:
        assert "X-Amz-Signature=" in request.path
        assert "Authorization" not in request.headers


def test_a_signed_url_gets_no_other_credential(
    zoo: Zoo, scripted: Server, with_keys: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """S3 refuses a request that is signed in two ways."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("REPVGG_ZOO_CREDENTIALS", f"{scripted.url('')} Authorization: Bearer secret")
    scripted.serve("/acme-models/a.bin", Answer(BODY))
    zoo.fetch(spec("s3://acme-models/a.bin"), services=zoo.services(client=None))
    assert "X-Amz-Signature=" in scripted.requests[0].path
    assert "Authorization" not in scripted.requests[0].headers


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=301, headers={"x-amz-bucket-region": "eu-north-1"}),
        Answer(b"<Error><Region>eu-north-1</Region></Error>", status=400),
    ],
)
def test_the_region_that_the_server_names_is_used(
    zoo: Zoo, scripted: Server, with_keys: None, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    scripted.serve("/acme-models/a.bin", answer, Answer(BODY))
    assert zoo.fetch(spec("s3://acme-models/a.bin")).read_bytes() == BODY
    assert [signed_for(request.path) for request in scripted.requests] == ["us-west-2", "eu-north-1"]


def test_a_server_that_names_one_region_for_ever_is_a_failed_source(
    zoo: Zoo, scripted: Server, with_keys: None
) -> None:
    scripted.serve("/acme-models/a.bin", Answer(status=400, headers={"x-amz-bucket-region": "eu-north-1"}))
    with pytest.raises(DownloadError, match="400"):
        zoo.fetch(spec("s3://acme-models/a.bin"))
    assert len(scripted.requests) == 2


def test_a_public_bucket_needs_no_keys(zoo: Zoo, scripted: Server) -> None:
    scripted.serve("/acme-models/a.bin", Answer(BODY))
    assert zoo.fetch(spec("s3://acme-models/a.bin")).read_bytes() == BODY
    assert [request.path for request in scripted.requests] == ["/acme-models/a.bin"]


def test_errors_name_the_object_and_no_signature(zoo: Zoo, scripted: Server, with_keys: None) -> None:
    scripted.serve(
        "/acme-models/a.bin", Answer(b"<Code>AccessDenied</Code>", status=403, headers={"x-amz-request-id": "1"})
    )
    with pytest.raises(
        DownloadError, match=r"s3://acme-models/a\.bin: .*403.*AccessDenied.*keys of the AWS tools"
    ) as caught:
        zoo.fetch(spec("s3://acme-models/a.bin"))
    output = str(caught.value) + repr(caught.value.__dict__)
    assert "Signature" not in output and "AKID" not in output and "s3cret" not in output


def test_a_configuration_that_cannot_sign_is_a_failed_source(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(DownloadError, match=r"AWS configuration: .*nobody"):
        zoo.fetch(spec("s3://acme-models/a.bin"))
    assert zoo.fetch(spec("s3://acme-models/a.bin", server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY


def test_without_botocore_the_error_says_what_to_install(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(DependencyError) as caught:
        zoo.fetch(spec("s3://acme-models/a.bin"))
    assert caught.value.hint == "pip install botocore"
    assert zoo.names() == []
    with pytest.raises(DownloadError, match="pip install botocore"):
        zoo.fetch(spec("s3://acme-models/a.bin", server.url("/missing.bin")))
    assert zoo.fetch(spec("s3://acme-models/a.bin", server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY


def test_an_object_is_not_downloaded_offline(zoo: Zoo) -> None:
    with pytest.raises(OfflineError):
        zoo.fetch(spec("s3://acme-models/a.bin"), offline=True)


@pytest.mark.parametrize("source", ["s3://acme-models", "s3://Acme/a.bin", "s3://acme-models/../a", "s3://a-b/c?d"])
def test_a_text_that_names_no_object_is_refused(zoo: Zoo, source: str) -> None:
    with pytest.raises(ArgumentError, match="not a valid source") as caught:
        sources_of(spec(source), Settings(cache_dir=zoo.root))
    assert "s3://bucket/key" in str(caught.value.hint)
