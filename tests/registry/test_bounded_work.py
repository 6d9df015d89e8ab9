"""A registry of any content takes time and memory in proportion to its size, and a broken one breaks no listing.

The kind: numbers that take quadratic time or that Python refuses (thousands of digits), values that are short to write
and large to build or to use (blocks, channels, pixels), and lists that a publisher's defaults repeat in checkpoints.
"""

from __future__ import annotations

import os
import time
import tracemalloc

import pytest

import repvgg_zoo
from repvgg_zoo._resources import registry_path
from repvgg_zoo.errors import ArgumentError, RegistryError
from repvgg_zoo.registry import parser
from repvgg_zoo.registry.parser import load_registry, parse_registry, registry_from_mapping
from repvgg_zoo.registry.yaml_document import MAX_NODES, MAX_TEXT_CHARS

from .sample import SAMPLE

PLAIN = SAMPLE.replace('"files/x1.pth", ', "")
ARCHITECTURE = "architecture: {num_blocks: [1, 2, 4, 1], width_multiplier: [1, 1, 1, 2.5]}"
DIGITS = "1" * 5000


def with_architecture(fields):
    return PLAIN.replace(ARCHITECTURE, f"architecture: {{{fields}}}")


def publisher_with_lists(items, checkpoints):
    """A registry in which one publisher's list is part of each of many checkpoints."""
    lists = ", ".join(f"l{number}" for number in range(items))
    file = '{name: x.bin, sources: ["https://example.org/x"], sha256_prefix: "89abcdef"}'
    variant = "{family: f, architecture: {num_blocks: [1, 1, 1, 1], width_multiplier: [1, 1, 1, 1]}"
    variant += (
        f", params: {{train: 1, deploy: 1}}, macs: {{train: 1, deploy: 1}}, checkpoints: {{lab: {{file: {file}}}}}}}"
    )
    head, _, _ = SAMPLE.partition("variants:")
    head = head.replace("    provenance: [the lab's page]\n", f"    provenance: [p]\n    labels: [{lists}]\n")
    return head + "variants:\n" + "".join(f"  A{number}: {variant}\n" for number in range(checkpoints))


# (what it is, the registry, a part of the message)
COSTLY = [
    (
        "100 million blocks",
        with_architecture("num_blocks: [1, 100000000, 1, 1], width_multiplier: [1, 1, 1, 1]"),
        "num_blocks",
    ),
    (
        "a width of 1e9",
        with_architecture("num_blocks: [1, 1, 1, 1], width_multiplier: [1, 1, 1, 1e9]"),
        "width_multiplier",
    ),
    ("a width of 1e999", with_architecture("num_blocks: [1, 1, 1, 1], width_multiplier: [1, 1, 1, 1e999]"), "a number"),
    ("an infinite width", with_architecture("num_blocks: [1, 1, 1, 1], width_multiplier: [1, 1, 1, .inf]"), "a number"),
    (
        "a width that is not a number",
        with_architecture("num_blocks: [1, 1, 1, 1], width_multiplier: [1, 1, 1, .nan]"),
        "a number",
    ),
    (
        "all stages at the limits",
        with_architecture("num_blocks: [999, 999, 999, 999], width_multiplier: [64, 64, 64, 64]"),
        "too large",
    ),
    (
        "10^17 groups",
        with_architecture("num_blocks: [1, 1, 1, 1], width_multiplier: [1, 1, 1, 1], groups: 100000000000000000"),
        "groups",
    ),
    (
        "10^17 input channels",
        with_architecture("num_blocks: [1, 1, 1, 1], width_multiplier: [1, 1, 1, 1], in_chans: 100000000000000000"),
        "in_chans",
    ),
    (
        "10^17 classes",
        with_architecture("num_blocks: [1, 1, 1, 1], width_multiplier: [1, 1, 1, 1], num_classes: 100000000000000000"),
        "num_classes",
    ),
    ("images resized to 100000 pixels", PLAIN.replace("resize: 256", "resize: 100000"), "resize"),
    ("a size of 5000 digits", PLAIN.replace("size: 5,", f"size: {DIGITS},"), "a whole number"),
    ("a number in sixties", PLAIN.replace("size: 5,", f"size: 1{':1' * 1000},"), "a whole number"),
    ("a number of 5000 hexadecimal digits", PLAIN.replace("size: 5,", f"size: 0x{'f' * 5000},"), "a whole number"),
    (
        "a name with a number of 5000 digits",
        PLAIN.replace("  RepVGG_X2:", f"  ? RepVGG_X{DIGITS}\n  :"),
        "not a valid variant name",
    ),
    ("a tag of 5000 digits", PLAIN.replace("      other:", f"      ? x{DIGITS}\n      :"), "not a valid tag"),
    ("a merge of mappings", PLAIN.replace("macs: {train: 400,", "macs: {<<: {deploy: 1}, train: 400,"), "merge keys"),
    ("a text of 1 MB", PLAIN.replace("nobody published any", "x" * 1_000_000), "too long"),
    ("a tag of YAML of 1 MB", PLAIN.replace("nobody published any", f"!{'x' * 1_000_000} y"), "too long"),
    ("a million values", PLAIN + f"more: [{'1,' * 1_000_000}]\n", "too many values"),
    (
        "a thousand sources",
        PLAIN.replace('sources: ["gdrive:0123456789abc"]', f"sources: [{', '.join(['x'] * 1000)}]"),
        "sources",
    ),
    ("labels of a publisher in a thousand checkpoints", publisher_with_lists(1000, 1000), "repeated too often"),
]


