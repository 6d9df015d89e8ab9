"""register and unregister, as they are called in a notebook: again and again, with a source that was edited.

The kind of fault: what was registered before stands in the way of its own new version, or cannot be removed without
what it was made of.
"""

from __future__ import annotations

import pytest
import yaml

import repvgg_zoo
from repvgg_zoo._resources import registry_path
from repvgg_zoo.errors import ArgumentError, RegistryError, UnknownModelError
from repvgg_zoo.registry.api import find_default_checkpoint
from repvgg_zoo.registry.registered import base_registries

from .installed import registry
from .sample import SAMPLE

Q = registry("acme/RepVGG_Q")
OWN_A0 = registry("RepVGG_A0")


@pytest.fixture(autouse=True)
def clean():
    yield
    for item in base_registries()[1:]:
        for model in item.models:
            repvgg_zoo.unregister(model.name)


def mapping(text, family="RepVGG-Q"):
    return yaml.safe_load(text.replace("RepVGG-Q", family))


def family(name):
    return repvgg_zoo.model_info(name).family


def test_a_registered_file_is_found_by_every_function(tmp_path):
    path = tmp_path / "zoo.yaml"
    path.write_text(SAMPLE)
    repvgg_zoo.register(path)
    repvgg_zoo.register(str(path))
    assert repvgg_zoo.list_models("X*") == ["RepVGG_X1", "RepVGG_X2"]
    assert find_default_checkpoint("x1.other").file.sources[0] == str(tmp_path / "files" / "x1.pth")


def test_a_path_may_start_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "zoo.yaml").write_text(Q)
    repvgg_zoo.register("~/zoo.yaml")
    assert family("acme/q") == "RepVGG-Q"
    repvgg_zoo.unregister("~/zoo.yaml")
    assert repvgg_zoo.list_models("acme/*") == []


def test_an_edited_file_replaces_all_of_its_earlier_content(tmp_path):
    path = tmp_path / "zoo.yaml"
    path.write_text(SAMPLE)
    repvgg_zoo.register(path)
    path.write_text(SAMPLE.replace("RepVGG-X", "edited").replace("RepVGG_X2", "RepVGG_X3"))
    repvgg_zoo.register(path)
    assert repvgg_zoo.list_models("X*") == ["RepVGG_X1", "RepVGG_X3"]
    assert family("RepVGG_X1") == "edited"


def test_an_edited_mapping_replaces_the_variants_of_the_same_names():
    repvgg_zoo.register(mapping(Q))
    repvgg_zoo.register(mapping(registry("acme/RepVGG_R")))
    repvgg_zoo.register(mapping(Q, "edited"))
    assert repvgg_zoo.list_models("acme/*") == ["acme/RepVGG_Q", "acme/RepVGG_R"]
    assert family("acme/q") == "edited"


def test_a_file_that_is_no_longer_valid_changes_nothing(tmp_path):
    path = tmp_path / "zoo.yaml"
    path.write_text(Q)
    repvgg_zoo.register(path)
    path.write_text("schema: [")
    with pytest.raises(RegistryError, match=r"zoo\.yaml:2: not valid YAML"):
        repvgg_zoo.register(path)
    assert family("acme/q") == "RepVGG-Q"


@pytest.mark.parametrize("text", [OWN_A0, registry("acme/Q", "aliases: [RepVGG_A0]\n")], ids=["a name", "an alias"])
def test_a_shipped_variant_is_not_replaced_unless_asked_for(text):
    with pytest.raises(RegistryError, match="claims the name 'repvgga0'") as caught:
        repvgg_zoo.register(mapping(text))
    assert "exist_ok=True" in caught.value.hint
    assert family("RepVGG_A0") == "RepVGG-A" and repvgg_zoo.list_models("acme/*") == []


