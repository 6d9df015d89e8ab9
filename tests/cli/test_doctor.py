"""The doctor reports each problem once, with its fix."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

from repvgg_zoo._requirements import import_fix, requirement, requirements
from repvgg_zoo.cli.commands import doctor
from repvgg_zoo.cli.doctor import cache, network, python, settings
from repvgg_zoo.cli.doctor.finding import FAIL, OK, WARN, ok
from tests.hub.server import Answer
from tests.registry.installed import install


def test_this_machine_passes(run):
    result = run("doctor", "--offline", "--json")
    assert result.code == 0 and result.json["ok"], result.json
    checks = result.json["checks"]
    names = {"Python", "opencv", "MegEngine", "GPU", "registry", "files", "cache", "disk", "locks", "network"}
    assert names | set(requirements()) - {"megengine", "opencv-python"} <= {check["name"] for check in checks}
    assert all(check["status"] in ("ok", "warn") for check in checks)


def test_checks_can_be_selected_by_name(run):
    result = run("doctor", "python", "disk", "--json")
    assert result.code == 0 and [check["name"] for check in result.json["checks"]] == ["Python", "disk"]
    assert run("doctor", "weather").code == 2


@pytest.mark.parametrize(
    ("name", "version", "status", "text"),
    [
        ("numpy", "1.26.4", OK, "1.26.4"),
        ("numpy", "2.0.1", FAIL, "MegEngine is built against NumPy 1"),
        ("numpy", "1.20.3", FAIL, "1.20.3 is older than 1.21.2"),
        ("numpy", None, FAIL, "is not installed"),
        ("setuptools", "65.5.0", OK, "65.5.0"),
        ("setuptools", "80.9.0", WARN, "warns at each import of MegEngine"),
        ("setuptools", "82.0", FAIL, "pkg_resources"),
        ("safetensors", "0.4.2", FAIL, "0.4.2 is older than 0.4.3"),
    ],
)
def test_versions_outside_their_range_are_reported_with_the_range(name, version, status, text):
    finding = python.check_package(requirement(name), version)
    assert finding.status == status and text in finding.text
    assert finding.fix == (None if status == OK else f"pip install '{requirement(name)}'")


@pytest.mark.parametrize(
    ("versions", "status"),
    [
        ({}, FAIL),
        ({"opencv-python": "4.11.0.86"}, OK),
        ({"opencv-python-headless": "4.5.5.64"}, OK),
        ({"opencv-python": "4.12.0.88"}, WARN),
        ({"opencv-python": "4.11.0.86", "opencv-python-headless": "4.11.0.86"}, WARN),
    ],
)
def test_any_one_distribution_of_opencv_is_accepted(versions, status):
    assert python.check_opencv(versions.get).status == status


@pytest.mark.parametrize(
    ("body", "problem", "fix"),
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
def test_an_import_that_fails_hangs_or_crashes_is_reported(tmp_path, monkeypatch, body, problem, fix):
    (tmp_path / "frame_work.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    _, error = python.time_import("frame_work", 1.0 if "sleep" in body else 30.0)
    assert error is not None and problem in error and fix in import_fix(error)


@pytest.mark.parametrize(("version", "status"), [((3, 7, 16), FAIL), ((3, 10, 1), OK), ((3, 12, 1), WARN)], ids=str)
def test_a_python_without_wheels_of_megengine_is_a_warning_and_an_old_one_a_failure(monkeypatch, version, status):
    monkeypatch.setattr(sys, "version_info", (*version, "final", 0))
    (finding,) = python.check_python()
    assert finding.status == status
    assert status == OK or "3.10" in finding.fix


def test_a_misspelled_variable_is_reported_with_the_right_one(monkeypatch):
    monkeypatch.setenv("REPVGG_ZOO_MIROR", "https://mirror.example")
    (warning,) = (finding for finding in settings.check_environment() if finding.status == WARN)
    assert "REPVGG_ZOO_MIROR" in warning.text and "REPVGG_ZOO_MIRROR" in warning.fix


def test_an_invalid_setting_is_reported_once(run, monkeypatch):
    monkeypatch.setenv("REPVGG_ZOO_OFFLINE", "maybe")
    result = run("doctor", *[name for name in doctor.NAMES if name != "megengine"], "--json")
    assert result.code == 1
    names = [check["name"] for check in result.json["checks"] if "REPVGG_ZOO_OFFLINE is 'maybe'" in check["text"]]
    assert names == ["environment"] and not {"cache", "locks"} & {check["name"] for check in result.json["checks"]}
    assert "REPVGG_ZOO_OFFLINE is 'maybe'" in run("doctor", "cache").err


def test_a_cache_that_cannot_be_written_is_a_failure(monkeypatch, folder):
    (folder / "file").write_text("")
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(folder / "file" / "cache"))
    (finding,) = cache.check_cache()
    assert finding.status == FAIL and "REPVGG_ZOO_HOME" in finding.fix
    assert cache.check_disk()[0].status in (OK, WARN), "of the nearest folder that exists"


def test_a_cache_that_others_can_write_is_a_failure_with_the_cure(folder):
    root = folder.parent / "cache"
    root.mkdir(mode=0o755)
    assert [finding.status for finding in cache.check_cache()] == [OK]
    for mode in (0o775, 0o757, 0o777):
        root.chmod(mode)
        (finding,) = cache.check_cache()
        assert finding.status == FAIL and "others can write to it" in finding.text
        assert subprocess.run(finding.fix, shell=True).returncode == 0
        assert [finding.status for finding in cache.check_cache()] == [OK], "the fix works"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_cache_of_another_user_is_a_failure_and_can_be_shared(folder):
    root = folder.parent / "cache"
    root.mkdir()
    os.chown(str(root), 54321, -1)
    (finding,) = cache.check_cache()
    assert finding.status == FAIL and "belongs to user 54321" in finding.text
    assert f"REPVGG_ZOO_CACHE_DIRS={root}" in finding.fix


def test_a_frozen_program_is_not_started_a_second_time(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", "/nowhere/program")
    for finding in (*cache.check_locks(), *python.check_megengine()):
        assert finding.status == OK and "a second process of Python" in finding.text


def test_a_disk_without_free_inodes_is_a_failure(monkeypatch):
    monkeypatch.setattr(cache.cache, "free_inodes", lambda root: 0)
    (finding,) = cache.check_disk()
    assert finding.status == FAIL and "no free inodes" in finding.text


def test_a_clock_before_the_package_was_written_is_a_warning():
    assert [finding.status for finding in settings.check_environment()] == [OK]
    clock, _ = settings.check_environment(now=60)
    assert (clock.name, clock.status) == ("clock", WARN) and "1970-01-01" in clock.text and clock.fix


def test_the_checks_leave_no_files_behind(folder):
    root = folder.parent / "cache"
    for check in (cache.check_cache, cache.check_locks, cache.check_unfinished_downloads, cache.check_disk):
        assert check()[0].status in (OK, WARN)
    assert [path.name for path in root.iterdir()] == ["CACHEDIR.TAG"]


def test_a_read_only_cache_that_does_not_exist_is_a_warning(monkeypatch, folder):
    monkeypatch.setenv("REPVGG_ZOO_CACHE_DIRS", str(folder / "nowhere"))
    assert [finding.status for finding in cache.check_cache()] == [WARN, OK]


def test_locks_that_exclude_nobody_are_a_warning(monkeypatch):
    assert cache.check_locks()[0].text.startswith("file locks work at ")
    monkeypatch.setattr(fcntl, "flock", lambda *args: None)  # succeeds for everyone, as on some network drives
    (finding,) = cache.check_locks()
    assert finding.status == WARN and "do not exclude other processes" in finding.text


def test_unfinished_downloads_are_counted_and_old_ones_a_warning(folder):
    root = folder.parent / "cache"
    root.mkdir()
    assert [finding.text for finding in cache.check_unfinished_downloads()] == ["none is unfinished"]
    part = root / f"{'a' * 16}.released.{'b' * 12}.part"
    part.write_bytes(b"x" * 1000)
    (finding,) = cache.check_unfinished_downloads()
    assert finding.status == OK and finding.text.startswith("1 unfinished download, 1.0 kB")
    os.utime(str(part), (0, 0))
    assert cache.check_unfinished_downloads()[0].fix == "repvgg-zoo cache prune"


def test_a_damaged_file_of_the_package_is_a_failure(tmp_path):
    assert [finding.status for finding in settings.check_bundled_files()] == [OK]
    (tmp_path / "6928de6dee95e84a-RepVGG_N0-digits.safetensors").write_bytes(b"damaged")
    assert [finding.status for finding in settings.check_bundled_files(tmp_path)] == [FAIL]


def test_the_network_is_probed_and_silent_hosts_are_a_warning(monkeypatch, server):
    monkeypatch.setenv("REPVGG_ZOO_REWRITE", "https://=http://127.0.0.1:9/")
    monkeypatch.setenv("REPVGG_ZOO_MIRROR", server.url("/"))
    mirror, summary = network.check_network(offline=False, detailed=False)
    assert mirror.status == OK and summary.status == WARN and "none of the" in summary.text
    monkeypatch.setenv("REPVGG_ZOO_REWRITE", f"https://={server.url('/')}")
    assert network.check_network(offline=False, detailed=False)[-1].status == OK
    requests = len(server.requests)
    monkeypatch.setenv("REPVGG_ZOO_OFFLINE", "1")
    assert network.check_network(offline=False, detailed=False)[0].text == "not checked (offline)"
    assert len(server.requests) == requests


def test_doctor_network_shows_each_server_without_credentials(run, folder, monkeypatch, server):
    run("bundle", "pack", "m", "RepVGG_N0")
    live = server.url("/").replace("127", "me:secret@127")
    monkeypatch.setenv("REPVGG_ZOO_MIRROR", f"{live} {folder / 'm'} http://127.0.0.1:9/ {folder / 'none'}")
    monkeypatch.setenv("REPVGG_ZOO_REWRITE", "https://=http://127.0.0.1:9/?secret=")
    result = run("doctor", "network")
    assert result.code == 1, "a mirror that is set does not answer"
    assert "secret" not in result.out and "is a folder with 1 checkpoint file" in result.out
    checks = run("doctor", "network", "--json").json["checks"]
    assert [check["status"] for check in checks if check["name"] == "mirror"] == [OK, OK, FAIL, FAIL]
    hosts = [check for check in checks if check["name"] == "host"]
    assert len(hosts) == 1 and hosts[0]["text"].startswith("http://127.0.0.1:9"), "after the rewrite rule"
    assert [check["name"] for check in checks].count("rewrite") == 1
    requests = len(server.requests)
    offline = run("doctor", "network", "--offline", "--json")
    assert offline.code == 0 and len(server.requests) == requests
    assert [check["name"] for check in offline.json["checks"]].count("mirror") == 4


def test_every_kind_of_mirror_is_probed(run, folder, monkeypatch, server):
    pytest.importorskip("botocore")
    run("bundle", "pack", "my drive", "RepVGG_N0")
    drive = (folder / "my drive").as_uri()
    monkeypatch.setenv(
        "REPVGG_ZOO_MIRROR", f"hf://acme/zoo {drive} s3://acme-models/zoo {server.url('/zoo?sig=secret')}"
    )
    monkeypatch.setenv("HF_ENDPOINT", server.url("/hub"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url("/s3"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    result = run("doctor", "network")
    lines = [line for line in result.out.splitlines() if "mirror" in line]
    assert [
        word in line
        for word, line in zip(
            ("hf://acme/zoo answers", "1 checkpoint file", "s3://acme-models/zoo answers", "/zoo?… answers"), lines
        )
    ] == [True] * 4
    assert "secret" not in result.out
    paths = {request.path for request in server.requests}
    assert {"/hub/", "/zoo?sig=secret", "/s3/acme-models/zoo/CACHEDIR.TAG"} <= paths


def test_a_probed_server_gets_no_credentials(monkeypatch, tmp_path, server):
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for url in (server.url("/"), server.url("/").replace("//", "//me:secret@")):
        (answer,) = network.probe([network.Server("mirror", url, "x")])
        assert answer.ok
    assert [request.headers.get("Authorization") for request in server.requests] == [None, None]


def test_the_body_of_a_redirect_is_not_read_by_the_doctor(server):
    """It may be gigabytes, or a few kilobytes that decompress to gigabytes."""
    location = {"Location": "/elsewhere"}
    server.serve("/", Answer(bytes(50_000_000), status=302, headers=location, chunked=True))
    (probed,) = network.probe([network.Server("host", server.url("/"), "x")])
    assert probed.ok and "HTTP 302" in probed.text
    assert server.sent < 25_000_000


def test_a_certificate_bundle_that_does_not_exist_is_named_by_the_doctor(monkeypatch, tmp_path):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
    (probed,) = network.probe([network.Server("host", "https://127.0.0.1:9/", "x")])
    assert not probed.ok and "REQUESTS_CA_BUNDLE" in probed.text


def test_a_silent_host_is_not_waited_for_longer_than_the_timeout(server):
    server.gate = lambda: time.sleep(3)
    start = time.monotonic()
    (answer,) = network.probe([network.Server("host", server.url("/"), "x")], timeout=0.3)
    assert not answer.ok and "does not answer within 0.3 s" in answer.text and time.monotonic() - start < 2


def test_a_check_that_raises_does_not_hide_the_others():
    def broken():
        raise RuntimeError("a cat on the keyboard")

    findings = doctor.run_checks({"one": broken, "two": lambda: [ok("two", "fine")]})
    assert [(finding.name, finding.status) for finding in findings] == [("one", FAIL), ("two", OK)]
    assert "a cat on the keyboard" in findings[0].text


def test_the_doctor_needs_none_of_the_packages_that_it_checks():
    code = """
        import importlib.metadata, sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("megengine", "numpy", "yaml", "requests", "filelock", "PIL", "safetensors"):
                    raise ModuleNotFoundError("No module named " + name, name=name)

        def version(name):
            raise importlib.metadata.PackageNotFoundError(name)

        sys.meta_path.insert(0, Refuse())
        importlib.metadata.version = version
        from repvgg_zoo.cli import main

        raise SystemExit(main(["doctor", "--json"]))
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    status = {check["name"]: check["status"] for check in json.loads(process.stdout)["checks"]}
    assert (process.returncode, process.stderr) == (1, "")
    assert {"numpy", "pyyaml", "opencv", "MegEngine"} <= {name for name in status if status[name] == FAIL}
    assert status["cache"] == OK and status["Python"] == OK


def test_an_unreadable_registry_and_a_broken_plugin_are_failures(tmp_path, monkeypatch):
    site = tmp_path / "site"
    install(site, "acme", code="raise RuntimeError('no license')")
    monkeypatch.setenv("REPVGG_ZOO_REGISTRY", str(tmp_path / "mine.yaml"))
    monkeypatch.syspath_prepend(str(site))
    findings = {finding.name: finding for finding in settings.check_registry() if finding.status == FAIL}
    assert "mine.yaml" in findings["registry"].text
    plugin = findings["plugins"]
    assert "acme" in plugin.text and "no license" in plugin.text and plugin.fix


def test_plugins_are_counted_and_their_variables_are_known(tmp_path, monkeypatch):
    site = tmp_path / "site"
    install(site, "acme")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("REPVGG_ZOO_PLUGINS", "strict")
    assert settings.check_registry()[0].text == "17 variants, 70 checkpoints"
    assert [finding.status for finding in settings.check_environment()] == [OK]
