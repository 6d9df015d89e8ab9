"""fetch, verify and convert, with real files."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.reparam.fusion import fuse_state_dict
from tests.registry.installed import install
from tests.registry.sample import SAMPLE

from .conftest import damage, piped

FILE = repvgg_zoo.model_info("RepVGG_N0").checkpoint("digits").file
SHA256 = FILE.sha256


def test_fetch_prints_only_paths(run):
    result = run("fetch", "n0", "RepVGG_N0.digits")
    paths = result.out.splitlines()
    assert result.code == 0 and result.err == "" and len(paths) == 2 and paths[0] == paths[1]
    assert Path(paths[0]).stat().st_size == FILE.size
    row = run("fetch", "n0", "--json").json[0]
    assert row == {"name": "RepVGG_N0.digits", "path": paths[0], "size": FILE.size, "integrity": "sha256"}


def test_fetch_copies_into_a_folder_and_overwrites_nothing(run, folder):
    result = run("fetch", "n0", "--to", "weights")
    assert (result.code, result.out) == (0, f"weights/{FILE.name}\n")
    copy = folder / "weights" / FILE.name
    assert run("fetch", "n0", "--to", "weights", "--json").json[0]["path"] == f"weights/{FILE.name}"
    copy.write_bytes(b"mine")
    refused = run("fetch", "n0", "--to", "weights")
    assert refused.code == 2 and "another file" in refused.err and copy.read_bytes() == b"mine"
    assert run("fetch", "n0", "--to", "weights", "--force").code == 0 and copy.stat().st_size == FILE.size


def test_files_of_one_name_are_not_fetched_into_one_folder(run, folder):
    result = run("fetch", "a0.timm", "b2.timm", "--to", "weights", "--allow-unverified")
    assert result.code == 2 and "have the same name, model.safetensors" in result.err
    assert not (folder.parent / "cache").exists()


def test_an_unknown_name_fails_before_anything_is_fetched(run, folder):
    assert run("fetch", "n0", "nonsense").code == 3
    assert not (folder.parent / "cache").exists()


@pytest.mark.parametrize(
    ("argv", "code", "type", "message"),
    [
        (["RepVGG_A0", "--offline"], 4, "OfflineError", "network may not be used"),
        (["RepVGG_A0.timm"], 4, "UnverifiedError", "--allow-unverified"),
        (["RepVGG_A0.timm", "--allow-unverified", "--offline"], 4, "OfflineError", "network may not be used"),
        (["RepVGG_B2g2"], 3, "NoWeightsError", "no pretrained weights"),
    ],
)
def test_a_failed_fetch_has_the_exit_code_of_its_error(run, argv, code, type, message):
    result = run("fetch", *argv)
    assert (result.code, result.out) == (code, "") and message in result.err and "Traceback" not in result.err
    assert run("fetch", *argv, "--json").json["error"]["type"] == type


def test_convert_keeps_what_a_file_says_about_its_weights_and_info_shows_it(run):
    assert run("convert", "RepVGG_N0", "n0.safetensors").code == 0
    network = repvgg_zoo.create("RepVGG_N0", checkpoint="n0.safetensors", num_classes=3, bn_eps=1e-3)
    repvgg_zoo.save_checkpoint("own.pkl", network, class_names=["cat", "dog", "\x1b[31mbird"])
    assert run("convert", "own.pkl", "deploy.safetensors", "--deploy", "--check").code == 0

    own, deploy = (run("info", name, "--json").json for name in ("own.pkl", "deploy.safetensors"))
    assert (own["variant"], own["source"], own["source_sha256"]) == ("RepVGG_N0", "RepVGG_N0.digits", SHA256)
    assert set(own["bn_eps"].values()) == {1e-3}
    assert deploy["class_names"] == ["cat", "dog", "\x1b[31mbird"]
    assert (deploy["bn_eps"], deploy["preprocessing"]) == ({}, own["preprocessing"])
    expected = repvgg_zoo.predict(repvgg_zoo.to_deploy(network), np.zeros((8, 8), np.uint8))
    actual = repvgg_zoo.predict("deploy.safetensors", np.zeros((8, 8), np.uint8))
    assert [p.probability for p in actual] == pytest.approx([p.probability for p in expected], abs=1e-5)
    text = " ".join(run("info", "own.pkl").out.split())
    for part in ("cat, dog, \\x1b[31mbird", "BN eps 0.001", "preprocessing the file", "trained from RepVGG_N0.digits"):
        assert part in text


def test_a_cache_that_cannot_be_created_has_exit_code_5(run, folder, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(folder / "file" / "cache"))
    error = run("fetch", "n0", "--json")
    assert error.code == 5
    assert error.json["error"]["path"] == str(folder / "file" / "cache")


def test_verify_finds_a_flipped_bit_by_cache_by_name_and_by_file(run, cached):
    for argv in ([], ["RepVGG_N0"], [str(cached)]):
        assert run("verify", *argv).code == 0
        assert run("verify", *argv, "--json").json[0]["status"] == "ok"
    damage(cached)
    for argv in (["RepVGG_N0"], [str(cached)], []):
        result = run("verify", *argv)
        assert result.code == 1 and result.out.startswith("damaged") and SHA256[:16] in result.out
    assert Path(run("fetch", "RepVGG_N0").out.strip()) == cached
    assert run("verify").code == 0, "the damaged file is downloaded again"


def test_verify_reads_any_file_as_a_checkpoint(run, cached):
    run("convert", str(cached), "own.pkl", "--deploy")
    (one,) = run("verify", "own.pkl", "--json").json
    assert one["status"] == "intact" and one["known_as"] == []
    assert one["checkpoint"]["form"] == "deploy" and one["checkpoint"]["format"] == "megengine"
    assert run("verify", "own.pkl").code == 0


@pytest.mark.parametrize("body", [b"", b"<!doctype html>", b"\x80\x04garbage", b"PK\x03\x04" + bytes(50)])
def test_verify_reports_a_file_that_is_not_a_checkpoint(run, folder, body):
    (folder / "weights.pth").write_bytes(body)
    result = run("verify", "weights.pth")
    assert result.code == 1 and result.out.startswith("damaged  weights.pth")


def test_verify_identifies_a_file_by_its_published_name(run, folder, cached):
    file = repvgg_zoo.model_info("RepVGG_B0").checkpoint("openmmlab").file
    (folder / file.name).write_bytes(cached.read_bytes())
    result = run("verify", file.name)
    assert result.code == 1 and f"the name of RepVGG_B0.openmmlab, whose SHA-256 is {file.sha256_prefix}" in result.out


def test_a_prefix_of_a_digest_is_reported_as_that_only(run, folder, cached, monkeypatch):
    text = SAMPLE.replace("RepVGG_X", "acme/RepVGG_X").replace("my_x1", "acme/my_x1")
    text = re.sub(r'sha256: "0123.*"', f'sha256_prefix: "{SHA256[:8]}"', text).replace("size: 5", f"size: {FILE.size}")
    (folder / "acme.yaml").write_text(text.replace("https://example.org/x1.safetensors", "x1.safetensors"))
    (folder / "x1.safetensors").write_bytes(cached.read_bytes())
    monkeypatch.setenv("REPVGG_ZOO_REGISTRY", str(folder / "acme.yaml"))
    assert run("fetch", "acme/RepVGG_X1.lab").code == 0
    result = run("verify", "acme/RepVGG_X1.lab")
    assert result.code == 0 and result.out.startswith("prefix only  ") and "may be forged" in result.out
    statuses = {row["target"]: row["status"] for row in run("verify", "--json").json}
    assert statuses == {cached.name: "ok", f"{SHA256[:8]}-x1.safetensors": "prefix only"}
    assert run("verify", str(cached), "--json").json[0]["status"] == "ok", "another checkpoint has the whole digest"


def test_verify_of_a_file_that_does_not_exist_is_missing(run):
    assert run("verify", "RepVGG_N0", "--json").json[0]["status"] == "missing"
    assert run("verify", "RepVGG_N0").code == 1
    assert (run("verify").code, run("verify").out) == (0, "the cache is empty\n")
    assert run("verify", "./nothing.pkl", "--json").json["error"]["path"] == "nothing.pkl"
    assert run("verify", "./nothing.pkl").code == 5


def test_a_name_of_a_plugin_is_not_taken_for_a_path(run, tmp_path, monkeypatch):
    install(tmp_path / "site", "acme")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for argv in (["verify", "acme/RepVGG_Q"], ["convert", "acme/RepVGG_Q", "out.pkl"]):
        error = run(*argv, "--json").json["error"]
        assert error["type"] == "NoWeightsError", error
    assert run("verify", "other/RepVGG_Q").code == 3, "no plugin has this namespace"


def test_convert_takes_a_part_of_a_file(run, cached):
    state = repvgg_zoo.load_checkpoint(cached).state_dict
    averaged = {f"teacher.{key}": array + 1 for key, array in state.items()}
    both = {**{f"student.{key}": array for key, array in state.items()}, **averaged}
    Path("trainer.pkl").write_bytes(pickle.dumps({"state_dict": both, "state_dict_ema": averaged}))
    assert "below the prefixes 'student.', 'teacher.'" in run("convert", "trainer.pkl", "out.pkl").err
    for argv, expected in ((["--prefix", "student."], 0), (["--prefix", "teacher."], 1), (["--state", "ema"], 1)):
        assert run("convert", "trainer.pkl", "out.pkl", "--force", *argv).code == 0
        result = repvgg_zoo.load_checkpoint("out.pkl").state_dict
        assert np.array_equal(result["linear.bias"], state["linear.bias"] + expected)


@pytest.mark.parametrize("layout", ["canonical", "official", "timm", "openmmlab", "basecls"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
@pytest.mark.parametrize("deploy", [False, True])
def test_convert_writes_every_layout_format_and_form(run, cached, layout, suffix, deploy):
    argv = ["convert", str(cached), f"out{suffix}", "--layout", layout, "--check", *(["--deploy"] if deploy else [])]
    report = run(*argv, "--json").json
    arrays = repvgg_zoo.load_checkpoint(cached).state_dict
    expected = fuse_state_dict(arrays) if deploy else arrays
    again = repvgg_zoo.load_checkpoint(f"out{suffix}", layout=layout)
    assert again.form == report["wrote"]["form"] == ("deploy" if deploy else "train")
    assert set(again.state_dict) == set(expected)
    assert all(np.array_equal(again.state_dict[key], expected[key]) for key in expected)
    assert report["wrote"]["size"] == Path(f"out{suffix}").stat().st_size
    assert (report["fused"] is not None) == deploy


def test_convert_fetches_a_name_and_reports_the_error_of_the_fusion(run):
    result = run("convert", "RepVGG_N0", "n0.safetensors", "--deploy", "--check")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines() if line[0] != " "] == [
        "read",
        "fused",
        "wrote",
        "check",
    ]
    fused = run("convert", "RepVGG_N0", "n0.safetensors", "--deploy", "--force", "--json").json["fused"]
    assert len(fused["blocks"]) == 9 and 0 < fused["worst_error"] < 1e-6 < fused["bound"]
    assert fused["worst_error"] == max(fused["blocks"].values()) == fused["blocks"][fused["worst_block"]]


def test_convert_refuses_to_overwrite_and_leaves_the_file_alone(run, folder, cached):
    (folder / "mine.pkl").write_text("mine")
    result = run("convert", str(cached), "mine.pkl")
    assert result.code == 2 and "--force" in result.err and (folder / "mine.pkl").read_text() == "mine"
    assert run("convert", str(cached), "mine.pkl", "--force").code == 0
    assert (folder / "mine.pkl").read_text("latin-1") != "mine"


def test_convert_refuses_weights_whose_fusion_is_inaccurate(run, folder, cached):
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
    ("argv", "code", "message"),
    [
        (["n0.pkl", "out.bin"], 2, "cannot tell the format"),
        (["n0.pkl", "nowhere/out.pkl"], 2, "not a folder"),
        (["n0.pkl", "out.pkl", "--from-layout", "keras"], 2, "'keras' is not a known layout"),
        (["n0.pkl", "out.pkl", "--from-layout", "timm"], 6, "layout"),
        (["junk.pkl", "out.pkl"], 6, "junk.pkl"),
        (["../missing.pkl", "out.pkl"], 5, "missing.pkl"),
        (["missing", "out.pkl"], 3, "unknown model 'missing'"),
    ],
)
def test_convert_reports_what_it_cannot_do_and_writes_nothing(run, folder, cached, argv, code, message):
    run("convert", str(cached), "n0.pkl")
    (folder / "junk.pkl").write_bytes(b"junk")
    result = run("convert", *argv)
    assert message in result.err and result.code == code
    assert not (folder / "out.pkl").exists() and not (folder / "out.bin").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_on_the_command_line_is_refused_and_not_waited_for(folder):
    os.mkfifo("fifo")
    for argv in (["verify", "./fifo"], ["convert", "./fifo", "out.pkl"], ["bundle", "show", "fifo"]):
        done = piped(*argv)
        assert done.code in (5, 6) and "fifo" in done.err, (argv, done)
