"""File names in the cache, however hostile the names in the registry."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repvgg_zoo.hub import cache_filename
from repvgg_zoo.hub.filenames import is_cache_filename, sanitize_filename

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
def test_a_hostile_name_becomes_a_harmless_file_in_the_cache(zoo: Zoo, server: Server, name: str) -> None:
    """The name comes from the registry; the URL's and Content-Disposition's names are never used."""
    headers = {"Content-Disposition": 'attachment; filename="../../evil"'}
    path = zoo.fetch(spec(server.serve("/a.bin", Answer(BODY, headers=headers)), name=name))
    assert path.parent == zoo.root
    assert is_cache_filename(path.name)
    assert [item.name for item in zoo.root.parent.iterdir()] == ["cache"]


@settings(deadline=None)  # a busy machine must not fail the test
@given(st.text())
def test_every_name_becomes_one_that_is_valid_on_every_file_system(name: str) -> None:
    """Windows forbids a trailing dot or space, some characters, and device names (the key stands before those)."""
    stored = cache_filename(spec(name=name))
    assert is_cache_filename(stored)
    assert stored.isascii()
    assert not set(stored) & set('<>:"/\\|?* %\0')
    assert stored[-1] not in ". "
    assert len(stored) <= 137
    assert sanitize_filename(sanitize_filename(name)) == sanitize_filename(name)


def test_the_end_of_a_long_name_is_kept() -> None:
    assert sanitize_filename("a" * 300 + ".safetensors").endswith(".safetensors")


def test_names_that_differ_in_case_alone_do_not_collide() -> None:
    one, two = spec(name="A.bin"), spec(name="a.bin", body=BODY + b"x")
    assert cache_filename(one).lower() != cache_filename(two).lower()


def test_two_unverified_files_of_one_name_do_not_collide() -> None:
    one, two = (spec(f"https://{host}.example/x", size=None, sha256=None) for host in "ab")
    assert cache_filename(one) != cache_filename(two)


@pytest.mark.parametrize(
    "name", ["..", "a", "0123", "0123456789abcdef-", "0123456789abcdef-a/b", "0123456789abcdef-a.", "g" * 16 + "-a"]
)
def test_a_name_that_the_cache_would_not_use_is_recognized(name: str) -> None:
    assert not is_cache_filename(name)
