"""The guides show what the commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from repvgg_zoo.cli.parser import COMMANDS

from .guide import PAGE, PAGES, Shell, commands, same


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_guide_shows_what_each_of_its_commands_prints(tmp_path: Path, page: Path) -> None:
    shell = Shell(tmp_path / "reader")
    for command, expected, machines_differ in commands(page.read_text(encoding="utf-8")):
        printed = shell.run(command)
        assert same(expected, printed, machines_differ), (
            f"$ {command}\n{printed}\npython -m tests.cli.guide renews the pages"
        )


def test_the_guide_shows_every_command() -> None:
    commands_shown = [
        command.split()[1] for command, _, _ in commands(PAGE.read_text(encoding="utf-8")) if " " in command
    ]
    assert set(COMMANDS) <= set(commands_shown)


@pytest.mark.parametrize(
    ("expected", "printed", "machines_differ", "result"),
    [
        ("a 1\n", "a 1\n", False, True),
        ("a 1\n", "a 2\n", False, False),
        ("a 1\n", "a   22.5\n", True, True),
        ("a 1.5e-07 b\n", "a 2e-8 b\n", True, True),
        ("a 1\n", "b 1\n", True, False),
        ("file  1.0 MB  9 s  x\n", "file  1.0 MB  2 min  x\n", True, True),
        ("file  1.0 MB  9 s  x\n", "file  1.0 MB  9 s  y\n", True, False),
        ("on A CPU, 2 cores, load 1\n", "on B, C, 4 cores, load 9\n", True, True),
        ("ok    disk  3 GB free\nok    GPU  none\n", "warn  disk  3 B\n      fix: x\nok    GPU  x\n", True, True),
        ("ok    disk  3 GB free\n", "fail  disk  3 GB free\n", True, False),
        (".../x\n", "/home/me/x\n", False, True),
        (".../x\n", "/home/me/y\n", False, False),
        ("", "something\n", False, False),
    ],
)
def test_outputs_may_differ_only_where_machines_do(
    expected: str, printed: str, machines_differ: bool, result: bool
) -> None:
    assert same(expected, printed, machines_differ) is result
