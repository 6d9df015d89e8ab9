"""stdout has the command's result and nothing else, and a stream that cannot take it is reported, not a crash.

The kind: streams that are not a UTF-8 terminal with an attentive reader. They have another encoding, are full, closed
or broken, or are shared with plugins that print.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Tuple

import pytest

from tests.registry.installed import install, registry

FULL = Path("/dev/full")
ENCODINGS = ["ascii", "latin-1", "cp1252", "gbk", "utf-8:strict", "utf-16"]


def run_bytes(*argv: str, **options: Any) -> Tuple[int, bytes, bytes]:
    """Run a command line in a process; return its exit code and what it printed."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    process = subprocess.run([sys.executable, "-m", "repvgg_zoo", *argv], timeout=60, check=False, **options)
    return process.returncode, process.stdout or b"", process.stderr or b""


@pytest.fixture
def site(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path for plugins."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(folder / "site")]))
    return folder / "site"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_encoding_of_stdout_gets_text_and_json(encoding, site, monkeypatch):
    install(site, "acme", yaml=registry("acme/RepVGG_Q").replace("RepVGG-Q", "旷视"))
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    codec = encoding.partition(":")[0]
    code, out, err = run_bytes("info", "acme/RepVGG_Q")
    chinese = "\\u65f7\\u89c6" if codec in ("ascii", "latin-1", "cp1252") else "旷视"
    assert (code, err) == (0, b"") and chinese in out.decode(codec)
    code, out, _ = run_bytes("info", "acme/RepVGG_Q", "--json")
    assert code == 0 and out.decode(codec).isascii() and json.loads(out.decode(codec))["family"] == "旷视"
    code, _, err = run_bytes("info", "acme/模型")
    assert code == 3 and "error: " in err.decode(codec)


@pytest.mark.parametrize("encoding", ENCODINGS[:-1])
def test_a_script_gets_the_bytes_of_a_path(encoding, folder, monkeypatch):
    home = os.fsencode(str(folder)) + b"/caf\xe9 \xe6\x97\xb7"
    monkeypatch.setenv("REPVGG_ZOO_HOME", os.fsdecode(home))
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    code, out, err = run_bytes("fetch", "RepVGG_N0")
    assert (code, err) == (0, b"") and out.startswith(home + b"/") and Path(os.fsdecode(out.rstrip(b"\n"))).is_file()
    assert run_bytes("cache", "where")[1] == home + b"\n"
    assert json.loads(run_bytes("cache", "where", "--json")[1])["cache"] == os.fsdecode(home)
    code, out, err = run_bytes("cache", "ls")
    assert (code, err) == (0, b"") and b"caf\\udce9" in out


NOISE = {
    "print": "print('noise')",
    "sys.__stdout__": "import sys; sys.__stdout__.write('noise')",
    "the file descriptor": "import os; os.write(1, b'noise')",
    "a child": "import os; os.system('echo noise')",
    "C's buffer": "import ctypes; ctypes.CDLL(None).printf(b'noise')",
    "at exit": "import atexit; atexit.register(print, 'noise')",
    "a warning": "import warnings; warnings.simplefilter('always'); warnings.warn('noise')",
    "an error": "print('noise'); raise SystemExit('noise')",
}
MODULE = """
from pathlib import Path
from repvgg_zoo import Plugin
{noise}
plugin = Plugin(registry=Path(__file__).with_name("acme_plugin.yaml"))
"""


@pytest.mark.parametrize(
    ("noise", "line"),
    [
        *((noise, "list --json") for noise in NOISE.values()),
        *(
            (NOISE["print"], line)
            for line in ("info acme/RepVGG_Q --json", "cache ls --json", "list", "fetch RepVGG_N0")
        ),
    ],
)
def test_what_a_plugin_prints_is_not_on_stdout(line, noise, site):
    install(site, "acme", code=MODULE.format(noise=noise))
    code, out, err = run_bytes(*line.split())
    assert code == 0 and b"noise" not in out
    assert b"noise" in err or line.startswith("fetch"), "fetching our own model imports no plugin"
    if "--json" in line:
        assert json.loads(out)
    elif line.startswith("fetch"):
        assert Path(os.fsdecode(out.rstrip(b"\n"))).is_file()


def test_what_a_network_prints_is_not_on_stdout(site, folder):
    code = MODULE.format(noise="def build(*args, **options):\n    print('noise')\n    raise RuntimeError('broken')")
    code = code.replace('yaml")', 'yaml"), builders={"acme/net": build}')
    yaml = registry("acme/RepVGG_Q").replace("[0.1, 0.1, 0.1, 0.1]}", "[0.1, 0.1, 0.1, 0.1], builder: acme/net}")
    install(site, "acme", code=code, yaml=yaml)
    code, out, err = run_bytes("compare", "acme/RepVGG_Q", "--json")
    assert code and json.loads(out)["error"] and b"noise" in err


LINES = [
    "list",
    "list --json",
    "info RepVGG_N0",
    "fetch RepVGG_N0",
    "fetch RepVGG_N0 --json",
    "--help",
    "list --help",
    "--version",
    "cache where",
]


@pytest.mark.skipif(not FULL.exists(), reason="this system has no full device")
@pytest.mark.parametrize("line", LINES)
def test_a_full_disk_under_stdout_is_an_error_with_a_message(line):
    with FULL.open("wb") as full:
        code, _, err = run_bytes(*line.split(), stdout=full)
    assert code == 5
    assert err.decode().splitlines()[0] == "error: stdout: No space left on device" and b"Exception" not in err


@pytest.mark.skipif(not FULL.exists(), reason="this system has no full device")
@pytest.mark.parametrize(("line", "expected"), [("info nope", 3), ("info nope --json", 3), ("list", 0)])
def test_a_full_disk_under_stderr_changes_no_exit_code(line, expected):
    with FULL.open("wb") as full:
        assert run_bytes(*line.split(), stderr=full)[0] == expected
        both = run_bytes(*line.split(), stdout=full, stderr=full)[0]
    assert both == (expected or 5)


@pytest.mark.parametrize(("line", "expected"), [("info nope", 3), ("info nope --traceback", 3), ("list", 0)])
def test_a_broken_pipe_under_stderr_changes_no_exit_code(line, expected):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as broken:
        assert run_bytes(*line.split(), stderr=broken)[0] == expected


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("line", "expected"), [("info nope", 3), ("info nope --json", 3), ("list --json", 0)])
def test_a_closed_stream_changes_no_exit_code(line, expected, closed, site):
    install(site, "acme", code=MODULE.format(noise=NOISE["print"] + "; import os; os.environ['X'] = '1'"))
    command = f"{sys.executable} -m repvgg_zoo {line} {closed}"
    assert subprocess.run(["sh", "-c", command], timeout=60, check=False).returncode == expected
