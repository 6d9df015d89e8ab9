"""``hf://owner/repo@revision/path``: a file of a Hugging Face repository, from a server that answers like the Hub's.

The Hub redirects a large file to another host, with a signed URL: the token stays at the endpoint, ranges still work.
"""

from __future__ import annotations

from typing import Iterator

import pytest

from repvgg_zoo._settings import read_settings
from repvgg_zoo.errors import ArgumentError, DownloadError
from repvgg_zoo.hub import Settings
from repvgg_zoo.hub.sources import sources_of

from .conftest import BODY, FILE, NAME, Zoo, spec
from .server import Answer, Server


@pytest.fixture
def storage() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


HUB = "https://huggingface.co"
URLS = [
    ("hf://acme/repvgg/a.bin", f"{HUB}/acme/repvgg/resolve/main/a.bin"),
    ("hf://acme/repvgg@v1.0/a.bin", f"{HUB}/acme/repvgg/resolve/v1.0/a.bin"),
    ("hf://acme/repvgg@v1/x/y/a%20b@2.bin", f"{HUB}/acme/repvgg/resolve/v1/x/y/a%20b%402.bin"),
    ("hf://acme/repvgg@refs%2Fpr%2F1/a.bin", f"{HUB}/acme/repvgg/resolve/refs%2Fpr%2F1/a.bin"),
    ("hf://datasets/acme/repvgg/模型.bin", f"{HUB}/datasets/acme/repvgg/resolve/main/%E6%A8%A1%E5%9E%8B.bin"),
]


@pytest.mark.parametrize(("source", "url"), URLS)
def test_a_source_is_the_resolve_url_of_its_repository(zoo: Zoo, source: str, url: str) -> None:
    settings = Settings(cache_dir=zoo.root)
    assert [source.url for source in sources_of(spec(source), settings)] == [url]


def test_a_repository_can_be_a_mirror_and_rules_apply_to_the_url(zoo: Zoo) -> None:
    settings = read_settings(
        {
            "REPVGG_ZOO_HOME": str(zoo.root),
            "REPVGG_ZOO_MIRROR": "hf://acme/zoo@v1/files",
            "REPVGG_ZOO_REWRITE": "https://huggingface.co/=https://near.example/",
        }
    )
    first = sources_of(FILE, settings)[0]
    assert first.url == f"https://near.example/acme/zoo/resolve/v1/files/{NAME}"


def test_a_rewrite_rule_may_lead_to_a_repository_or_a_bucket(zoo: Zoo) -> None:
    rules = (("https://files.example/", "hf://acme/zoo@v1/"), ("https://huggingface.co/", "s3://acme-models/hf/"))
    settings = Settings(cache_dir=zoo.root, url_rewrites=rules)
    sources = sources_of(spec("https://files.example/x/a.bin", "hf://acme/repvgg/a.bin"), settings)
    assert [source.url for source in sources] == [
        "https://huggingface.co/acme/zoo/resolve/v1/x/a.bin",
        "s3://acme-models/hf/acme/repvgg/resolve/main/a.bin",
    ]


@pytest.mark.parametrize("source", ["hf://acme/a.bin", "hf://acme/repvgg/../a.bin", "hf://acme/repvgg/a.bin?x=1"])
def test_a_text_that_names_no_file_of_a_repository_is_refused(zoo: Zoo, source: str) -> None:
    with pytest.raises(ArgumentError, match="not a valid source") as caught:
        zoo.fetch(spec(source))
    assert "hf://owner/repo" in str(caught.value.hint)


def test_an_endpoint_that_is_not_a_url_is_named(zoo: Zoo) -> None:
    settings = read_settings({"REPVGG_ZOO_HOME": str(zoo.root), "HF_ENDPOINT": "hub.example"})
    with pytest.raises(ArgumentError, match=r"HF_ENDPOINT is 'hub\.example'"):
        sources_of(spec("hf://acme/repvgg/a.bin"), settings)


def test_a_file_is_resumed_from_the_endpoint_and_the_token_stays_there(
    zoo: Zoo, server: Server, storage: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(zoo.root))
    monkeypatch.setenv("HF_ENDPOINT", server.url("/hub/"))
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    signed = storage.serve("/blob", Answer(BODY, cut=1_000_000), Answer(BODY)) + "?X-Amz-Signature=1"
    server.serve("/hub/acme/repvgg/resolve/main/x/a.bin", Answer(status=302, headers={"Location": signed}))
    path = zoo.fetch(spec("hf://acme/repvgg/x/a.bin"), settings=read_settings(), services=zoo.services(client=None))
    assert path.read_bytes() == BODY
    assert [request.headers.get("Authorization") for request in server.requests] == ["Bearer hf_s3cret"] * 2
    assert [request.headers.get("Authorization") for request in storage.requests] == [None] * 2
    assert storage.requests[1].headers["Range"] == "bytes=1000000-"


def test_a_gated_repository_is_an_error_that_names_the_token(zoo: Zoo, server: Server) -> None:
    headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model acme/repvgg is restricted."}
    server.serve("/acme/repvgg/resolve/main/a.bin", Answer(b"no", status=401, headers=headers))
    settings = Settings(cache_dir=zoo.root, hf_endpoint=server.url(""))
    with pytest.raises(DownloadError, match=r"acme/repvgg is restricted.*set or renew HF_TOKEN"):
        zoo.fetch(spec("hf://acme/repvgg/a.bin"), settings=settings)


def test_the_token_is_not_sent_to_the_host_of_a_rewrite_rule(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    settings = Settings(cache_dir=zoo.root, url_rewrites=(("https://huggingface.co", server.url("")),))
    with pytest.raises(DownloadError):
        zoo.fetch(spec("hf://acme/repvgg/a.bin"), settings=settings, services=zoo.services(client=None))
    assert [request.path for request in server.requests] == ["/acme/repvgg/resolve/main/a.bin"]
    assert "hf_s3cret" not in repr(server.requests)
