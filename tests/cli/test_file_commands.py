"""fetch, verify, convert, cache, bundle, mirror: files, real ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.hub import cache_filename
from repvgg_zoo.reparam.fusion import fuse_state_dict

FILE = repvgg_zoo.model_info("RepVGG_N0").checkpoint("digits").file
SHA256 = FILE.sha256


@pytest.fixture
def cached(run) -> Path:
    """The bundled checkpoint's file in the cache."""
    return Path(run("fetch", "RepVGG_N0").out.strip())


def damage(path: Path) -> None:
    """One flipped bit; size and time of change stay."""
    status, body = path.stat(), bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(bytes(body))
    os.utime(str(path), ns=(status.st_atime_ns, status.st_mtime_ns))


def test_fetch_prints_paths_and_nothing_else(run):
    shown = run("fetch", "n0", "RepVGG_N0.digits")
    paths = shown.out.splitlines()
    assert shown.code == 0 and shown.err == "" and len(paths) == 2 and paths[0] == paths[1]
    assert Path(paths[0]).stat().st_size == FILE.size
    row = run("fetch", "n0", "--json").json[0]
    assert row == {"name": "RepVGG_N0.digits", "path": paths[0], "size": FILE.size, "integrity": "sha256"}


def test_a_wrong_name_is_told_before_anything_is_fetched(run, folder):
    assert run("fetch", "n0", "nonsense").code == 3
    assert not (folder.parent / "cache").exists()


@pytest.mark.parametrize(
    ("argv", "code", "type", "said"),
    [
        (["RepVGG_A0", "--offline"], 4, "OfflineError", "network may not be used"),
        (["RepVGG_A0.timm"], 4, "UnverifiedError", "--allow-unverified"),
        (["RepVGG_A0.timm", "--allow-unverified", "--offline"], 4, "OfflineError", "network may not be used"),
        (["RepVGG_B2g2"], 3, "NoWeightsError", "no pretrained weights"),
    ],
)
def test_what_cannot_be_fetched_has_the_exit_code_of_its_family(run, argv, code, type, said):
    shown = run("fetch", *argv)
    assert (shown.code, shown.out) == (code, "") and said in shown.err and "Traceback" not in shown.err
    assert run("fetch", *argv, "--json").json["error"]["type"] == type


def test_a_cache_that_cannot_be_made_has_exit_code_5_and_names_the_folder(run, folder, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(folder / "file" / "cache"))
    error = run("fetch", "n0", "--json")
    assert error.code == 5
    assert error.json["error"]["path"] == str(folder / "file" / "cache")


def test_verify_finds_a_flipped_bit_by_cache_by_name_and_by_file(run, cached):
    for argv in ([], ["RepVGG_N0"], [str(cached)]):
        assert run("verify", *argv).code == 0
        assert run("verify", *argv, "--json").json[0]["status"] == "right"
    damage(cached)
    for argv in (["RepVGG_N0"], [str(cached)], []):
        shown = run("verify", *argv)
        assert shown.code == 1 and shown.out.startswith("damaged") and SHA256[:16] in shown.out
    assert Path(run("fetch", "RepVGG_N0").out.strip()) == cached
    assert run("verify").code == 0, "what verify found is fetched anew"


def test_verify_reads_a_file_of_ones_own_as_a_checkpoint(run, cached):
    run("convert", str(cached), "own.pkl", "--deploy")
    (one,) = run("verify", "own.pkl", "--json").json
    assert one["status"] == "unknown" and one["known_as"] == []
    assert one["checkpoint"]["form"] == "deploy" and one["checkpoint"]["format"] == "megengine"
    assert run("verify", "own.pkl").code == 0


@pytest.mark.parametrize("body", [b"", b"<!doctype html>", b"\x80\x04garbage", b"PK\x03\x04" + bytes(50)])
def test_verify_says_that_a_file_is_no_checkpoint(run, folder, body):
    (folder / "weights.pth").write_bytes(body)
    shown = run("verify", "weights.pth")
    assert shown.code == 1 and shown.out.startswith("damaged  weights.pth")


def test_verify_knows_a_file_by_the_name_that_its_publisher_gave_it(run, folder, cached):
    file = repvgg_zoo.model_info("RepVGG_B0").checkpoint("openmmlab").file
    (folder / file.name).write_bytes(cached.read_bytes())
    shown = run("verify", file.name)
    assert shown.code == 1 and f"the name of RepVGG_B0.openmmlab, whose SHA-256 is {file.sha256_prefix}" in shown.out