def test_a_variant_of_another_file_is_not_replaced_unless_asked_for(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(Q)
    second.write_text(Q.replace("RepVGG-Q", "second"))
    repvgg_zoo.register(first)
    with pytest.raises(RegistryError, match=r"claims the name .acme/repvggq. .* in .*first.yaml"):
        repvgg_zoo.register(second)
    repvgg_zoo.register(second, exist_ok=True)
    assert family("acme/q") == "second" and repvgg_zoo.list_models("acme/*") == ["acme/RepVGG_Q"]
    repvgg_zoo.unregister(second)
    assert family("acme/q") == "RepVGG-Q"


def test_a_shipped_variant_is_replaced_if_asked_for_and_found_again_afterwards():
    before = repvgg_zoo.list_models()
    repvgg_zoo.register(mapping(OWN_A0), exist_ok=True)
    assert family("a0") == "RepVGG-Q" and repvgg_zoo.list_models() == before
    repvgg_zoo.register(mapping(OWN_A0, "edited"), exist_ok=True)
    assert family("a0") == "edited"
    repvgg_zoo.unregister("RepVGG_A0")
    assert family("a0") == "RepVGG-A" and repvgg_zoo.list_models() == before


def test_a_digest_that_is_known_does_not_get_lost_with_the_variant_that_had_it():
    file = repvgg_zoo.model_info("RepVGG_A0").checkpoint("official").file
    entry = yaml.safe_load(SAMPLE)["variants"]["RepVGG_X1"]["checkpoints"]["other"]
    entry["file"] = {"name": "x.pth", "sources": list(file.sources)}
    variants = mapping(OWN_A0)["variants"]
    variants["RepVGG_A0"]["checkpoints"] = {"mine": entry}
    del variants["RepVGG_A0"]["no_weights"]
    with pytest.raises(RegistryError, match="its sha256 is missing"):
        repvgg_zoo.register({"schema": 1, "variants": variants}, exist_ok=True)


@pytest.mark.parametrize("spelling", ["acme/RepVGG_Q", "ACME/repvgg-q", "acme/q"])
def test_a_variant_is_removed_by_any_spelling_of_its_name_and_others_stay(tmp_path, spelling):
    path = tmp_path / "zoo.yaml"
    path.write_text(Q + registry("acme/RepVGG_R").partition("variants:\n")[2])
    repvgg_zoo.register(path)
    repvgg_zoo.unregister(spelling)
    assert repvgg_zoo.list_models("acme/*") == ["acme/RepVGG_R"]
    repvgg_zoo.register(path)
    assert repvgg_zoo.list_models("acme/*") == ["acme/RepVGG_Q", "acme/RepVGG_R"]


def test_a_file_is_removed_by_its_path_even_if_it_is_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "zoo.yaml"
    path.write_text(SAMPLE)
    repvgg_zoo.register("zoo.yaml")
    path.unlink()
    repvgg_zoo.unregister(path)
    assert repvgg_zoo.list_models("X*") == []
    with pytest.raises(UnknownModelError):
        repvgg_zoo.model_info("RepVGG_X1")


def test_a_mapping_is_removed_by_an_equal_one_and_others_stay():
    repvgg_zoo.register(mapping(Q))
    repvgg_zoo.register(mapping(registry("other/RepVGG_Q")))
    repvgg_zoo.unregister(mapping(registry("other/RepVGG_Q")))
    assert repvgg_zoo.list_models("*/*") == ["acme/RepVGG_Q"]


@pytest.mark.parametrize(
    "source",
    [registry_path(), "missing.yaml", mapping(registry("acme/Z")), "RepVGG_A0", "acme/Z"],
    ids=["shipped", "missing", "mapping", "a shipped name", "an unknown name"],
)
def test_what_was_not_added_is_an_argument_error(source):
    if source == registry_path():
        repvgg_zoo.register(source)  # which adds nothing, as all of it is known
    with pytest.raises(ArgumentError, match="is not registered"):
        repvgg_zoo.unregister(source)
