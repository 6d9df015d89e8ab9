"""cache and bundle: what they list, remove and carry, and what they leave alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import repvgg_zoo
from repvgg_zoo._derived_cache import DerivedCache, DerivedKey
from repvgg_zoo.hub import cache_filename
from tests.hub.server import Answer
from tests.registry.installed import install, registry

from .conftest import ROOT, damage, piped

FILE = repvgg_zoo.model_info("RepVGG_N0").checkpoint("digits").file
SHA256 = FILE.sha256


def test_the_cache_can_be_located_listed_and_emptied(run, cached):
    assert run("cache", "where").out == f"{cached.parent}\n"
    listed = run("cache", "ls").out
    assert "1.0 MB" in listed and "RepVGG_N0.digits" in listed
    entries = run("cache", "ls", "--json").json["entries"]
    assert {entry["name"]: entry["checkpoint"] for entry in entries}[cached.name] == "RepVGG_N0.digits"
    assert run("cache", "rm", "n0", "--dry-run").out.startswith(f"would remove {cached.name}") and cached.exists()
    assert run("cache", "rm", "n0").code == 0 and not cached.exists()
    assert run("cache", "rm", "n0").code == 2
    assert run("cache", "rm", "nonsense").code == 2
    assert run("cache", "rm", "RepVGG_B2g2").code == 2


def test_a_file_is_removed_by_the_name_that_the_listing_shows(run, cached):
    assert run("cache", "rm", cached.name, "--json").json["removed"][0]["path"] == str(cached)
    assert not cached.exists()


def test_prune_shrinks_the_cache_to_a_size(run, cached):
    run("cache", "prune", "--derived")
    payload = run("cache", "prune", "--max-size", "5GB", "--json").json
    assert payload["removed"] == [] and payload["remaining_size"] == FILE.size <= payload["max_size"] == 5_000_000_000
    unknown = cached.with_name("0123456789abcdef-other.bin")
    unknown.write_bytes(b"x" * 2000)
    result = run("cache", "prune", "--max-size", "1kB", "--dry-run")
    assert result.code == 1 and f"would remove {cached.name}, 1.0 MB, last used " in result.out
    assert "2.0 kB is left in the cache: nothing else could be" in result.out and unknown.name in result.out
    assert run("cache", "prune", "--max-size", "2kB").code == 0
    assert not cached.exists() and unknown.exists()


@pytest.mark.parametrize("size", ["five", "-1", "5XB", "5iB", "", "nan", "1e9"])
def test_a_size_that_is_none_is_refused(run, size):
    assert "is not a valid size" in run("cache", "prune", f"--max-size={size}").err


def test_prune_removes_unfinished_downloads_and_with_an_option_derived_data(run, cached):
    root = cached.parent
    part = root / f"{'a' * 16}.released.{'b' * 12}.part"
    unknown = root / f"{'c' * 16}-old.pkl"
    cache = DerivedCache(root)
    assert cache.write(DerivedKey(SHA256, "fuse", 1, {}), lambda stream: stream.write(b"x" * 1000))
    (entry,) = cache.entries()
    foreign = entry.path.with_name("notes.txt")
    for path in (part, unknown, foreign):
        path.write_bytes(b"x" * 1000)
    os.utime(str(part), (0, 0))
    assert run("cache", "prune").code == 0
    assert not part.exists()
    assert "derived data, such as fused weights: 1 file, 1.5 kB" in run("cache", "ls").out
    listed = run("cache", "ls", "--json").json["derived"]
    assert [(item["path"], item["step"], item["size"]) for item in listed] == [(str(entry.path), "fuse", entry.size)]
    size = entry.path.stat().st_size
    dry_run = run("cache", "prune", "--derived", "--dry-run", "--json").json
    assert [item["path"] for item in dry_run["removed"]] == [str(entry.path)]
    assert dry_run["size"] == size and entry.path.exists()
    assert run("cache", "prune", "--derived").code == 0
    assert not entry.path.exists()
    assert foreign.exists() and cached.exists() and unknown.exists()


@pytest.fixture
def of_a_plugin(tmp_path, monkeypatch) -> Path:
    """The file of a plugin's checkpoint in the cache."""
    site = tmp_path / "site"
    site.mkdir()
    shutil.copyfile(FILE.sources[0], str(site / "mine.safetensors"))
    preprocessing = "image_size: 32, resize: 32, interpolation: bilinear, backend: opencv, color_order: RGB"
    entry = f"""\
    checkpoints:
      mine:
        file: {{name: mine.safetensors, sources: [mine.safetensors], size: {FILE.size}, sha256: {SHA256}}}
        publisher: acme
        license: MIT
        format: safetensors
        layout: canonical
        form: train
        preprocessing: {{{preprocessing}, mean: [0.3, 0.3, 0.3], std: [0.3, 0.3, 0.3]}}
        provenance: [here]
"""
    install(site, "acme", yaml=registry("acme/RepVGG_Q").replace("    no_weights: it is a test\n", entry))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))
    result = piped("fetch", "acme/RepVGG_Q", "--json")
    assert result.code == 0, result
    (row,) = result.json
    return Path(row["path"])


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("broken plugin", "acme"), ("plugins off", "REPVGG_ZOO_PLUGINS=off"), ("not installed", None)],
)
def test_prune_leaves_what_a_plugin_of_another_day_may_own(run, tmp_path, monkeypatch, of_a_plugin, missing, reason):
    """The kind: a file that today's registries do not know is not garbage; whose it is cannot be known."""
    assert piped("cache", "prune", "--days", "0", "--json").json["unknown"] == []
    if missing == "broken plugin":
        (tmp_path / "site" / "acme_plugin.py").write_text("import numpy_that_is_gone")
    elif missing == "plugins off":
        monkeypatch.setenv("REPVGG_ZOO_PLUGINS", "off")
    else:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
    result = piped("cache", "prune", "--days", "0", "--derived")
    assert result.code == 0 and of_a_plugin.exists()
    assert f"  {of_a_plugin.name}, 1.0 MB" in result.out and "may own them" in result.out
    payload = piped("cache", "prune", "--json").json
    assert [file["name"] for file in payload["unknown"]] == [of_a_plugin.name]
    assert reason is None or any(reason in text for text in payload["not_searched"])
    assert run("cache", "rm", of_a_plugin.name).code == 0 and not of_a_plugin.exists(), "by name it can be removed"