def test_verify_of_what_is_not_there_is_absent(run):
    assert run("verify", "RepVGG_N0", "--json").json[0]["status"] == "absent"
    assert run("verify", "RepVGG_N0").code == 1
    assert (run("verify").code, run("verify").out) == (0, "the cache is empty\n")
    assert run("verify", "./nothing.pkl", "--json").json["error"]["path"] == "nothing.pkl"
    assert run("verify", "./nothing.pkl").code == 5


@pytest.mark.parametrize("layout", ["canonical", "official", "timm", "openmmlab", "basecls"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
@pytest.mark.parametrize("deploy", [False, True])
def test_convert_writes_every_layout_format_and_form(run, cached, layout, suffix, deploy):
    argv = ["convert", str(cached), f"out{suffix}", "--layout", layout, "--check", *(["--deploy"] if deploy else [])]
    report = run(*argv, "--json").json
    arrays = repvgg_zoo.load_checkpoint(cached).state_dict
    wanted = fuse_state_dict(arrays) if deploy else arrays
    again = repvgg_zoo.load_checkpoint(f"out{suffix}", layout=layout)
    assert again.form == report["wrote"]["form"] == ("deploy" if deploy else "train")
    assert all(np.array_equal(again.state_dict[key], wanted[key]) for key in wanted) and set(again.state_dict) == set(
        wanted
    )
    assert report["wrote"]["size"] == Path(f"out{suffix}").stat().st_size
    assert (report["fused"] is not None) == deploy


def test_convert_fetches_a_name_and_reports_how_exact_the_fusion_is(run):
    shown = run("convert", "RepVGG_N0", "n0.safetensors", "--deploy", "--check")
    assert shown.code == 0
    assert [line.split()[0] for line in shown.out.splitlines() if line[0] != " "] == ["read", "fused", "wrote", "check"]
    fused = run("convert", "RepVGG_N0", "n0.safetensors", "--deploy", "--force", "--json").json["fused"]
    assert len(fused["blocks"]) == 9 and 0 < fused["worst_error"] < 1e-6 < fused["bound"]
    assert fused["worst_error"] == max(fused["blocks"].values()) == fused["blocks"][fused["worst_block"]]


def test_convert_refuses_to_overwrite_and_leaves_the_file_alone(run, folder, cached):
    (folder / "mine.pkl").write_text("mine")
    shown = run("convert", str(cached), "mine.pkl")
    assert shown.code == 2 and "--force" in shown.err and (folder / "mine.pkl").read_text() == "mine"
    assert run("convert", str(cached), "mine.pkl", "--force").code == 0
    assert (folder / "mine.pkl").read_text("latin-1") != "mine"


def test_convert_refuses_weights_that_rounding_cannot_carry_and_writes_nothing(run, folder, cached):
    arrays = {key: value.copy() for key, value in repvgg_zoo.load_checkpoint(cached).state_dict.items()}
    # Branches of 1e9 that cancel: float32 keeps 7 digits of each, and the sum needs more.
    block = "stage2.1."
    arrays[f"{block}rbr_1x1.bn.bias"] += np.float32(1e12)
    arrays[f"{block}rbr_identity.bias"] -= np.float32(1e12)
    kernel = arrays[f"{block}rbr_dense.conv.weight"]
    kernel[..., 1, 1] = 1e9
    arrays[f"{block}rbr_1x1.conv.weight"][...] = -1e9
    for branch in ("rbr_dense.bn", "rbr_1x1.bn"):
        arrays[f"{block}{branch}.weight"][...] = 1
        arrays[f"{block}{branch}.running_var"][...] = 1
    repvgg_zoo.save_checkpoint("odd.pkl", arrays)
    error = run("convert", "odd.pkl", "out.pkl", "--deploy", "--json")
    assert error.code == 6 and error.json["error"]["type"] == "EquivalenceError"
    assert "stage2.1" in error.json["error"]["message"] and not (folder / "out.pkl").exists()


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["n0.pkl", "out.bin"], 2, "cannot tell the format"),
        (["n0.pkl", "nowhere/out.pkl"], 2, "not a folder"),
        (["n0.pkl", "out.pkl", "--from-layout", "keras"], 2, "'keras' is not a known layout"),
        (["n0.pkl", "out.pkl", "--from-layout", "timm"], 6, "layout"),
        (["junk.pkl", "out.pkl"], 6, "junk.pkl"),
        (["./missing.pkl", "out.pkl"], 6, "missing.pkl"),
        (["missing", "out.pkl"], 3, "unknown model 'missing'"),
    ],
)
def test_convert_says_what_it_cannot_do_and_writes_nothing(run, folder, cached, argv, code, said):
    run("convert", str(cached), "n0.pkl")
    (folder / "junk.pkl").write_bytes(b"junk")
    shown = run("convert", *argv)
    assert said in shown.err and shown.code == code
    assert not (folder / "out.pkl").exists() and not (folder / "out.bin").exists()


