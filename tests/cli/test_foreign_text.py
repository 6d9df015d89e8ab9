"""What others wrote does not control the terminal, whichever command shows it, on which stream, and as text or JSON.

The kind: a string that the user did not type and we did not write. Each row puts one that clears the screen, sets the
window's title, turns the direction of writing and has a half of a surrogate pair wherever a source of strings lets it.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Callable, Iterator, List

import numpy as np
import pytest

from repvgg_zoo import load_checkpoint
from repvgg_zoo._escape import escape
from repvgg_zoo._resources import hub_folder
from tests.registry.installed import install, registry
from tests.registry.sample import SAMPLE

from .conftest import Completed
from .terminal import Terminal

EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[31m\u202e\x9b2J"
YAML_EVIL = r'"\e]0;owned\a\e[2J\e[31m\u202e\x9b2J 旷视"'


Check = Callable[..., str]


@pytest.fixture
def check(run: Callable[..., Completed], monkeypatch: pytest.MonkeyPatch) -> Check:
    """A function that runs a command in a pipe as text, and as JSON, and returns the text of both streams."""
    monkeypatch.setenv("REPVGG_ZOO_RETRIES", "0")  # to wait for nothing

    def run_twice(*argv: str) -> str:
        command = [sys.executable, "-m", "repvgg_zoo", *argv]
        process = subprocess.run(command, capture_output=True, timeout=60, check=False)
        text = (process.stdout + process.stderr).decode("utf-8")
        assert process.returncode != 70, text
        for line in text.split("\n"):
            assert escape(line) == line
        document = run(*argv, "--json").out  # in this process, which is four times as fast
        assert document.isascii() and json.loads(document) and not set(document) & set("\x1b\x7f\x07")
        return text

    return run_twice


def state_dict_with(key: str) -> bytes:
    (path,) = hub_folder().glob("*.safetensors")
    arrays = {name: np.array(array) for name, array in load_checkpoint(path).state_dict.items()}
    return pickle.dumps({**arrays, key: 1}, protocol=4)


def zip_with_global() -> bytes:
    path = Path("evil.zip")
    with zipfile.ZipFile(str(path), "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02c" + EVIL.encode() + b"\nX\n.")
    return path.read_bytes()


def safetensors_with(header: object) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\0"


FILES = {
    "a key of an entry that is not an array": lambda: state_dict_with(EVIL),
    "a key with a surrogate": lambda: state_dict_with("\ud800" + EVIL),
    "a blocked global's module": lambda: b"\x80\x02c" + EVIL.encode() + b"\nsystem\n.",
    "a blocked global's name": lambda: b"\x80\x02cos\n" + EVIL.encode() + b"\n.",
    "a blocked global in a zip file": zip_with_global,
    "a key in safetensors": lambda: safetensors_with(
        {EVIL: {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}
    ),
    "a dtype in safetensors": lambda: safetensors_with({"w": {"dtype": EVIL, "shape": [1], "data_offsets": [0, 1]}}),
    "keys of no layout": lambda: pickle.dumps({EVIL: np.ones(3, np.float32)}),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
@pytest.mark.parametrize("command", ["verify {}", "convert {} out.safetensors"])
def test_a_checkpoint_does_not(command, content, folder, check):
    (folder / "evil.bin").write_bytes(content())
    check(*command.format("evil.bin").split())


@pytest.mark.parametrize("name", [EVIL, "caf\udce9", "--json\n"])
def test_a_name_of_a_file_does_not(name, folder, check):
    (folder / name).write_bytes(b"noise")
    check("verify", f"./{name}")
    check("verify", f"./{name}.not")


REGISTRY_FIELDS = ["family: RepVGG-X", "publisher: A Lab", "license: MIT", "no_weights: nobody published any"]


def write_registry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SAMPLE.replace("RepVGG_X", "acme/RepVGG_X").replace("my_x1", "acme/my_x1")
    for field in REGISTRY_FIELDS:
        assert field in text
        text = text.replace(field, f"{field.partition(':')[0]}: {YAML_EVIL}")
    text = text.replace("the lab's page", YAML_EVIL).replace('source: "table 1"', f"source: {YAML_EVIL}")
    (folder / "acme.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("REPVGG_ZOO_REGISTRY", str(folder / "acme.yaml"))


@pytest.mark.parametrize("line", ["list", "info acme/RepVGG_X1", "info acme/RepVGG_X1.lab", "info acme/RepVGG_X2"])
def test_a_registry_does_not(line, folder, monkeypatch, check):
    write_registry(folder, monkeypatch)
    text = check(*line.split())
    assert "acme/RepVGG_X1" in text or "旷视" in text
    terminal = Terminal(*line.split())
    assert terminal.finish() == 0
    for style in ("\033[1m", "\033[2m", "\033[0m"):  # those of our own
        terminal.screen = terminal.screen.replace(style, "")
    assert "\x1b" not in terminal.screen and "\x9b" not in terminal.screen and "\u202e" not in terminal.screen


@pytest.mark.parametrize("yaml", ["@", "@: 1", "schema: @", "schema: 1\nvariants: {@: 2}"])
def test_a_registry_that_is_not_valid_does_not(yaml, folder, monkeypatch, check):
    (folder / "acme.yaml").write_text(yaml.replace("@", YAML_EVIL), encoding="utf-8")
    monkeypatch.setenv("REPVGG_ZOO_REGISTRY", str(folder / "acme.yaml"))
    check("list")
    check("doctor", "registry", "--offline")


def test_a_plugin_that_fails_does_not(folder, monkeypatch, check):
    install(folder / "site", "acme", code=f"raise RuntimeError({EVIL!r})")
    install(folder / "site", "noisy", yaml=registry("noisy/RepVGG_Q").replace("RepVGG-Q", YAML_EVIL))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(folder / "site")]))
    monkeypatch.syspath_prepend(folder / "site")
    assert "acme" in check("list")
    assert "acme" in check("doctor", "registry", "--offline")
    assert "acme" in check("info", "acme/RepVGG_Q", "--traceback")


ANSWERS = {
    "a redirect": b"HTTP/1.1 302 F\r\nLocation: ftp://x/" + EVIL.encode() + b"\r\nContent-Length: 0\r\n\r\n",
    "a redirect to a host": b"HTTP/1.1 302 F\r\nLocation: http://" + EVIL.encode() + b"/\r\nContent-Length: 0\r\n\r\n",
    "no HTTP at all": EVIL.encode() + b" junk\r\n\r\n",
    "a reason": b"HTTP/1.1 404 " + EVIL.encode() + b"\r\nContent-Length: 0\r\n\r\n",
    "a page": b"HTTP/1.1 403 F\r\nContent-Length: 40\r\n\r\n" + EVIL.encode().ljust(40),
    "the length of a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + EVIL.encode() + b"\r\n",
    "an encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: " + EVIL.encode() + b"\r\nContent-Length: 1\r\n\r\nx",
}


@pytest.fixture
def raw_server() -> Iterator[List[bytes]]:
    """Yield a list: its first item is the server's address, the second what it answers to every request."""
    listener = socket.create_server(("127.0.0.1", 0))
    script = [f"http://127.0.0.1:{listener.getsockname()[1]}".encode(), b""]

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                connection.sendall(script[1])

    threading.Thread(target=serve, daemon=True).start()
    yield script
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_server_does_not(answer, raw_server, folder, monkeypatch, check):
    raw_server[1] = answer
    write_registry(folder, monkeypatch)
    path = folder / "acme.yaml"
    path.write_text(path.read_text("utf-8").replace("https://example.org", raw_server[0].decode()), encoding="utf-8")
    assert "error" in check("fetch", "acme/RepVGG_X1.lab")


INDEXES = [
    {EVIL: 1},
    {"schema": EVIL},
    {"schema": 1, "files": {EVIL: {"file": EVIL}}},
    EVIL,
]


@pytest.mark.parametrize("index", INDEXES)
def test_a_bundle_does_not(index, run, folder, check):
    assert run("bundle", "pack", "good", "RepVGG_N0").code == 0
    (name,) = (path.name for path in (folder / "good").iterdir() if path.suffix in (".json", ".yaml"))
    (folder / "good" / name).write_text(json.dumps(index), encoding="utf-8")
    check("bundle", "show", "good")
    check("bundle", "unpack", "good")
