"""Users without an entry in the password database and without HOME, as containers with ``--user 54321`` have them.

The kind: ``Path.home``, ``~`` and the name of the user do not exist. With REPVGG_ZOO_HOME everything works; without it
the error names that variable.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import List

import pytest

from .other_user import run_as_other_user

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import os, pwd, sys
try:
    pwd.getpwuid(os.getuid())
    raise SystemExit("this user exists")
except KeyError:
    pass
sys.path.insert(0, sys.argv[1])
from repvgg_zoo.cli import main
raise SystemExit(main(sys.argv[2:]))
"""


def run(*argv: str, home: str = "", folder: Path) -> subprocess.CompletedProcess[str]:
    names = ("HOME", "MGE_HOME", "XDG_CACHE_HOME", "USER", "LOGNAME", "PYTHONPATH")
    environ = {key: value for key, value in os.environ.items() if key not in names and "REPVGG_ZOO" not in key}
    if home:
        environ["REPVGG_ZOO_HOME"] = home
    return run_as_other_user("-c", PROGRAM, str(ROOT), *argv, env=environ, cwd=folder)


COMMANDS = (
    ["list"],
    ["info", "RepVGG_N0"],
    ["fetch", "RepVGG_N0", "--offline"],
    ["verify"],
    ["cache", "ls"],
    ["cache", "rm", "RepVGG_N0"],
    ["bundle", "pack", "zoo.zip", "RepVGG_N0"],
    ["doctor", "cache", "disk", "locks", "environment", "registry"],
)


def test_with_a_cache_folder_of_their_own_everything_works(tmp_path: Path) -> None:
    for argv in COMMANDS:
        done = run(*argv, home=str(tmp_path / "zoo"), folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), (argv, done.stdout)


def test_the_doctor_says_where_megengine_writes_then(tmp_path: Path) -> None:
    done = run("doctor", "environment", home=str(tmp_path / "zoo"), folder=tmp_path)
    assert "a folder called ~ in the current one" in done.stdout and "export MGE_HOME=" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize("argv", [["fetch", "RepVGG_N0"], ["cache", "ls"], ["verify"]])
def test_without_one_the_error_names_the_variable_to_set(tmp_path: Path, argv: List[str]) -> None:
    done = run(*argv, "--json", folder=tmp_path)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["type"]) == (2, "ArgumentError"), done.stderr
    assert "REPVGG_ZOO_HOME" in error["hint"] and "no home folder" in error["hint"]


def test_what_needs_no_cache_works_without_one(tmp_path: Path) -> None:
    assert run("list", folder=tmp_path).returncode == 0
    assert run("info", "RepVGG_N0", folder=tmp_path).returncode == 0
