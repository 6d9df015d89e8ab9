"""Environment variables: what each may hold, and what the package makes of it."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

import repvgg_zoo
from repvgg_zoo._settings import plugin_mode, read_settings, registry_files
from repvgg_zoo.errors import ArgumentError

HOMES = [
    ({"REPVGG_ZOO_HOME": "/data/zoo", "MGE_HOME": "/m"}, "/data/zoo"),
    ({"MGE_HOME": "/m", "XDG_CACHE_HOME": "/x"}, "/m/repvgg_zoo"),
    ({"XDG_CACHE_HOME": "/x"}, "/x/megengine/repvgg_zoo"),
    ({"REPVGG_ZOO_HOME": "", "XDG_CACHE_HOME": ""}, "~/.cache/megengine/repvgg_zoo"),
    ({"REPVGG_ZOO_HOME": "~/zoo"}, "~/zoo"),
    ({"REPVGG_ZOO_HOME": "some/where"}, "some/where"),
]


@pytest.mark.parametrize(("env", "home"), HOMES)
def test_the_cache_is_where_the_environment_says_or_in_megengines_home(env: dict, home: str) -> None:
    """A relative path is taken from the current folder."""
    assert read_settings(env).cache_dir == Path(os.path.abspath(os.path.expanduser(home)))  # noqa: PTH100, PTH111


def test_megengine_agrees_about_its_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("megengine.hub.hub")
    for name in ("MGE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert read_settings().cache_dir == Path(hub._get_megengine_home()) / "repvgg_zoo"
    for name in ("XDG_CACHE_HOME", "MGE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
        assert read_settings().cache_dir == Path(hub._get_megengine_home()) / "repvgg_zoo"


def test_a_machine_without_a_home_gets_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it is where neither HOME nor a user entry exists
    with pytest.raises(ArgumentError, match="REPVGG_ZOO_HOME"):
        read_settings({})
    assert read_settings({"REPVGG_ZOO_HOME": "/data"}).cache_dir == Path("/data")


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
    assert settings.read_only_cache_dirs == (Path("/one"), Path("/two words"))
    assert settings.mirrors == ("https://a.example/zoo", "/srv/zoo")
    assert settings.url_rewrites == (("https://hub.example/", "https://near.example/?x=1"),)
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
def test_an_invalid_setting_is_an_argument_error_with_a_hint(name: str, value: str) -> None:
    with pytest.raises(ArgumentError, match=name) as caught:
        read_settings({name: value})
    assert caught.value.hint
    assert caught.value.actual == value


PATHS = ("REPVGG_ZOO_HOME", "MGE_HOME", "XDG_CACHE_HOME", "REPVGG_ZOO_CACHE_DIRS", "REPVGG_ZOO_REGISTRY")
VALID = {
    "REPVGG_ZOO_MIRROR": "https://me:secret@a.example",
    "REPVGG_ZOO_REWRITE": "https://a.example/=https://me:secret@b.example/",
    "REPVGG_ZOO_OFFLINE": "1",
    "REPVGG_ZOO_PROGRESS": "1",
    "REPVGG_ZOO_PLUGINS": "on",
    "REPVGG_ZOO_RETRIES": "3",
}


def read_all(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PATHS, *VALID):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    read_settings(), registry_files(), plugin_mode()


@pytest.mark.parametrize("variable", [*PATHS, *VALID])
@pytest.mark.parametrize(
    ("template", "problem", "cure"),
    [
        ("{}\r", "carriage return", "sed -i"),
        ('"{}"', "contains quotes", "without them"),
        ("'{}'", "contains quotes", "without them"),
        ("'{}", "contains quotes", "without them"),
        (' "{}" ', "contains quotes", "without them"),
        ("{}\x1b[0m", "control character", "remove it"),
    ],
)
def test_a_value_that_a_file_of_variables_garbled_is_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, variable: str, template: str, problem: str, cure: str
) -> None:
    """The kind: Docker's --env-file, systemd and Windows editors leave in a value what a shell would take out."""
    value = VALID.get(variable, "/data")
    read_all(variable, value, monkeypatch)
    with pytest.raises(ArgumentError, match=f"{variable} contains.*") as caught:
        read_all(variable, template.format(value), monkeypatch)
    assert problem in caught.value.message and cure in str(caught.value.hint)
    assert "secret" not in f"{caught.value} {caught.value.actual}"


@pytest.mark.parametrize("variable", PATHS)
@pytest.mark.parametrize("value", ["${HOME}/zoo", "$HOME/zoo", "%USERPROFILE%\\zoo"])
def test_a_variable_inside_a_path_that_nothing_replaced_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    with pytest.raises(ArgumentError, match=f"{variable} is not a valid path") as caught:
        read_all(variable, value, monkeypatch)
    assert "nothing has replaced" in str(caught.value.hint)


@pytest.mark.parametrize("value", ["/data/zoo ", " /data/zoo", "/data/zoo\n"])
def test_white_space_around_the_cache_folder_is_refused(value: str) -> None:
    with pytest.raises(ArgumentError, match="REPVGG_ZOO_HOME") as caught:
        read_settings({"REPVGG_ZOO_HOME": value})
    assert "without spaces" in str(caught.value.hint)


@pytest.mark.parametrize("folder", ["/o'neil/zoo", "/data/two words", "/data/zoo-ü", "/price/$5"])
def test_unusual_folders_are_valid(folder: str) -> None:
    assert read_settings({"REPVGG_ZOO_HOME": folder}).cache_dir == Path(folder)


def test_several_mirrors_may_stand_on_lines_of_their_own() -> None:
    settings = read_settings(
        {"REPVGG_ZOO_HOME": "/data", "REPVGG_ZOO_MIRROR": "https://a.example\nhttps://b.example\n"}
    )
    assert settings.mirrors == ("https://a.example", "https://b.example")


PACKAGE = Path(repvgg_zoo.__file__).parent
WRITERS = {"cli/megengine_setup.py"}  # sets a variable for MegEngine


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_one_module_reads_the_environment(path: Path) -> None:
    names = {node.attr for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
    allowed = path.name == "_settings.py" or path.relative_to(PACKAGE).as_posix() in WRITERS
    assert allowed or not names & {"environ", "getenv", "environb"}
