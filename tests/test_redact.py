"""Passwords and tokens in URLs are never in a message, an error's data or a log.

The kind: a URL with credentials anywhere a user or a registry may write one, valid or not, and every message about it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest

import repvgg_zoo
from repvgg_zoo._redact import mask_credentials, redact
from repvgg_zoo._settings import read_settings
from repvgg_zoo.errors import ZooError
from repvgg_zoo.hub import Settings
from repvgg_zoo.hub.sources import sources_of
from repvgg_zoo.registry.parser import parse_registry
from repvgg_zoo.registry.specs import FileSpec

WITH_SECRETS = (
    "https://me:S3cret@host.example/a.bin",
    "https://S3cret@host.example/a.bin",
    "htps://me:S3cret@host.example/a.bin",
    "https://me:x/S3cret@host.example/a.bin",
    "https://me:x#S3cret@host.example/a.bin",
    "https://me:x?S3cret@host.example/a.bin",
    "https://me:12/S3cret@host.example/a.bin",
    "https://me:12#S3cret@host.example/a.bin",
    "https://me:[S3cret@host.example/a.bin",
    "https://me:S3cr S3cret@host.example/a.bin",
    "https://me:x@S3cret@host.example/a.bin",
    "//me:S3cret@host.example/a.bin",
    "me:S3cret@host.example/a.bin",
    "https://host.example/a.bin?sig=S3cret",
    "https://host.example:80/a.bin?sig=S3cret&at=1@2",
    "ftp://me:S3cret@host.example/a.bin",
    "s3://me:S3cret@bucket/a.bin",
    "file://me:S3cret@host.example/a.bin",
)


@pytest.mark.parametrize("url", WITH_SECRETS)
@pytest.mark.parametrize("function", [redact, mask_credentials])
def test_neither_function_shows_a_password_or_a_signature(function: Callable[[str], str], url: str) -> None:
    assert "S3c" not in function(url)


@pytest.mark.parametrize(
    "url",
    ["https://host.example/a.bin", "http://[::1]:80/a.bin", "gdrive:abc", "/a/b@c.bin", "https://host.example/a@b"],
)
def test_a_url_without_credentials_is_shown_as_it_is(url: str) -> None:
    assert redact(url) == url


def test_the_items_of_any_tuple_or_list_are_masked() -> None:
    file = FileSpec("a.bin", ("https://me:S3cret@host.example/a.bin",))
    assert mask_credentials(file)[:2] == ("a.bin", ("https://…@host.example/a.bin",))
    assert mask_credentials(["//me:S3cret@host"]) == ["//…@host"]


def file_with(url: str) -> FileSpec:
    return FileSpec("a.bin", (url,), sha256="0" * 64)


def registry_with(url: str) -> Any:
    quoted = url.replace("'", "''")
    checkpoints = f"{{x: {{file: {{name: a, sources: ['{quoted}']}}}}}}"
    return parse_registry(f"schema: 1\nvariants: {{acme/A: {{checkpoints: {checkpoints}}}}}".encode())


def fetch_with(url: str) -> Any:
    settings = Settings(cache_dir=Path("/nonexistent"), offline=True)
    return repvgg_zoo.hub.fetch_file(file_with(url), settings=settings)


WAYS = {
    "a registry's file": registry_with,
    "a registered mapping": lambda url: repvgg_zoo.register(
        {"schema": 1, "variants": {"acme/A": {"checkpoints": {"x": {"file": {"name": "a", "sources": [url]}}}}}}
    ),
    "a field of another kind": lambda url: repvgg_zoo.register({"schema": url}),
    "a list in place of a string": lambda url: repvgg_zoo.register({"schema": [url]}),
    "a source": lambda url: sources_of(file_with(url), Settings(cache_dir=Path("/c"))),
    "a mirror": lambda url: sources_of(file_with("/a.bin"), Settings(cache_dir=Path("/c"), mirrors=(url,))),
    "a rewrite rule": lambda url: read_settings({"REPVGG_ZOO_HOME": "/c", "REPVGG_ZOO_REWRITE": url}),
    "a mirror's variable": lambda url: read_settings({"REPVGG_ZOO_HOME": "/c", "REPVGG_ZOO_MIRROR": url}),
    "a fetch": fetch_with,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("url", WITH_SECRETS)
def test_no_error_shows_a_password_or_a_signature(way: Callable[[str], Any], url: str) -> None:
    try:
        way(url)
    except ZooError as error:
        text = str(error) + repr(vars(error)) + str(error.__cause__) + str(error.__context__)
        assert "S3c" not in text