def test_the_cache_is_listed_emptied_and_found(run, cached):
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


def test_prune_takes_unfinished_downloads_and_what_it_is_asked_for_as_well(run, cached):
    root = cached.parent
    part = root / f"{'a' * 16}.released.{'b' * 12}.part"
    asked_for = {
        "--unknown": [root / f"{'c' * 16}-old.pkl"],
        "--derived": [root / "derived" / f"weights-{'d' * 32}.derived"],
        "--compiled": [root / "compiled" / f"{'e' * 32}{end}" for end in (".json", ".mge", f".mge.{'f' * 12}.new")],
    }
    foreign = [root / "derived" / "notes.txt", root / "compiled" / f"{'e' * 32}.txt"]
    for path in [part, *foreign, *(path for paths in asked_for.values() for path in paths)]:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 1000)
    os.utime(str(part), (0, 0))
    assert run("cache", "prune").code == 0
    assert not part.exists()
    listed = run("cache", "ls")
    assert "derived: 1.0 kB" in listed.out and "compiled: 3.0 kB" in listed.out
    assert run("cache", "ls", "--json").json["compiled"] == {"files": 3, "size": 3000}
    for option, paths in asked_for.items():
        dry = run("cache", "prune", option, "--dry-run", "--json").json
        assert {Path(entry["path"]) for entry in dry["removed"]} == set(paths)
        assert dry["size"] == 1000 * len(paths) and all(path.exists() for path in paths)
        assert run("cache", "prune", option).code == 0
        assert not any(path.exists() for path in paths)
    assert all(path.exists() for path in foreign) and cached.exists()


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
    assert run("verify", "n0", "--json").json[0]["status"] == "absent"
    assert run("bundle", "show", "nowhere.zip").code == 6


def test_a_made_mirror_serves_by_web_by_folder_and_as_a_cache(run, folder, monkeypatch, server):
    made = run("mirror", "make", "m", "RepVGG_N0")
    assert made.code == 0 and "python3 -m http.server --directory m" in made.out
    from tests.hub.server import Answer

    stored = cache_filename(FILE)
    url = server.serve(f"/{stored}", Answer((folder / "m" / stored).read_bytes()))[: -len(stored) - 1]
    for setting, value in (("MIRROR", url), ("MIRROR", str(folder / "m")), ("CACHE_DIRS", str(folder / "m"))):
        with monkeypatch.context() as patch:
            patch.setenv(f"REPVGG_ZOO_{setting}", value)
            patch.setenv("REPVGG_ZOO_HOME", str(folder / f"cache-{len(value)}"))
            assert run("fetch", "RepVGG_N0").code == 0
            assert run("verify", "RepVGG_N0").code == 0
    assert [request.path for request in server.requests] == [f"/{stored}"]


def test_mirror_show_says_who_answers_and_hides_credentials(run, folder, monkeypatch, server):
    run("mirror", "make", "m", "RepVGG_N0")
    live = server.url("/").replace("127", "me:secret@127")
    monkeypatch.setenv("REPVGG_ZOO_MIRROR", f"{live} {folder / 'm'} http://127.0.0.1:9/ {folder / 'none'}")
    monkeypatch.setenv("REPVGG_ZOO_REWRITE", "https://=http://127.0.0.1:9/?secret=")
    shown = run("mirror", "show")
    assert shown.code == 1, "a mirror that was set does not answer"
    assert "secret" not in shown.out and "a folder with 1 checkpoint file" in shown.out
    places = run("mirror", "show", "--json").json["places"]
    assert [place["answers"] for place in places if place["kind"] == "mirror"] == [True, True, False, False]
    assert all(place["where"].startswith("http://127.0.0.1:9") for place in places if place["kind"] == "host")
    asked = len(server.requests)
    assert run("mirror", "show", "--offline").code == 0 and len(server.requests) == asked
