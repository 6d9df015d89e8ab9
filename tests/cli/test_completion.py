"""Shells complete commands, options, their values and names, and leave paths to themselves.

The kind: whatever may stand at the cursor. What it is comes from the argument parsers, so a new option is completed
without further work; a new kind of argument must say what it takes, which a test checks.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import textwrap

import pytest

from repvgg_zoo.cli.commands.completion import SCRIPTS, complete
from repvgg_zoo.cli.parser import COMMANDS, command_parser
from tests.registry.installed import install, registry

from .terminal import Terminal

NAMES = {"NAME", "NAME|FILE", "PATTERN", "SOURCE"}
CHOICES = {"ACTION", "CHECK", "ENGINE", "FORMAT", "KEY", "SHELL", "TAG"}
# Left to the shell, which completes paths.
OTHERS = {
    *(
        "FILE",
        "FOLDER",
        "IMAGE",
        "BUNDLE",
        "OUT",
        "BATCH",
        "LAYOUT",
        "PREFIX",
        "N",
        "K",
        "DB",
        "PX",
        "S",
        "X",
        "PERCENT",
        "DAYS",
    ),
    *("TEXT", "WORD", "SIZE", "PREFIX", "ADDRESS", "CSV", "DATA", "FIGURE", "K/N"),
}


def words_of(line):
    """The words of a line up to the cursor, which is at its end."""
    return [*shlex.split(line), *([""] if line.endswith(" ") or not line else [])]


def completed(line):
    return [candidate.word for candidate in complete(words_of(line))]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", list(COMMANDS)),
        ("li", ["list"]),
        ("help in", ["info"]),
        ("--js", ["--json"]),
        ("--json li", ["list"]),
        ("nonsense ", []),
        ("list --pa", ["--pareto"]),
        ("list --pareto --pa", []),
        ("list --sort t", ["top1"]),
        ("list --sort=t", ["--sort=top1"]),
        ("list --sort = t", ["top1"]),
        ("list --tag tim", ["timm"]),
        ("list --min-top1 ", []),
        ("list B3g", ["RepVGG_B3g2", "RepVGG_B3g4"]),
        ("info RepVGG_B1", ["RepVGG_B1", "RepVGG_B1g2", "RepVGG_B1g4"]),
        ("info repvgg-b1g", ["RepVGG_B1g2", "RepVGG_B1g4"]),
        ("info RepVGG_A0 RepVGG_N0.", ["RepVGG_N0.digits"]),
        ("info a0.ti", ["RepVGG_A0.timm"]),
        ("info ./we", []),
        ("verify --json RepVGG_N", ["RepVGG_N0"]),
        ("convert RepVGG_N", ["RepVGG_N0"]),
        ("convert RepVGG_N0 ", []),
        ("convert RepVGG_N0 --layout ope", ["openmmlab"]),
        ("cache ", ["where", "ls", "rm", "prune"]),
        ("cache pr", ["prune"]),
        ("cache rm --dry", ["--dry-run"]),
        ("cache ls --dry", []),
        ("cache rm n0", ["RepVGG_N0"]),
        ("bundle pack out.zip RepVGG_N", ["RepVGG_N0"]),
        ("bundle pack ", []),
        ("bench n0 --batch 1 n", ["RepVGG_N0"]),
        ("doctor py", ["python"]),
        ("fetch -- --of", []),
        ("completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_the_last_word_is_completed(line, expected):
    assert completed(line) == expected


def test_every_option_and_its_help_is_offered():
    for name, command in COMMANDS.items():
        offered = {row.word: row.meaning for row in complete([name, "--"])}
        parser = command_parser(name, importlib.import_module(f"repvgg_zoo.cli.commands.{command.module}"))
        options = {option for action in parser._actions for option in action.option_strings if option[:2] == "--"}
        assert set(offered) == options and all(offered.values())


def test_every_argument_says_what_it_takes():
    metavars = set()
    parsers = [
        command_parser(name, importlib.import_module(f"repvgg_zoo.cli.commands.{command.module}"))
        for name, command in COMMANDS.items()
    ]
    while parsers:
        for action in parsers.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            elif action.choices is None and action.nargs != 0:
                metavars.add(action.metavar or action.dest.upper())
    assert metavars - NAMES - CHOICES - OTHERS == set()


def test_names_of_registry_files_and_plugins_are_completed(folder, monkeypatch):
    (folder / "own.yaml").write_text(registry("acme/RepVGG_Own"), encoding="utf-8")
    monkeypatch.setenv("REPVGG_ZOO_REGISTRY", str(folder / "own.yaml"))
    assert completed("info acme/") == ["acme/RepVGG_Own"] and completed("info acme") == ["acme/RepVGG_Own"]
    monkeypatch.delenv("REPVGG_ZOO_REGISTRY")
    install(folder / "site", "emca")
    monkeypatch.syspath_prepend(str(folder / "site"))
    assert completed("info em") == ["emca/"] and completed("info emca/") == ["emca/RepVGG_Q"]


def test_completing_names_imports_no_framework_and_no_plugin(folder, monkeypatch):
    install(folder / "site", "emca", code="raise SystemExit('imported')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(folder / "site")]))
    code = """
        import sys
        from repvgg_zoo.cli import main
        assert main(["completion", "bash", ":info", ":RepVGG_"]) == 0
        assert main(["completion", "bash", ":list", ":--"]) == 0
        assert not {"numpy", "megengine", "requests"} & set(sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "RepVGG_A0 RepVGG-A" in done.stdout, done.stderr


@pytest.fixture
def program(folder):
    """A folder with the program repvgg-zoo."""
    path = folder.parent / "bin" / "repvgg-zoo"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m repvgg_zoo "$@"\n')
    path.chmod(0o755)
    return path.parent


SHELLS = {  # how to start one without the user's files, and how to load a script
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(repvgg-zoo completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -u; eval "$(repvgg-zoo completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "repvgg-zoo completion fish | source"),
}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_tab_completes_in_a_real_shell(shell, program, folder):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    argv, load = SHELLS[shell]
    (folder / "weights.pkl").write_bytes(b"")
    path = f"{program}{os.pathsep}{os.environ['PATH']}"
    keyboard = Terminal(program=argv, env={"PATH": path, "HOME": str(folder)}, columns=200)
    try:
        keyboard.press(f"{load}; echo rea''dy\n")
        keyboard.wait_for("ready")
        for typed, expected in [
            ("repvgg-zoo inf\t", "repvgg-zoo info"),
            ("repvgg-zoo info RepVGG_D2\t", "repvgg-zoo info RepVGG_D2se"),
            ("repvgg-zoo list --max-p\t", "repvgg-zoo list --max-params"),
            ("repvgg-zoo list --sort=mac\t", "repvgg-zoo list --sort=macs"),
            ("repvgg-zoo cache prun\t", "repvgg-zoo cache prune"),
            ("repvgg-zoo verify ./weig\t", "repvgg-zoo verify ./weights.pkl"),
        ]:
            keyboard.screen = ""
            keyboard.press(f"true || {typed}")
            keyboard.wait_for(expected)
            keyboard.press(" ; echo do''ne\n")  # the line is not run, but at its end there is a new prompt
            keyboard.wait_for("done")
    finally:
        keyboard.kill()


def test_bash_gets_what_its_function_is_to_return(program):
    lines = ["repvgg-zoo info RepVGG_B3", "repvgg-zoo list --sort = t", "repvgg-zoo fetch --of", "repvgg-zoo cache "]
    script = 'PATH="$1:$PATH"; eval "$(repvgg-zoo completion bash)"; shift\n'
    for line in lines:
        words = ["repvgg-zoo", *words_of(line)[1:]]
        array = " ".join(map(shlex.quote, words))
        script += f'COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _repvgg_zoo; echo "${{COMPREPLY[*]}}"\n'
    done = subprocess.run(["bash", "-c", script, "bash", str(program)], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["RepVGG_B3 RepVGG_B3g2 RepVGG_B3g4", "top1", "--offline", "where ls rm prune"]


def test_a_misspelt_shell_gets_the_closest(run):
    assert "did you mean bash?" in run("completion", "bas").err
    assert run("completion", "fish", "--json").json["script"] == SCRIPTS["fish"]
