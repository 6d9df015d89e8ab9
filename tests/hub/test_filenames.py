"""Names on disk, however hostile the names that come in (T34), and the settings that name folders (T27)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.hub import read_settings, stored_name
from repvgg_zoo.hub.filenames import is_stored_name, safe_name

from .conftest import BODY, Zoo, spec
from .server import Answer, Server

HOSTILE = [
    *("", ".", "..", "/", "//", "../../etc/passwd", "..\\..\\windows\\win.ini", "/etc/passwd", "C:\\x.bin", "C:x.bin"),
    *(
        "a\0b",
        "a\nb",
        "a.",
        "a ",
        "a. . .",
        "con",
        "CON",
        "nul.bin",
        "COM1.bin",
        "aux.",
        "a:stream",
        "a|b",
        "a?b*",
        '"a"',
    ),
    *(
        "%2e%2e",
        "%2e%2e%2fa",
        "~",
        "~root",
        "-rf",
        "$(touch x)",
        "`x`",
        ".hidden",
        "....",
        "a" * 300,
        "é" * 200,
        "模" * 200,
    ),
    *("a" * 300 + ".safetensors", "\ud800", "\u202egnp.exe", "a\u0301", "\ufeff", "a/../b", "\\\\server\\share\\a"),
]


@pytest.mark.parametrize("name", HOSTILE, ids=[ascii(name)[:24] for name in HOSTILE])
def test_a_hostile_name_ends_as_a_harmless_file_in_the_cache(zoo: Zoo, server: Server, name: str) -> None:
    """T34: the name comes from the registry; the URL's and Content-Disposition's names are never used."""
    headers = {"Content-Disposition": 'attachment; filename="../../evil"'}
    path = zoo.fetch(spec(server.serve("/a.bin", Answer(BODY, headers=headers)), name=name))
    assert path.parent == zoo.root
    assert is_stored_name(path.name)
    assert [item.name for item in zoo.root.parent.iterdir()] == ["cache"]


@settings(deadline=None)  # a busy machine is no failure
@given(st.text())
def test_every_name_becomes_one_that_every_file_system_takes(name: str) -> None:
    """T34: Windows forbids a trailing dot or space, some characters, and device names (the key stands before those)."""
    stored = stored_name(spec(name=name))
    assert is_stored_name(stored)
    assert stored.isascii()
    assert not set(stored) & set('<>:"/\\|?* %\0')
    assert stored[-1] not in ". "
    assert len(stored) <= 137
    assert safe_name(safe_name(name)) == safe_name(name)


def test_the_end_of_a_long_name_is_kept() -> None:
    assert safe_name("a" * 300 + ".safetensors").endswith(".safetensors")


def test_names_that_differ_in_case_alone_collide_only_if_the_files_are_the_same() -> None:
    """T34"""
    one, two = spec(name="A.bin"), spec(name="a.bin", body=BODY + b"x")
    assert stored_name(one).lower() != stored_name(two).lower()


def test_two_unverified_files_of_one_name_do_not_collide() -> None:
    facts = {"size": None, "sha256": None}
    assert stored_name(spec("https://a.example/x", **facts)) != stored_name(spec("https://b.example/x", **facts))


@pytest.mark.parametrize(
    "name", ["..", "a", "0123", "0123456789abcdef-", "0123456789abcdef-a/b", "0123456789abcdef-a.", "g" * 16 + "-a"]
)
def test_what_is_no_stored_name_is_seen(name: str) -> None:
    assert not is_stored_name(name)


HOMES = [
    ({"REPVGG_ZOO_HOME": "/data/zoo", "MGE_HOME": "/m"}, "/data/zoo"),
    ({"MGE_HOME": "/m", "XDG_CACHE_HOME": "/x"}, "/m/repvgg_zoo"),
    ({"XDG_CACHE_HOME": "/x"}, "/x/megengine/repvgg_zoo"),
    ({"REPVGG_ZOO_HOME": "", "XDG_CACHE_HOME": ""}, "~/.cache/megengine/repvgg_zoo"),
    ({"REPVGG_ZOO_HOME": "~/zoo"}, "~/zoo"),
    ({"REPVGG_ZOO_HOME": "some/where"}, "some/where"),
]


@pytest.mark.parametrize(("env", "home"), HOMES)
def test_the_cache_lies_where_the_environment_says_or_under_megengines_home(env: dict, home: str) -> None:
    """T27: a relative path is taken from the current folder."""
    assert read_settings(env).cache == Path(os.path.abspath(os.path.expanduser(home)))  # noqa: PTH100, PTH111


def test_megengine_agrees_about_its_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("megengine.hub.hub")
    for name in ("MGE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert read_settings().cache == Path(hub._get_megengine_home()) / "repvgg_zoo"
    for name in ("XDG_CACHE_HOME", "MGE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
        assert read_settings().cache == Path(hub._get_megengine_home()) / "repvgg_zoo"


def test_a_machine_without_a_home_gets_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """T27"""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it is where neither HOME nor a user entry exists
    with pytest.raises(ArgumentError, match="REPVGG_ZOO_HOME"):
        read_settings({})
    assert read_settings({"REPVGG_ZOO_HOME": "/data"}).cache == Path("/data")


def test_every_setting_is_read(tmp_path: Path) -> None:
    settings = read_settings(
        {
            "REPVGG_ZOO_HOME": str(tmp_path),
            "REPVGG_ZOO_CACHE_DIRS": os.pathsep.join(["/one", "", "/two words"]),
            "REPVGG_ZOO_MIRROR": "https://a.example/zoo  /srv/zoo",
            "REPVGG_ZOO_REWRITE": "https://hub.example/=https://near.example/?x=1",
            "REPVGG_ZOO_OFFLINE": "Yes",
            "REPVGG_ZOO_ALLOW_UNVERIFIED": "0",
            "REPVGG_ZOO_PROGRESS": "off",
        }
    )
    assert settings.read_only == (Path("/one"), Path("/two words"))
    assert settings.mirrors == ("https://a.example/zoo", "/srv/zoo")
    assert settings.rewrites == (("https://hub.example/", "https://near.example/?x=1"),)
    assert (settings.offline, settings.allow_unverified, settings.progress) == (True, False, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REPVGG_ZOO_OFFLINE", "maybe"),
        ("REPVGG_ZOO_PROGRESS", "2"),
        ("REPVGG_ZOO_ALLOW_UNVERIFIED", "y e s"),
        ("REPVGG_ZOO_REWRITE", "https://only-one-side.example"),
        ("REPVGG_ZOO_REWRITE", "=x"),
        ("REPVGG_ZOO_HOME", "a\0b"),
        ("REPVGG_ZOO_HOME", "~nobody-has-this-name/x"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_an_argument_error_with_a_hint(name: str, value: str) -> None:
    with pytest.raises(ArgumentError, match=name) as caught:
        read_settings({name: value})
    assert caught.value.hint
    assert caught.value.actual == value