@pytest.mark.parametrize(("text", "message"), [row[1:] for row in COSTLY], ids=[row[0] for row in COSTLY])
def test_a_costly_registry_is_refused_within_bounds(text, message):
    tracemalloc.start()
    try:
        with pytest.raises(RegistryError) as caught:
            parse_registry(text.encode())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert caught.value.line
    assert len(str(caught.value)) < 1000
    assert peak < 64 * len(text) + (40 << 20)


def test_the_shipped_registry_uses_a_small_part_of_what_is_allowed(monkeypatch):
    data = registry_path().read_bytes()
    monkeypatch.setattr(parser, "MAX_WORK", parser.MAX_WORK // 20)
    parse_registry(data, path=registry_path())
    assert data.count(b"\n") * 20 < MAX_NODES
    assert max(map(len, data.splitlines())) * 8 < MAX_TEXT_CHARS


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["FIFO", "device"])
def test_a_registry_that_is_not_a_regular_file_is_refused_at_once(tmp_path, make):
    make(tmp_path / "zoo.yaml")
    with pytest.raises(RegistryError, match="not a regular file"):
        load_registry(tmp_path / "zoo.yaml")


def test_numbers_of_any_length_in_a_mapping_are_a_registry_error():
    with pytest.raises(RegistryError):
        registry_from_mapping({"schema": 1, "variants": {"acme/X": {"params": {"train": 10**5000}}}})


@pytest.mark.parametrize("text", [row[1] for row in COSTLY], ids=[row[0] for row in COSTLY])
def test_no_registry_breaks_the_listing_of_others(tmp_path, monkeypatch, text):
    (tmp_path / "bad.yaml").write_text(text)
    monkeypatch.setenv("REPVGG_ZOO_REGISTRY", str(tmp_path / "bad.yaml"))
    assert "RepVGG_A0" in repvgg_zoo.list_models()
    assert repvgg_zoo.model_info("RepVGG_A0").name == "RepVGG_A0"
    with pytest.raises(RegistryError, match=r"bad\.yaml"):
        repvgg_zoo.model_info("nonsense")


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_blocks": (1, 10**8, 1, 1)},
        {"width_multiplier": (300, 300, 300, 300)},
        {"num_blocks": (999,) * 4, "width_multiplier": (64,) * 4},
    ],
    ids=str,
)
def test_a_network_that_no_machine_holds_is_not_built(overrides):
    started = time.perf_counter()
    with pytest.raises(ArgumentError, match="larger than any real one"):
        repvgg_zoo.create("RepVGG_N0", **overrides)
    assert time.perf_counter() - started < 30  # building it would take hours
