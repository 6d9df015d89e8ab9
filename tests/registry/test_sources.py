"""The sources that a registry may state: which texts are valid, which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from repvgg_zoo.errors import RegistryError
from repvgg_zoo.registry.parser import parse_registry

from .sample import SAMPLE

VALID = [
    "https://host.example/a.bin",
    "http://host.example:8080/a.bin?x=1",
    "https://cdn.jsdelivr.net/gh/acme/weights@v1.0/x.safetensors",
    "https://unpkg.com/@acme/weights@1.0.0/x.safetensors",
    "https://gitlab.example/api/v4/files/x?ref=a@b",
    "https://host.example?name=a@b",
    "file:///data/a.bin",
    "gdrive:0123456789abc",
    "files/模型@1.bin",
    "hf://acme/repvgg/model.safetensors",
    "hf://acme/repvgg@v1.0/folder/a%20b.bin",
    "hf://acme/repvgg@refs%2Fpr%2F1/a.bin",
    "hf://datasets/acme/repvgg/a.bin",
    "s3://acme-models/a.bin",
    "s3://acme.models/folder/a@1%20b.bin",
]
INVALID = [
    "https://user:secret@host.example/a.bin",
    "https://user@host.example/a.bin",
    "https://user:secret@host.example/a@b",
    "https://host.example\\\\@evil.example/a.bin",
    "https:///a.bin",
    "https://@host.example/a.bin",
    "https://host.example/a b.bin",
    "ftp://host.example/a.bin",
    "//server/share/a.bin",
    "~/a.bin",
    "../a.bin",
    "hf://acme/model.safetensors",
    "hf://datasets/acme/a.bin",
    "hf://me:secret@acme/repvgg/a.bin",
    "hf://acme/repvgg@/a.bin",
    "hf://acme/repvgg@v1@v2/a.bin",
    "hf://acme/repvgg/",
    "hf://acme/repvgg/../../other/repo/resolve/main/a.bin",
    "hf://acme/repvgg/x/%2e%2E/a.bin",
    "hf://acme/repvgg/x%2f..%2fa.bin",
    "hf://acme/../a.bin",
    "hf://acme/repvgg/a.bin?download=true",
    "hf-hub:acme/repvgg",
    "s3://acme-models",
    "s3://acme-models/",
    "s3://Acme/a.bin",
    "s3://key:secret@acme-models/a.bin",
    "s3://acme-models/../a.bin",
    "s3://acme-models/a.bin?versionId=1",
    "oss://acme-models/a.bin",
]


def text(source: str) -> bytes:
    assert SAMPLE.count('"files/x1.pth"') == 1
    return SAMPLE.replace('"files/x1.pth"', f'"{source}"').encode()


@pytest.mark.parametrize("source", VALID)
def test_a_valid_source_is_read_as_it_is_written(source: str) -> None:
    path = Path("/registry/zoo.yaml")
    expected = source if ":" in source else str(path.parent / source)
    assert parse_registry(text(source), path=path).models[0].checkpoint("other").file.sources[0] == expected


@pytest.mark.parametrize("source", INVALID)
def test_an_invalid_source_is_an_error_that_lists_the_valid_ones(source: str) -> None:
    with pytest.raises(RegistryError, match="without credentials"):
        parse_registry(text(source), path=Path("/registry/zoo.yaml"))
