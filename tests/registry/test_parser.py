"""The parser returns frozen specs or raises one RegistryError with the line and what was expected."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from repvgg_zoo._resources import registry_path
from repvgg_zoo.errors import RegistryError
from repvgg_zoo.registry.parser import load_registry, parse_registry, registry_from_mapping
from repvgg_zoo.registry.specs import Registry
from tools.json_schema import json_schema

from .sample import SAMPLE


def line_of(text: str, fragment: str) -> int:
    return text[: text.index(fragment)].count("\n") + 1


def test_the_sample_becomes_frozen_specs_with_defaults_merged(tmp_path):
    path = tmp_path / "zoo.yaml"
    path.write_text(SAMPLE)
    registry = load_registry(path)
    model = registry.models[0]
    assert model.architecture.width_multiplier == (1.0, 1.0, 1.0, 2.5)
    assert model.architecture.in_chans == 3
    lab, other = model.checkpoints
    assert (lab.name, lab.publisher, lab.preprocessing.mean) == ("RepVGG_X1.lab", "A Lab", (0.5, 0.5, 0.5))
    assert (lab.file.integrity, other.file.integrity) == ("sha256", "sha256_prefix")
    assert model.default == "lab"
    assert registry.models[1].default is None
    with pytest.raises(AttributeError):
        model.name = "other"


def test_defaults_are_merged_key_by_key_and_placeholders_replaced():
    text = SAMPLE.replace(
        "    provenance: [the lab's page]\n",
        """    provenance: [the lab's page]
    aliases: ["{variant}.lab"]
    file: {sources: ["https://example.org/{stem}/{name}"]}
""",
    ).replace(', sources: ["https://example.org/x1.safetensors"], size: 5,', ", size: 5,")
    text = text.replace(
        "        aliases: [x1.lab_in1k]\n", "        preprocessing: {image_size: 100}\n        provenance: [a note]\n"
    )
    lab = parse_registry(text.replace('"files/x1.pth", ', "").encode()).models[0].checkpoint("lab")
    assert lab.file.sources == ("https://example.org/x1/x1.safetensors",)
    assert lab.aliases == ("RepVGG_X1.lab",)
    assert (lab.preprocessing.image_size, lab.preprocessing.resize) == (100, 256)
    assert lab.provenance == ("the lab's page", "a note")


@pytest.mark.parametrize("default", ["the lab's page", "7", "{a: b}", "!!seq text", "null"])
def test_a_default_that_is_no_list_is_an_error_though_a_checkpoint_has_its_own(default):
    text = SAMPLE.replace("provenance: [the lab's page]", f"provenance: {default}")
    text = text.replace("        aliases: [x1.lab_in1k]\n", "        provenance: [a note]\n")
    with pytest.raises(RegistryError) as caught:
        parse_registry(text.encode())
    assert caught.value.line == line_of(text, f"provenance: {default}") and "a list" in str(caught.value)


def test_a_relative_source_is_a_file_beside_the_registry(tmp_path):
    path = tmp_path / "zoo.yaml"
    path.write_text(SAMPLE)
    sources = load_registry(path).models[0].checkpoint("other").file.sources
    assert sources == (str(tmp_path / "files" / "x1.pth"), "gdrive:0123456789abc")


X2 = "family: RepVGG-X\n    architecture: {num_blocks: [1, 2, 4, 1], width_multiplier: [1, 1, 1, 2.5]}"
# (what is replaced, by what, a fragment on the line that the error must name, a part of the message)
MISTAKES = [
    ("    license: MIT\n", "    licens: MIT\n", "licens: MIT", "unknown field 'licens'"),
    ("    family: RepVGG-X\n    architecture", "    architecture", "architecture: {num", "'family' is missing"),
    ("        publisher: B\n", "", "file: {name: x1.pth", "'publisher' is missing"),
    ("groups: 2}", "groups: two}", "groups: two", "a whole number"),
    ("groups: 2}", "groups: 2.0}", "groups: 2.0", "a whole number"),
    ("groups: 2}", "groups: 0}", "groups: 0", "a positive number"),
    ("groups: 2}", "groups: 010}", "groups: 010", "a whole number"),
    ("train: 20,", "train: 1_000,", "train: 1_000", "a whole number"),
    ("train: 20,", "train: 12:30,", "train: 12:30", "a whole number"),
    ("train: 20,", "train: 1e3,", "train: 1e3", "a whole number"),
    ("train: 20,", f"train: {10**18},", f"train: {10**18}", "a whole number"),
    ("train: 20,", f"train: {'9' * 5000},", "train: 999", "a whole number"),
    ("train: 20,", "train: true,", "train: true", "a whole number"),
    ("top1: 71.5", "top1: .nan", "top1: .nan", "a number"),
    ("mean: [0.5, ", "mean: [1e999, ", "1e999", "a number"),
    ("top1: 71.5", 'top1: "71.5"', 'top1: "71.5"', "a number"),
    ("top1: 71.5", "top1: 715", "top1: 715", "percent"),
    ("publisher: A Lab", "publisher: no", "publisher: no", "a boolean"),
    ("publisher: A Lab", "publisher: on", "publisher: on", "a boolean"),
    ("publisher: A Lab", "publisher: 2021-09-09", "publisher: 2021-09-09", "a timestamp"),
    ("publisher: A Lab", "publisher: ~", "publisher: ~", "nothing"),
    ("publisher: A Lab", "publisher: ''", "publisher: ''", "empty"),
    ("publisher: A Lab", "publisher: !custom x", "publisher: !custom", "!custom"),
    ("publisher: A Lab", "publisher: !!python/name:os.system x", "!!python/name", "python/name"),
    ("official_weights: true", "official_weights: yes", "official_weights: yes", "true or false"),
    ('sha256_prefix: "89abcdef"', "sha256_prefix: 12345678", "sha256_prefix: 12345678", "in quotes"),
    ('sha256_prefix: "89abcdef"', 'sha256_prefix: "89abcde"', "sha256_prefix:", "8 to 63"),
    ('sha256_prefix: "89abcdef"', 'sha256_prefix: "89ABCDEF"', "sha256_prefix:", "lowercase hex"),
    ('"0123456789abcdef', '"0123456789abcdeg', "sha256:", "64 lowercase hex"),
    ("89abcdef0123456789abcdef0123456789abcdef", "89abcdef", "sha256:", "64 lowercase hex"),
    ("size: 5,", 'size: 5, sha256_prefix: "01234567",', "sha256_prefix", "both a full digest and a prefix"),
    ("size: 5,", "size: -5,", "size: -5", "a positive number"),
    ("num_blocks: [1, 2, 4, 1]", "num_blocks: [1, 2, 4]", "[1, 2, 4],", "4 items"),
    ("num_blocks: [1, 2, 4, 1]", "num_blocks: 8", "num_blocks: 8", "a list"),
    ("params: {train: 20, deploy: 10}", "params: 20", "params: 20", "a mapping"),
    ("format: torch\n", "format: onnx\n", "format: onnx", "one of safetensors"),
    ("form: deploy\n", "form: deployed\n", "form: deployed", "one of train, deploy"),
    ("order: BGR,\n", "order: L,\n", "mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}\n        p", "1 values"),
    ("resize: 224,", "resize: 200,", "resize: 200", "at least 224"),
    ('"https://example.org/x1', '"http://user:secret@example.org/x1', "example.org", "without credentials"),
    ('"https://example.org/x1', '"ftp://example.org/x1', "example.org", "URLs"),
    ('"files/x1.pth"', '"../x1.pth"', "../x1.pth", "below the registry's folder"),
    ('"files/x1.pth"', '"/etc/passwd"', "/etc/passwd", "below the registry's folder"),
    ("name: x1.pth", "name: a/x1.pth", "a/x1.pth", "without a folder"),
    ("name: x1.pth", "name: ..", "name: ..", "without a folder"),
    ("    paper: {", "    default: nobody\n    paper: {", "default: nobody", "no checkpoint has the tag"),
    ("    no_weights: nobody published any\n", "", X2, "says why"),
    ("      other:\n", "      lab:\n", "lab:\n        file: {name: x1.pth", "duplicate key 'lab'"),
    ("  RepVGG_X2:", "  RepVGG_X1:", "RepVGG_X1:\n    " + X2, "duplicate key"),
    ("  RepVGG_X2:", "  repvgg-x1:", "repvgg-x1:", "belongs to RepVGG_X1"),
    ("aliases: [my_x1]", "aliases: [x2]", "RepVGG_X2:", "the name 'x2'"),
    ("aliases: [x1.lab_in1k]", "aliases: [repvgg_x2]", "RepVGG_X2:", "the name 'repvggx2'"),
    ("  RepVGG_X2:", "  Rep VGG:", "Rep VGG:", "variant name"),
    ("    aliases: [my_x1]", "    aliases: &a [my_x1]", "&a", "anchors"),
    ("    aliases: [my_x1]", "    aliases: *a", "*a", "anchors"),
    ("    aliases: [my_x1]", "    <<: {aliases: [my_x1]}", "<<:", "merge keys"),
    ("    aliases: [my_x1]", "\taliases: [my_x1]", "\taliases", "not valid YAML"),
    ("    aliases: [my_x1]", "    aliases: [my_x1", "checkpoints:", "not valid YAML"),
    ("    aliases: [my_x1]", "    aliases: [my_\x00x1]", "my_\x00x1", "not valid YAML"),
    ("schema: 1\n", "schema: 2\n", "schema: 2", "schema 2 is not supported"),
    ("schema: 1\n", "", "publishers", "'schema' is missing"),
    ("schema: 1\n", "schema: 1\nmodels: {}\n", "models", "unknown field 'models'"),
    ("    no_weights: nobody", "    no_weights: x\n---\nschema: nobody", "---", "second document"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "fragment", "message"), MISTAKES, ids=[repr(m[1][:40]) for m in MISTAKES])
def test_a_mistake_is_one_error_with_file_line_and_what_was_expected(tmp_path, old, new, fragment, message):
    assert SAMPLE.count(old) >= 1
    text = SAMPLE.replace(old, new, 1)
    path = tmp_path / "zoo.yaml"
    path.write_bytes(text.encode())
    with pytest.raises(RegistryError) as caught:
        load_registry(path)
    assert message in str(caught.value)
    assert caught.value.path == str(path)
    assert caught.value.expected is not None
    assert caught.value.line == line_of(text, fragment)


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (b"\xef\xbb\xbfschema: 1\n", 1, "byte order mark"),
        (b"schema: 1\n# caf\xe9\n", 2, "not UTF-8"),
        ("schema: 1".encode("utf-16"), 1, "not UTF-8"),
        (b"", 1, "empty"),
        (b"# nothing\n", 1, "empty"),
        (b"- 1\n", 1, "a mapping"),
        (b"[" * 100_000, 1, "nest"),
        (b"- " * 100_000, 1, "nest"),
        (b"? " * 100_000, 1, "nest"),
        (b"{a: " * 100_000, 1, "nest"),
        (b"#" * (5 << 20), 1, "at most 4 MiB"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_files_that_are_not_a_registry_are_refused_early(data, line, message):
    with pytest.raises(RegistryError, match=message) as caught:
        parse_registry(data, path=Path("zoo.yaml"))
    assert caught.value.line == line


def test_a_bomb_of_aliases_is_refused_at_its_first_anchor():
    bomb = "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(50))
    with pytest.raises(RegistryError, match="anchors") as caught:
        parse_registry(bomb.encode())
    assert caught.value.line == 1


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir()], ids=["missing", "a folder"])
def test_a_path_that_cannot_be_read_is_a_registry_error(tmp_path, make):
    make(tmp_path / "zoo.yaml")
    with pytest.raises(RegistryError, match="cannot read"):
        load_registry(tmp_path / "zoo.yaml")


def test_a_mapping_is_read_as_its_yaml_form_is():
    mapping = yaml.safe_load(SAMPLE.replace('"files/x1.pth", ', ""))
    from_yaml = parse_registry(SAMPLE.replace('"files/x1.pth", ', "").encode())
    assert registry_from_mapping(mapping).models == from_yaml.models
    with pytest.raises(RegistryError, match="plain data"):
        registry_from_mapping({"schema": object()})


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_gives_a_registry_or_a_registry_error(data):
    lines = SAMPLE.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        action = data.draw(st.sampled_from(["drop", "twice", "cut", "insert"]))
        if action == "drop":
            lines[at] = "\n"
        elif action == "twice":
            lines[at] *= 2
        elif action == "cut":
            lines[at] = lines[at][: data.draw(st.integers(0, len(lines[at])))] + "\n"
        else:
            where = data.draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:where] + data.draw(st.text(max_size=3)) + lines[at][where:]
    text = "".join(lines).encode("utf-8", "surrogatepass")
    try:
        outcome = parse_registry(text, path=Path("z.yaml"))
    except RegistryError as error:
        outcome = error.line
    assert isinstance(outcome, (Registry, int))


class TestSchema:
    def test_the_committed_schema_is_the_generated_one(self):
        committed = Path(__file__).parents[2] / "docs" / "registry.schema.json"
        assert json.loads(committed.read_text()) == json_schema()

    def test_it_accepts_the_shipped_registry_and_the_sample(self):
        for text in (registry_path().read_text(encoding="utf-8"), SAMPLE):
            jsonschema.validate(yaml.safe_load(text), json_schema())

    @pytest.mark.parametrize(
        ("old", "new"),
        [("license: MIT", "licens: MIT"), ("groups: 2", "groups: two"), ("[1, 2, 4, 1]", "[1, 2, 4]")],
    )
    def test_it_refuses_what_the_parser_refuses_by_type(self, old, new):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(SAMPLE.replace(old, new, 1)), json_schema())
