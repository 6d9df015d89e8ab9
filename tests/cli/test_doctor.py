"""The doctor tells what is wrong, one thing once, and what to do about it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

from repvgg_zoo.cli.commands import doctor
from repvgg_zoo.cli.doctor import cache, python
from repvgg_zoo.cli.doctor.finding import FAIL, OK, WARN, ok
from tests.registry.installed import install


def test_this_machine_is_well(run):
    facts = run("doctor", "--offline", "--json")
    assert facts.code == 0 and facts.json["ok"], facts.json
    names = {one["name"] for one in facts.json["checks"]}
    assert {"Python", "numpy", "opencv", "MegEngine", "GPU", "registry", "cache", "disk", "locks", "network"} <= names
    assert all(one["status"] in ("ok", "warn") for one in facts.json["checks"])


@pytest.mark.parametrize(
    ("name", "version", "status", "fix"),
    [
        ("numpy", "1.26.4", OK, None),
        ("numpy", "2.0.1", FAIL, "pip install 'numpy>=1.21.2,<2'"),
        ("numpy", "1.20.3", FAIL, "pip install 'numpy>=1.21.2,<2'"),
        ("numpy", None, FAIL, "pip install 'numpy>=1.21.2,<2'"),
        ("setuptools", "65.5.0", OK, None),
        ("setuptools", "80.9.0", WARN, "pip install 'setuptools>=59.0.1,<80.9'"),
        ("setuptools", "82.0", FAIL, "pip install 'setuptools>=59.0.1,<82'"),
        ("safetensors", "0.4.2", FAIL, "pip install 'safetensors>=0.4.3'"),
    ],
)
def test_versions_that_break_megengine_are_faults(name, version, status, fix):
    row = next(row for row in python.REQUIRED if row[0] == name)
    found = python.required(*row, installed=lambda _: version)
    assert (found.status, found.fix) == (status, fix)


@pytest.mark.parametrize(
    ("have", "status"),
    [
        ({}, FAIL),
        ({"opencv-python": "4.11.0.86"}, OK),
        ({"opencv-python-headless": "4.5.5.64"}, OK),
        ({"opencv-python": "4.12.0.88"}, WARN),
        ({"opencv-python": "4.11.0.86", "opencv-python-headless": "4.11.0.86"}, WARN),
    ],
)
def test_any_one_opencv_will_do(have, status):
    assert python.opencv(have.get).status == status


def test_the_ranges_are_those_of_the_package_itself():
    from pathlib import Path

    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for name, lowest, _, _ in python.REQUIRED:
        assert f'"{name}>={lowest}' in text, name
    assert '"opencv-python>=4.5.5.64,<4.12"' in text and '"megengine>=1.13' in text


@pytest.mark.parametrize(
    ("body", "said", "cure"),
    [
        ("import os; os.abort()", "crashed with signal 6", "--force-reinstall"),
        ("import time; time.sleep(30)", "more than 1 s", "--force-reinstall"),
        ("raise ImportError('libGL.so.1: cannot open shared object file')", "libGL.so.1", "opencv-python-headless"),
        ("raise ModuleNotFoundError(\"No module named 'pkg_resources'\")", "pkg_resources", "setuptools"),
        ("raise ImportError('numpy.core.multiarray failed to import')", "multiarray", "numpy>=1.21.2,<2"),
        ("raise PermissionError('Permission denied: /x/persistent_cache')", "Permission", "MGE_HOME"),
        ("raise SystemExit(3)", "exit code 3", "--force-reinstall"),
    ],
)
def test_an_import_that_fails_hangs_or_crashes_is_told_with_its_cure(tmp_path, monkeypatch, body, said, cure):
    (tmp_path / "frame_work.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    begun = time.monotonic()
    _, problem = python.imported("frame_work", 1.0 if "sleep" in body else 30.0)
    assert problem is not None and said in problem and cure in python.cure(problem)
    assert time.monotonic() - begun < 10


def test_a_python_without_wheels_is_a_fault(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 12, 1, "final", 0))
    (found,) = python.python(True)
    assert found.status == FAIL and "3.10" in found.fix


def test_a_variable_that_nobody_reads_is_told_with_the_one_that_was_meant(run, monkeypatch):
    monkeypatch.setenv("REPVGG_ZOO_MIROR", "https://mirror.example")
    (warning,) = (one for one in cache.environment(True) if one.status == WARN)
    assert "REPVGG_ZOO_MIROR" in warning.text and "REPVGG_ZOO_MIRROR" in warning.fix


def test_a_setting_that_cannot_be_meant_is_one_fault_and_not_six(run, monkeypatch):
    monkeypatch.setattr(python, "imported", lambda module, seconds: (0.1, None))
    monkeypatch.setenv("REPVGG_ZOO_OFFLINE", "maybe")
    facts = run("doctor", "--json")
    assert facts.code == 1
    told = [one["name"] for one in facts.json["checks"] if "REPVGG_ZOO_OFFLINE is 'maybe'" in one["text"]]
    assert told == ["environment"] and not {"cache", "locks"} & {one["name"] for one in facts.json["checks"]}


def test_a_cache_that_cannot_be_written_is_a_fault(monkeypatch, folder):
    (folder / "file").write_text("")
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(folder / "file" / "cache"))
    (found,) = cache.cache(True)
    assert found.status == FAIL and "REPVGG_ZOO_HOME" in found.fix
    assert cache.disk(True)[0].status in (OK, WARN), "of the nearest folder that exists"


def test_the_checks_leave_nothing_behind(folder):
    root = folder.parent / "cache"
    for check in (cache.cache, cache.locks, cache.leftovers, cache.disk):
        assert check(True)[0].status in (OK, WARN)
    assert [path.name for path in root.iterdir()] == ["CACHEDIR.TAG"]


def test_a_read_only_cache_that_is_not_there_is_a_warning(monkeypatch, folder):
    monkeypatch.setenv("REPVGG_ZOO_CACHE_DIRS", str(folder / "nowhere"))
    assert [one.status for one in cache.cache(True)] == [WARN, OK]


def test_locks_that_keep_nobody_out_are_found(monkeypatch, folder):
    assert cache.locks(True)[0].status == OK
    monkeypatch.setattr(fcntl, "flock", lambda *args: None)  # succeeds for everyone, as on some network drives
    (found,) = cache.locks(True)
    assert found.status == WARN and "let two processes in at once" in found.text


def test_unfinished_downloads_are_counted_and_old_ones_told(folder):
    root = folder.parent / "cache"
    root.mkdir()
    part = root / f"{'a' * 16}.released.{'b' * 12}.part"
    part.write_bytes(b"x" * 1000)
    assert (cache.leftovers(True)[0].status, cache.leftovers(True)[0].text[:21]) == (
        OK,
        "1 unfinished download",
    )
    os.utime(str(part), (0, 0))
    assert cache.leftovers(True)[0].fix == "repvgg-zoo cache prune"


def test_a_damaged_file_of_the_package_itself_is_a_fault(monkeypatch, tmp_path):
    (tmp_path / "6928de6dee95e84a-RepVGG_N0-digits.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(cache, "hub_folder", lambda: tmp_path)
    assert [one.status for one in cache.registry(True)] == [OK, FAIL]


def test_the_network_is_asked_within_seconds_and_silence_is_a_warning(monkeypatch, server):
    monkeypatch.setenv("REPVGG_ZOO_REWRITE", "https://=http://127.0.0.1:9/")
    monkeypatch.setenv("REPVGG_ZOO_MIRROR", server.url("/"))
    mirror, nobody = cache.network(False)
    assert mirror.status == OK and nobody.status == WARN and "none of the" in nobody.text
    monkeypatch.setenv("REPVGG_ZOO_REWRITE", f"https://={server.url('/')}")
    assert cache.network(False)[-1].status == OK
    asked = len(server.requests)
    monkeypatch.setenv("REPVGG_ZOO_OFFLINE", "1")
    assert cache.network(False)[0].text == "not asked (offline)" and len(server.requests) == asked


def test_a_host_that_says_nothing_is_not_waited_for_longer_than_the_bound(monkeypatch, server):
    from repvgg_zoo.cli.doctor import connectivity

    server.gate = lambda: time.sleep(3)
    begun = time.monotonic()
    (answer,) = connectivity.ask([connectivity.Place("host", server.url("/"), "x")], seconds=0.3)
    assert not answer.ok and "no answer" in answer.text and time.monotonic() - begun < 2


def test_a_check_that_breaks_does_not_hide_the_others():
    def broken(offline):
        raise RuntimeError("a cat on the keyboard")

    found = doctor.examined([("one", broken), ("two", lambda offline: [ok("two", "fine")])], True)
    assert [(one.name, one.status) for one in found] == [("one", FAIL), ("two", OK)]
    assert "a cat on the keyboard" in found[0].text


def test_the_doctor_needs_none_of_the_packages_that_it_looks_for():
    code = """
        import sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("megengine", "numpy", "yaml", "requests", "filelock", "PIL", "safetensors"):
                    raise ModuleNotFoundError("No module named " + name, name=name)

        sys.meta_path.insert(0, Refuse())
        from repvgg_zoo.cli.doctor import python
        from repvgg_zoo.cli import main

        python.installed = lambda name: None
        raise SystemExit(main(["doctor", "--json"]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    checks = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    assert (done.returncode, done.stderr) == (1, "")
    assert {"numpy", "pyyaml", "opencv", "MegEngine"} <= {name for name, one in checks.items() if one["status"] == FAIL}
    assert checks["cache"]["status"] == OK and checks["Python"]["status"] == OK


def test_a_file_and_a_plug_in_that_cannot_be_used_are_faults(run, tmp_path, monkeypatch):
    site = tmp_path / "site"
    install(site, "acme", code="raise RuntimeError('no license')")
    monkeypatch.setenv("REPVGG_ZOO_REGISTRY", str(tmp_path / "mine.yaml"))
    monkeypatch.syspath_prepend(str(site))
    found = {one.name: one for one in cache.registry(True) if one.status == FAIL}
    assert "mine.yaml" in found["registry"].text
    assert "acme" in found["plug-ins"].text and "no license" in found["plug-ins"].text and found["plug-ins"].fix


def test_the_plug_ins_are_counted_and_their_variables_are_known(run, tmp_path, monkeypatch):
    site = tmp_path / "site"
    install(site, "acme")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("REPVGG_ZOO_PLUGINS", "strict")
    assert cache.registry(True)[0].text == "17 variants, 70 checkpoints"
    assert [one.status for one in cache.environment(True)] == [OK]
