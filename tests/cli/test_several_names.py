"""A file that is not there has one exit code everywhere, and a name that fails takes nothing from the others.

The kind: commands that take several names or files. Results of those that work are printed whatever happens to the
rest, whose errors come last and have the exit code.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import signal
import time
from typing import Iterator, Tuple

import pytest

import repvgg_zoo
from repvgg_zoo.cli.parser import COMMANDS, command_parser
from repvgg_zoo.hub import cache_filename
from tests.hub.server import Answer

from .conftest import spawn

MISSING = "./missing.pkl"
# One command line for each command that reads a file.
READING_A_FILE = {
    "info": ["info", MISSING],
    "verify": ["verify", MISSING],
    "convert": ["convert", MISSING, "out.pkl"],
    "finetune": ["finetune", MISSING, "photos", "run"],
    "quantize": ["quantize", MISSING, "out.safetensors", "--images", __file__],
    "export": ["export", MISSING, "out.onnx"],
    "evaluate": ["evaluate", MISSING, __file__],
    "features": ["features", MISSING, ".", "--output", "out"],
    "compare": ["compare", MISSING],
    "bench": ["bench", MISSING],
    "registry draft": ["registry", "draft", MISSING],
    "registry check": ["registry", "check", MISSING],
    "bundle unpack": ["bundle", "unpack", MISSING],
    "bundle show": ["bundle", "show", MISSING],
}
READ = {"FILE", "NAME|FILE", "SOURCE", "BUNDLE"}


def positionals() -> Iterator[Tuple[str, str]]:
    """Yield each command, or action of one, with the metavar of each of its arguments."""
    for name, command in COMMANDS.items():
        module = importlib.import_module(f"repvgg_zoo.cli.commands.{command.module}")
        parsers = {name: command_parser(name, module)}
        for action in parsers[name]._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers = {f"{name} {word}": parser for word, parser in action.choices.items()}
        for line, parser in parsers.items():
            yield from ((line, str(action.metavar)) for action in parser._actions if not action.option_strings)


def test_every_command_that_reads_a_file_is_listed():
    assert {line for line, metavar in positionals() if metavar in READ} == set(READING_A_FILE)


@pytest.mark.parametrize("argv", READING_A_FILE.values(), ids=READING_A_FILE)
def test_a_missing_file_has_exit_code_5_and_its_path(run, argv):
    result = run(*argv)
    assert (result.code, result.out) == (5, "")
    assert "missing.pkl" in result.err and re.search("does not exist|No such file", result.err)
    error = run(*argv, "--json")
    assert error.code == 5 and error.json["error"]["path"].endswith("missing.pkl")


@pytest.mark.parametrize(
    "argv",
    [
        ["predict", "missing.png", "--model", "n0"],
        ["predict", "missing.png", "--model", MISSING],
        ["predict", "missing.png", "--model", "n0", "--labels", "missing.txt"],
    ],
    ids=" ".join,
)
def test_a_missing_image_or_label_file_has_the_same_exit_code(run, argv):
    assert run(*argv).code == 5


@pytest.mark.parametrize("argv", READING_A_FILE.values(), ids=READING_A_FILE)
def test_a_file_of_something_else_has_another_exit_code(run, folder, argv):
    (folder / "missing.pkl").write_text("<!doctype html>")
    assert run(*argv).code in (1, 6)


BENCH = ("--rounds", "1", "--warm-up", "0", "--image-size", "8")
SEVERAL = [
    (["fetch", "n0", "RepVGG_A0.timm", "RepVGG_N0.digits"], 4, "states no digest"),
    (["fetch", "RepVGG_B2g2", "n0"], 3, "no pretrained weights"),
    (["info", "n0", "RepVGG_Z9", "RepVGG_A0.timm"], 3, "unknown model 'RepVGG_Z9'"),
    (["info", MISSING, "n0"], 5, "missing.pkl"),
    (["verify", "n0", MISSING, "n0.digits"], 5, "missing.pkl"),
    (["verify", "RepVGG_Z9", "n0"], 3, "unknown model 'RepVGG_Z9'"),
    (["bench", "n0", MISSING, *BENCH], 5, "missing.pkl"),
]


@pytest.mark.parametrize(("argv", "code", "message"), SEVERAL, ids=lambda value: " ".join(map(str, [value])))
def test_a_name_that_fails_does_not_lose_the_results_of_the_others(run, argv, code, message):
    run("fetch", "n0")
    result = run(*argv)
    if argv[:2] == ["fetch", "RepVGG_B2g2"]:
        assert result.code == code and result.out == "", "known before anything is fetched"
        return
    assert result.code == code and message in result.err and result.err.startswith("error: ")
    assert "RepVGG_N0" in result.out and message not in result.out
    payload = run(*argv, "--json").json
    rows = payload if isinstance(payload, list) else payload["rows"] + payload["failed"]
    failed = [row for row in rows if "error" in row]
    assert len(failed) == 1 and message in str(failed[0]) and len(rows) > 1
    assert failed[0]["name"] in argv


def test_a_single_name_that_fails_is_the_only_result(run):
    assert run("info", "RepVGG_Z9", "--json").json["error"]["type"] == "UnknownModelError"
    assert isinstance(run("info", "n0", "--json").json, dict)
    assert [row["name"] for row in run("info", "n0", "a0", "--json").json] == ["RepVGG_N0", "RepVGG_A0"]


@pytest.mark.parametrize("option", [[], ["--json"]], ids=["text", "json"])
def test_ctrl_c_loses_no_result(server, monkeypatch, option):
    file = repvgg_zoo.model_info("RepVGG_A0").checkpoint("official").file
    url = server.serve(f"/{cache_filename(file)}", Answer(b"x" * 1000, stall=True, cut=500))
    monkeypatch.setenv("REPVGG_ZOO_MIRROR", url.rpartition("/")[0])
    process = spawn("fetch", "RepVGG_N0", "RepVGG_A0.official", *option)
    until = time.monotonic() + 60
    while server.sent < 500 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again to resume" in err
    paths = [row["path"] for row in json.loads(out)] if option else out.splitlines()
    assert len(paths) == 1 and paths[0].endswith("RepVGG_N0-digits.safetensors")


def test_a_pipe_that_closes_is_no_failure_of_a_name(capfd):
    from repvgg_zoo.cli.common import try_each

    def closed(result):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        try_each(["a", "b"], str.upper, done=closed)


def test_info_of_a_file_says_what_it_contains(run):
    run("convert", "n0", "own.pkl", "--layout", "timm", "--deploy")
    payload = run("info", "own.pkl", "--json").json
    assert {key: payload[key] for key in ("path", "variant", "form", "layout", "format", "num_classes")} == {
        "path": "own.pkl",
        "variant": "RepVGG_N0",
        "form": "deploy",
        "layout": "timm",
        "format": "megengine",
        "num_classes": 10,
    }
    assert payload["numbers"] == 220_794 and payload["in_chans"] == 1 and payload["problem"] is None
    assert run("info", "own.pkl").out.startswith("own.pkl: RepVGG_N0, deploy form\n")


def test_info_of_a_network_of_ones_own_says_that_no_variant_has_its_shapes(run):
    import repvgg_zoo

    network = repvgg_zoo.create("RepVGG_N0", width_multiplier=(0.5, 0.5, 0.5, 0.5), num_classes=0)
    repvgg_zoo.save_checkpoint("odd.pkl", network.state_dict())
    payload = run("info", "odd.pkl", "--json").json
    assert payload["variant"] is None and "fits no variant" in payload["problem"] and payload["num_classes"] is None
    assert "odd.pkl: no variant of the registry, train form" in run("info", "odd.pkl").out


def test_bench_of_a_deploy_file_has_no_train_form(run):
    run("convert", "n0", "train.pkl")
    run("convert", "train.pkl", "deploy.pkl", "--deploy")
    rows = run("bench", "train.pkl", "deploy.pkl", *BENCH, "--json").json["rows"]
    assert [(row["name"], row["form"]) for row in rows] == [
        *(("train.pkl", form) for form in ("train", "deploy", "compiled")),
        *(("deploy.pkl", form) for form in ("deploy", "compiled")),
    ]
    assert "deploy.pkl: compiled is " in run("bench", "deploy.pkl", *BENCH).out
