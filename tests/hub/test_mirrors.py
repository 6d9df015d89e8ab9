"""A mirror is written as people write addresses: with a SAS token, in a folder with spaces, below ``~``, without https.

Each form either works or is refused with an error that names the variable and says what to write instead; none is
taken for something else (a relative folder, two mirrors, a file name after the query).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from repvgg_zoo._settings import read_settings
from repvgg_zoo._urls import join_url
from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.hub import Settings
from repvgg_zoo.hub.sources import sources_of

from .conftest import BODY, FILE, NAME, Zoo, fill, spec
from .server import Answer, Server


@pytest.mark.parametrize("mirror", ["/zoo?sv=2022&sig=abc%2F", "/zoo/?sv=2022&sig=abc%2F"])
def test_the_query_of_a_mirror_stays_behind_the_files_name(zoo: Zoo, server: Server, mirror: str) -> None:
    server.serve(f"/zoo/{NAME}", Answer(BODY))
    settings = Settings(cache_dir=zoo.root, mirrors=(server.url(mirror),))
    assert zoo.fetch(FILE, settings=settings).read_bytes() == BODY
    assert [request.path for request in server.requests] == [f"/zoo/{NAME}?sv=2022&sig=abc%2F"]


def test_a_mirror_folder_with_a_space_is_written_as_a_url(zoo: Zoo, tmp_path: Path) -> None:
    folder = tmp_path / "My Drive" / "zoo"
    fill(folder)
    settings = read_settings({"REPVGG_ZOO_HOME": str(zoo.root), "REPVGG_ZOO_MIRROR": folder.as_uri()})
    assert zoo.fetch(FILE, settings=settings).read_bytes() == BODY


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = read_settings({"REPVGG_ZOO_MIRROR": "~/zoo", "REPVGG_ZOO_REWRITE": "https://hub.example/=~/copy/"})
    assert settings.mirrors == (f"{tmp_path}/zoo",)
    assert settings.url_rewrites == (("https://hub.example/", f"{tmp_path}/copy/"),)


# (what is written, what of it is named in the error)
REFUSED = [
    ("zoo-mirror", "zoo-mirror"),
    ("./zoo", "./zoo"),
    ("files.example/zoo", "files.example/zoo"),
    ("localhost:8000", "localhost:8000"),
    ("/srv/My Drive/zoo", "Drive/zoo"),
    ("https:files.example", "https:files.example"),
    ("https:///zoo", "https:///zoo"),
    ("ftp://files.example/zoo", "ftp://files.example/zoo"),
    ("file:zoo", "file:zoo"),
    ("file://server/share", "file://server/share"),
    ("~nobody-has-this-name/zoo", "~nobody-has-this-name/zoo"),
    ("ftp://me:secret@files.example/zoo?sig=secret", "ftp://…@files.example/zoo"),
    ("files.example/zoo?sig=secret", "files.example/zoo"),
    ("me:secret@files.example/zoo", "…@files.example/zoo"),
]


@pytest.mark.parametrize(("value", "named"), REFUSED)
def test_an_address_that_cannot_work_is_refused_with_the_cure(value: str, named: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_settings({"REPVGG_ZOO_MIRROR": value})
    error = caught.value
    assert "REPVGG_ZOO_MIRROR" in error.message and repr(named) in error.message
    assert "https://" in str(error.hint) and "file:///My%20Drive" in str(error.hint)
    assert "secret" not in repr(error.__dict__) + str(error)


def test_the_target_of_a_rewrite_rule_is_checked_like_a_mirror() -> None:
    with pytest.raises(ArgumentError, match=r"REPVGG_ZOO_REWRITE contains 'near\.example/'"):
        read_settings({"REPVGG_ZOO_REWRITE": "https://hub.example/=near.example/"})


@pytest.mark.parametrize(
    "path", ["/gh/acme/weights@v1.0/a.bin", "/@acme/weights@1.0.0/a.bin", "/api/files/a.bin?ref=a@b"]
)
def test_an_at_sign_in_a_path_is_no_credential(zoo: Zoo, server: Server, path: str) -> None:
    server.serve(path.partition("?")[0], Answer(BODY))
    assert zoo.fetch(spec(server.url(path))).read_bytes() == BODY
    assert server.requests[0].path == path
    assert "Authorization" not in server.requests[0].headers


def test_a_relative_file_url_is_not_a_source(zoo: Zoo) -> None:
    with pytest.raises(ArgumentError, match="not a valid source"):
        sources_of(spec("file:a.bin"), Settings(cache_dir=zoo.root))


@pytest.mark.parametrize(
    ("base", "address"),
    [
        ("https://host.example", "https://host.example/a.bin"),
        ("https://host.example?x=1", "https://host.example/a.bin?x=1"),
        ("/data/what?/zoo/", "/data/what?/zoo/a.bin"),
        ("file:///data/zoo", "file:///data/zoo/a.bin"),
    ],
)
def test_a_name_is_added_to_a_url_or_a_folder(base: str, address: str) -> None:
    assert join_url(base, "a.bin") == address


def test_no_representation_has_the_secrets_of_a_mirror(zoo: Zoo) -> None:
    settings = read_settings(
        {
            "REPVGG_ZOO_HOME": str(zoo.root),
            "REPVGG_ZOO_MIRROR": "https://files.example/zoo?sig=secret /srv/zoo",
            "REPVGG_ZOO_REWRITE": "https://hub.example/=https://me:secret@near.example/",
        }
    )
    text = repr(settings) + repr(sources_of(spec("https://hub.example/a.bin"), settings))
    assert "secret" not in text
    for word in (
        "files.example/zoo",
        "/srv/zoo",
        "near.example",
        "Source('https://near.example/a.bin')",
        str(zoo.root),
    ):
        assert word in text