def test_rm_refuses_a_name_that_several_files_have_and_lists_them(run, cached):
    names = [f"{digit * 16}-model.safetensors" for digit in "ab"]
    for name in names:
        (cached.parent / name).write_bytes(b"x")
    error = run("cache", "rm", "model.safetensors")
    assert error.code == 2 and all(name in error.err for name in names) and "nothing was removed" in error.err
    assert all((cached.parent / name).exists() for name in names)
    assert run("cache", "rm", names[0]).code == 0
    assert run("cache", "rm", "model.safetensors").code == 0, "now it is unambiguous"


def test_an_entry_that_cannot_be_used_is_an_error_with_its_path_and_hides_no_other(run, cached):
    link = cached.with_name(f"{'a' * 16}-dangling.bin")
    link.symlink_to("nowhere")
    listing = run("cache", "ls")
    assert listing.code == 5 and f"{link}: it is a link" in listing.out and "RepVGG_N0.digits" in listing.out
    verified = run("verify")
    assert verified.code == 1 and f"{link}: it is a link" in verified.out and f"ok  {cached.name}" in verified.out
    cached.unlink()
    cached.symlink_to("nowhere")
    assert run("verify", "n0", "--json").json[0]["status"] == "unreadable"
    for path in (link, cached):
        assert run("cache", "rm", path.name).code == 0 and not path.is_symlink()


def test_a_file_that_was_deleted_by_hand_is_forgotten_by_its_registry_name(run, cached):
    cached.unlink()
    assert {file["name"] for file in run("cache", "rm", "n0", "--json").json["removed"]} >= {f"{cached.name}.stamp"}
    assert [path.name for path in cached.parent.iterdir()] == ["CACHEDIR.TAG"]
    assert run("cache", "rm", "n0").code == 2


@pytest.mark.parametrize("name", ["zoo.zip", "zoo"])
def test_a_bundle_goes_from_one_cache_to_another(run, monkeypatch, folder, name):
    packed = run("bundle", "pack", name, "RepVGG_N0", "--json").json
    assert packed["files"] == run("bundle", "show", name, "--json").json["files"]
    assert packed["files"][0]["sha256"] == SHA256
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(folder / "other"))
    monkeypatch.setenv("REPVGG_ZOO_OFFLINE", "1")
    path = run("bundle", "unpack", name, "--json").json["files"]["RepVGG_N0.digits"]
    assert path == str(folder / "other" / cache_filename(FILE)) and run("verify", "n0").code == 0
    assert run("bundle", "pack", name, "n0").code == 2, "it exists already"


def test_a_tampered_bundle_changes_nothing_and_has_exit_code_6(run, folder):
    run("bundle", "pack", "zoo", "RepVGG_N0")
    damage(folder / "zoo" / cache_filename(FILE))
    run("cache", "rm", "n0")
    error = run("bundle", "unpack", "zoo", "--json")
    assert error.code == 6 and error.json["error"]["type"] == "BundleError"
    assert error.json["error"]["expected"] == SHA256
    assert run("verify", "n0", "--json").json[0]["status"] == "missing"
    assert run("bundle", "show", "nowhere.zip").code == 5


def test_a_packed_folder_is_a_mirror_by_web_or_path_and_a_cache(run, folder, monkeypatch, server):
    packed = run("bundle", "pack", "m", "RepVGG_N0")
    assert packed.code == 0 and "python3 -m http.server --directory m" in packed.out
    assert "http.server" not in run("bundle", "pack", "m.zip", "RepVGG_N0").out
    stored = cache_filename(FILE)
    url = server.serve(f"/{stored}", Answer((folder / "m" / stored).read_bytes()))[: -len(stored) - 1]
    for setting, value in (("MIRROR", url), ("MIRROR", str(folder / "m")), ("CACHE_DIRS", str(folder / "m"))):
        with monkeypatch.context() as patch:
            patch.setenv(f"REPVGG_ZOO_{setting}", value)
            patch.setenv("REPVGG_ZOO_HOME", str(folder / f"cache-{len(value)}"))
            assert run("fetch", "RepVGG_N0").code == 0
            assert run("verify", "RepVGG_N0").code == 0
    assert [request.path for request in server.requests] == [f"/{stored}"]
