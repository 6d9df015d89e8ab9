"""registry check and draft: what authors of registry files work out by hand, and get wrong.

The kind of fault: a number that nobody counts again, a digest of another file, a mistake that shows only after the one
before it was corrected.
"""

from __future__ import annotations

import numpy as np
import pytest
import yaml

import repvgg_zoo
from repvgg_zoo._resources import registry_path
from repvgg_zoo.checkpoints.draft import draft_registry
from repvgg_zoo.costs import cost
from repvgg_zoo.registry.check import check_registry
from repvgg_zoo.registry.specs import SESpec

OTHERS = ("groups.safetensors", "se.safetensors", "plus.safetensors")
TINY = {"num_blocks": (1, 1, 2, 1), "width_multiplier": (0.125, 0.125, 0.0625, 0.0625), "num_classes": 5}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write a tiny network in some forms, formats and layouts, and three others."""
    folder = tmp_path_factory.mktemp("files")
    network = repvgg_zoo.create("RepVGG_A0", **TINY)
    repvgg_zoo.save_checkpoint(folder / "train.safetensors", network)
    repvgg_zoo.save_checkpoint(folder / "timm.pkl", network, layout="timm")
    repvgg_zoo.save_checkpoint(folder / "a b:c.safetensors", repvgg_zoo.to_deploy(network), layout="official")
    grouped = repvgg_zoo.create("RepVGG_A0", in_chans=1, groups=2, **TINY)
    repvgg_zoo.save_checkpoint(folder / "groups.safetensors", grouped)
    gated = repvgg_zoo.create("RepVGG_A0", se=SESpec("before_relu", 4), **TINY)
    repvgg_zoo.save_checkpoint(folder / "se.safetensors", gated)
    plus = repvgg_zoo.create("RepVGGplus_L2pse", se=SESpec("after_relu", 2), **TINY)
    repvgg_zoo.save_checkpoint(folder / "plus.safetensors", plus)
    return folder


NAMES = [
    "train.safetensors",
    "timm.pkl",
    "a b:c.safetensors",
    "groups.safetensors",
    "se.safetensors",
    "plus.safetensors",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_draft_passes_the_check_and_loads_the_file(files, folder, name):
    (folder / "draft.yaml").write_text(draft_registry(files / name, name="acme/RepVGG_T", tag="own"))
    report = check_registry(folder / "draft.yaml", cost=cost)
    assert report.problems == () and report.checkpoints == ("acme/RepVGG_T.own",)
    repvgg_zoo.register(folder / "draft.yaml")
    try:
        spec = repvgg_zoo.model_info("acme/RepVGG_T")
        written = repvgg_zoo.load_checkpoint(files / name)
        loaded = repvgg_zoo.create("acme/RepVGG_T.own", pretrained=True, deploy=written.form == "deploy")
    finally:
        repvgg_zoo.unregister("acme/RepVGG_T")
    assert (spec.architecture.num_blocks, spec.architecture.width_multiplier) == tuple(TINY.values())[:2]
    assert spec.checkpoints[0].layout == written.layout and spec.checkpoints[0].form == written.form
    arrays = loaded.state_dict()
    assert all(np.array_equal(arrays[key], array) for key, array in written.state_dict.items())


def test_a_draft_is_printed_to_be_redirected_and_has_the_variants_own_data(run, folder):
    run("convert", "n0", "own.pkl")
    (folder / "acme.yaml").write_text(run("registry", "draft", "own.pkl").out)
    result = run("registry", "check", "acme.yaml")
    assert (result.code, result.out) == (0, "acme.yaml: 1 variant, 1 checkpoint: ok\n")
    variant = yaml.safe_load((folder / "acme.yaml").read_text())["variants"]["mine/RepVGG_N0"]
    assert variant["params"] == {"train": 247018, "deploy": 220794} and variant["family"].startswith("RepVGG-N")
    assert variant["checkpoints"]["mine"]["file"]["sources"] == ["own.pkl"]
    assert yaml.safe_load(run("registry", "draft", "own.pkl", "--json").json["yaml"])["schema"] == 1


def test_the_shipped_registry_has_no_problems(run):
    result = run("registry", "check", str(registry_path()))
    assert result.code == 0 and ": 16 variants, " in result.out and result.out.endswith(": ok\n")


# A line of the draft, what to write instead, and the start of what is reported; all in one file.
MISTAKES = [
    ("params: {train: 247018, deploy: 220794}", "params: {train: 247018, deploy: 220795}", "params of acme/RepVGG_N0"),
    ("macs: {train: 1107200, deploy: 996608}", "macs: {train: 1, deploy: 2}", "macs of acme/RepVGG_N0 are stated as"),
    ("          size: ", "          size: 9", "acme/RepVGG_N0.mine: "),  # at the line of checkpoints
]
INVALID = [
    ("params: {train: 247018, deploy: 220794}", "params: {train: 247018, deploy: 220795}", "params of acme/RepVGG_N0"),
    ("schema: 1", "schema: 2", "schema 2 is not supported"),
    ("official_weights: true", "official_weights: yes", "got a boolean 'yes'"),
    ("license: unknown", "license: 3", "YAML reads '3' as the whole number"),
    ("form: train", "form: trained", "form is 'trained'"),
    ("  layout: canonical", "  layuot: canonical", "unknown field 'layuot'"),
    ("sha256: ", "sha256: x", "sha256 is 'x"),
]


COSTS = [
    ("image_size: 32}", "image_size: 0}", "image_size is 0"),
    ("params: {train", "params: {trian", "unknown field 'trian'"),
    ("macs: {train: 1107200,", "macs: {", "the field 'train' is missing"),
]


@pytest.fixture
def draft(run, folder):
    run("convert", "n0", "own.safetensors")
    text = run("registry", "draft", "own.safetensors", "--name", "acme/RepVGG_N0").out
    return text.replace("        form: train", "        official_weights: true\n        form: train")


@pytest.mark.parametrize("mistakes", [MISTAKES, INVALID, COSTS], ids=["numbers", "fields", "costs"])
def test_all_mistakes_are_reported_at_once_each_with_its_line(run, folder, draft, mistakes):
    text, expected = draft, []
    for before, after, _ in mistakes:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    for _, after, message in mistakes:
        line = text[: text.index(after)].count("\n") + 1
        expected.append((line, message))
    (folder / "acme.yaml").write_text(text)
    result = run("registry", "check", "acme.yaml")
    assert result.code == 1
    for line, message in expected:
        line = 8 if "RepVGG_N0.mine" in message else line
        assert f"\nacme.yaml:{line}: {message}" in f"\n{result.out}"
    missing = sum(after.lstrip().startswith(("layuot", "params: {trian")) for _, after, _ in mistakes)  # misspelled
    assert len(run("registry", "check", "acme.yaml", "--json").json["problems"]) == len(mistakes) + missing


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("acme/RepVGG_N0", "RepVGG_N0", "is one of RepVGG_N0 in the shipped registry"),
        ("family:", "aliases: [b1g2]\n    family:", "is one of RepVGG_B1g2 in the shipped registry"),
        ("sources: [own.safetensors]", "sources: [gone.safetensors]", "cannot be read: No such file"),
        ("architecture: {", "architecture: {groups: 3, ", "groups do not divide"),
        ("architecture: {", "architecture: {builder: resnet, ", "architecture.builder is 'resnet'"),
        ("architecture: {", "architecture: {builder: other/net, ", "the cost of acme/RepVGG_N0 cannot be counted"),
    ],
)
def test_what_only_a_check_finds(run, folder, draft, before, after, says):
    (folder / "acme.yaml").write_text(draft.replace(before, after))
    result = run("registry", "check", "acme.yaml")
    assert result.code == 1 and says in result.out


@pytest.mark.parametrize("text", ["", "a: [", "\0", "- 1", "schema: 1\n" * 300, "x: &a {b: *a}"])
def test_a_file_that_is_not_a_registry_has_a_problem_with_a_line(run, folder, text):
    (folder / "bad.yaml").write_text(text)
    result = run("registry", "check", "bad.yaml")
    assert result.code == 1 and result.out.startswith("bad.yaml:")


def test_a_file_with_thousands_of_mistakes_is_not_reported_completely(run, folder):
    lines = [f"  acme/X{index}: {{family: 5}}" for index in range(5000)]
    (folder / "bad.yaml").write_text("\n".join(["schema: 1", "variants:", *lines]))
    assert len(run("registry", "check", "bad.yaml", "--json").json["problems"]) == 100


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["check", "missing.yaml"], 5, "missing.yaml does not exist"),
        (["draft", "missing.pth"], 5, "missing.pth does not exist"),
        (["draft", "https://host.example/x.pth"], 2, "is a URL, which is not downloaded"),
        (["check", "."], 3, "it is a folder"),
        (["draft", "own.safetensors", "--name", "a b"], 2, "'a b' is not a valid name"),
        (["draft", "own.safetensors", "--tag", "v1.0"], 2, "'v1.0' is not a valid tag"),
        (["draft", "text.pth"], 6, "text.pth"),
        ([], 2, "ACTION"),
    ],
)
def test_errors_have_the_exit_codes_of_all_commands(run, folder, draft, argv, code, says):
    (folder / "text.pth").write_text("hello")
    result = run("registry", *argv)
    assert result.code == code and says in result.err and result.out == ""
