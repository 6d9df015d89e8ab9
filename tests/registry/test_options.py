"""The options of a plugin's builder: any names and plain values."""

from __future__ import annotations

import inspect
import json

import jsonschema
import pytest
import yaml

import repvgg_zoo
from repvgg_zoo.cli.describe import describe
from repvgg_zoo.errors import RegistryError
from repvgg_zoo.registry.parser import parse_registry, registry_from_mapping
from repvgg_zoo.registry.specs import Architecture
from repvgg_zoo.registry.validation import RESERVED_OPTIONS

from .installed import ROOT, registry


def with_options(text: str, builder: str = "acme/head") -> str:
    whole = registry("acme/RepVGG_Q")
    return whole.replace("architecture: {", f"architecture: {{builder: {builder}, options: {text}, ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: 1}", (("a", 1),)),
        ("{a: 1.5, b: 1e-3, c: -2e3}", (("a", 1.5), ("b", 0.001), ("c", -2000.0))),
        ("{a: true, b_2: false}", (("a", True), ("b_2", False))),
        ('{a: word, b: "1"}', (("a", "word"), ("b", "1"))),
        ("{a: [1, 2.5, x]}", (("a", (1, 2.5, "x")),)),
        ("{a: []}", (("a", ()),)),
        ("{}", ()),
    ],
)
def test_options_have_the_types_of_their_yaml_values(text, value):
    (model,) = parse_registry(with_options(text).encode()).models
    assert model.architecture.options == value
    assert [type(v) for _, v in model.architecture.options] == [type(v) for _, v in value]
    assert hash(model.architecture) == hash(model.architecture)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]", "got a list"),
        ("{a: }", "YAML reads '' as nothing"),
        ("{a: yes}", "got a boolean 'yes'"),
        ("{a: 0x10}", "got the whole number '0x10'"),
        ("{a: .inf}", "got the number '.inf'"),
        ("{a: {b: 1}}", "got a mapping"),
        ("{a: [[1]]}", "got a list"),
        ("{a: !x [1]}", "got a list"),
        ("{a: 2020-01-01}", "as a timestamp"),
        ("{A: 1}", "names of small letters"),
        ("{deploy: true}", "other than the arguments of create"),
        ("{a: 1, a: 2}", "duplicate key 'a'"),
    ],
)
def test_invalid_options_are_refused_with_their_line(text, message):
    with pytest.raises(RegistryError, match="registry:5: ") as caught:
        parse_registry(with_options(text).encode())
    assert message in str(caught.value)


def test_the_built_in_builders_have_no_options():
    with pytest.raises(RegistryError, match="the builder repvgg has no options"):
        parse_registry(with_options("{a: 1}", builder="repvgg").encode())


def test_no_option_has_the_name_of_an_argument_of_create():
    from repvgg_zoo.builder import create

    named = set(inspect.signature(create).parameters) - {"overrides"}
    assert named | set(Architecture._fields) <= set(RESERVED_OPTIONS)


def test_the_schema_knows_options():
    schema = json.loads((ROOT / "docs" / "registry.schema.json").read_text())
    jsonschema.validate(yaml.safe_load(with_options("{a: [1, x], b: true}")), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(with_options("{a: {b: 1}}")), schema)
    example = ROOT / "examples" / "plugin" / "acme_repvgg" / "registry.yaml"
    jsonschema.validate(yaml.safe_load(example.read_text()), schema)


def test_a_description_names_the_builder_and_its_options():
    (model,) = parse_registry(with_options("{hidden: 32, act: relu}").encode()).models
    assert "It is built by acme/head, with hidden 32, act relu." in describe(model)
    assert "built by" not in describe(repvgg_zoo.model_info("RepVGG_A0"))


class TestMappings:
    def test_an_object_may_occur_twice(self):
        cost = {"train": 2, "deploy": 1}
        mapping = yaml.safe_load(registry("acme/RepVGG_Q"))
        mapping["variants"]["acme/RepVGG_Q"].update(params=cost, macs=cost)
        assert registry_from_mapping(mapping).models[0].macs.train == 2

    def test_a_mapping_that_contains_itself_is_refused(self):
        mapping = yaml.safe_load(registry("acme/RepVGG_Q"))
        mapping["variants"]["acme/RepVGG_Q"]["notes"] = mapping
        with pytest.raises(RegistryError, match="not plain data"):
            registry_from_mapping(mapping)


@pytest.mark.parametrize("name", ["acme/", "/Q", "a/b/Q", "acme//Q", "-/Q", "acme/-Q"])
def test_an_invalid_name_with_a_namespace_is_refused(name):
    with pytest.raises(RegistryError, match="is not a valid variant name"):
        parse_registry(registry(name).encode())
