"""Help, examples and usage messages."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repvgg_zoo.cli import main
from repvgg_zoo.cli.parser import COMMANDS, EXAMPLES

ROOT = Path(__file__).resolve().parents[2]
MODULES = {name: importlib.import_module(f"repvgg_zoo.cli.commands.{one.module}") for name, one in COMMANDS.items()}


def test_the_help_names_every_command_and_every_exit_code(run):
    result = run("--help")
    assert result.code == 0 and not result.err
    for name, command in COMMANDS.items():
        assert f"  {name:11} {command.summary}\n" in result.out
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 70, 130):
        assert f"\n  {code:<4} " in result.out


@pytest.mark.parametrize("argv", [[], ["-h"], ["help"]])
def test_no_command_shows_the_same_help(run, argv):
    assert run(*argv).out == run("--help").out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_ends_in_its_examples_and_fits_80_columns(run, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    result = run(name, "--help")
    assert result.code == 0 and result.out == run("help", name).out
    examples = "".join(f"  {line}\n" for line in MODULES[name].EXAMPLES)
    assert result.out.endswith(f"examples:\n{examples}")
    assert max(map(len, result.out.splitlines())) <= 80


def test_the_top_help_fits_80_columns(run):
    assert max(map(len, run("--help").out.splitlines())) <= 80


# Not the doctor's, which need the network.
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "doctor"])
def test_the_examples_of_the_help_work_in_their_order(name, folder):
    bin_folder = folder.parent / "bin"
    bin_folder.mkdir()
    script = bin_folder / "repvgg-zoo"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m repvgg_zoo "$@"\n')
    script.chmod(0o755)
    for image in ("digit.png", "other.jpg"):  # which predict's examples read
        Image.effect_noise((40, 30), 50).save(image)
    (folder / "photos").mkdir()
    for index in range(8):  # which quantize's examples read
        Image.effect_noise((40, 30), 50).save(folder / "photos" / f"{index}.png")
    with np.load(ROOT / "hub" / "digits-test.npz") as digits:  # which evaluate's and finetune's examples read
        for index, (pixels, label) in enumerate(zip(digits["images"][:60], digits["labels"])):
            for path in (folder / "digits" / str(label), folder / "flat"):
                path.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path / f"{index}.png")
        lines = (f"{index}.png,{label}\n" for index, label in enumerate(digits["labels"][:60]))
        (folder / "labels.csv").write_text("".join(lines))
    # Commands without shell syntax run in this process, which is quicker.
    for line in MODULES[name].EXAMPLES:
        words = shlex.split(line)
        if words[0] == "repvgg-zoo" and {"$", ">"}.isdisjoint(line):
            code = main(words[1:])
        else:
            done = subprocess.run(["sh", "-c", f'PATH="{bin_folder}:$PATH"; {line}'], timeout=60)
            code = done.returncode
        assert code == 0, line


def test_the_examples_of_the_top_help_are_those_of_commands():
    for line in EXAMPLES:
        assert shlex.split(line)[1] in COMMANDS


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (["lst"], "'lst' is not a valid command", "did you mean repvgg-zoo list?"),
        (["frobnicate"], "'frobnicate' is not a valid command", "repvgg-zoo --help lists the commands"),
        (["--frob"], "'--frob' is not a valid option", "--help"),
        (
            ["--offline", "fetch", "n0"],
            "'--offline' is not a valid option",
            "commands, after which their options stand",
        ),
        (["--jsn", "list"], "'--jsn' is not a valid option", "did you mean repvgg-zoo --json?"),
        (["info"], "required: NAME", "repvgg-zoo info --help"),
        (["list", "--min-top1", "much"], "invalid float value: 'much'", "repvgg-zoo list --help"),
        (["list", "--max-macs", "five"], "'five' is not a valid count", "repvgg-zoo list --help"),
        (["list", "--zzz"], "'--zzz' is not a valid option of repvgg-zoo list", "repvgg-zoo list --help"),
        (["list", "--par"], "'--par' is not a valid option of repvgg-zoo list", "did you mean --pareto?"),
        (["list", "--max-mac=5G"], "'--max-mac' is not a valid option", "did you mean --max-macs?"),
        (["fetch", "--ofline"], "'--ofline' is not a valid option", "did you mean --offline?"),
        (["cache"], "required: ACTION", "repvgg-zoo cache --help"),
        (["cache", "rm"], "required: NAME", "repvgg-zoo cache rm --help"),
        (["cache", "prun"], "'prun' is not a valid ACTION", "did you mean prune?"),
        (["cache", "rm", "n0", "--dryrun"], "not a valid option of repvgg-zoo cache rm", "did you mean --dry-run?"),
        (["cache", "ls", "--dry-run"], "not a valid option of repvgg-zoo cache ls", "repvgg-zoo cache ls --help"),
        (["convert", "a", "b", "--layout", "tmm"], "'tmm' is not a valid --layout", "did you mean timm?"),
        (["convert", "a", "b", "--format", "safetensor"], "is not a valid --format", "did you mean safetensors?"),
    ],
)
def test_an_invalid_command_line_is_reported_with_its_usage(run, argv, message, hint):
    result = run(*argv)
    assert (result.code, result.out) == (2, "")
    assert message in result.err and hint in result.err and "usage: repvgg-zoo" in result.err
    error = run(*argv, "--json")
    assert error.code == 2 and error.err == ""
    assert error.json["error"]["type"] == "UsageError" and message in error.json["error"]["message"]


def test_a_misspelt_check_of_the_doctor_gets_the_closest_one(run):
    result = run("doctor", "pyhton")
    assert result.code == 2 and "did you mean python?" in result.err


def test_the_version_is_the_packages(run):
    import repvgg_zoo

    assert run("--version").out == f"repvgg-zoo {repvgg_zoo.__version__}\n"
    assert run("--json", "--version").json == {"version": repvgg_zoo.__version__}


@pytest.mark.parametrize("line", ["cache where", "list A0", "info nonsense", "info --jsn", "lst"])
def test_json_may_stand_before_the_command(run, line):
    assert run("--json", *line.split()) == run(*line.split(), "--json")


def test_traceback_may_stand_before_the_command(run):
    assert "Traceback" in run("--traceback", "info", "nonsense").err
    assert "Traceback" in run("--traceback", "--json", "info", "nonsense").err


@pytest.mark.parametrize("argv", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=lambda argv: argv[0])
def test_every_help_has_the_options_of_all_commands(run, argv):
    text = run(*argv).out
    options = ("--json", "--traceback", *(["--version"] if argv == ["--help"] else []))
    assert all(f"  {option}  " in text for option in options)


def test_what_follows_a_double_dash_is_no_option(run):
    assert "'--ofline'" in run("fetch", "--", "--ofline").err
    assert run("fetch", "--", "--ofline").code == 3


def test_light_commands_import_no_framework():
    code = """
        import sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("megengine", "cv2"):
                    raise ImportError("blocked: " + name)

        sys.meta_path.insert(0, Refuse())
        from repvgg_zoo.cli import main
        for line in ("--help", "list --pareto", "list --checkpoints", "search timm", "info RepVGG_A0",
                     "info RepVGG_N0.digits", "fetch RepVGG_N0", "verify RepVGG_N0", "verify", "cache ls",
                     "bundle pack b.zip RepVGG_N0", "bundle show b.zip", "bundle pack m RepVGG_N0",
                     "doctor network --offline", "cache prune"):
            code = main(line.split())
            assert code == 0, (line, code)
            assert "numpy" not in sys.modules, line
        assert main("convert RepVGG_N0 n0.safetensors --deploy --check".split()) == 0
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_help_of_one_command_imports_no_other_and_a_listing_nothing_slow():
    code = """
        import sys
        from repvgg_zoo.cli import main
        main(["list", "--help"])
        loaded = {name for name in sys.modules if name.startswith("repvgg_zoo.cli.")}
        expected = {f"repvgg_zoo.cli.{name}" for name in ("parser", "errors", "console", "commands", "commands.list")}
        assert loaded == expected, loaded
        main(["list"])
        slow = {"requests", "numpy", "difflib", "html", "subprocess", "tempfile", "zipfile"}
        assert not slow & set(sys.modules), slow & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, stdout=subprocess.DEVNULL, timeout=60)
