"""The parsed copy of the shipped registry: always what registry.yaml says, or not used."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from repvgg_zoo._resources import registry_path
from repvgg_zoo.registry.parsed_copy import COPY, encode_copy, read_copy
from repvgg_zoo.registry.parser import load_registry

WITHOUT_YAML = """
import sys, repvgg_zoo
assert "RepVGG_A0" in repvgg_zoo.list_models()
assert repvgg_zoo.model_info("repvgg-a0").checkpoints
assert "yaml" not in sys.modules
"""


def with_types(value):
    items = tuple(map(with_types, value)) if isinstance(value, tuple) else value
    return type(value), items


@pytest.fixture
def copied(tmp_path):
    """A registry file of its own, and its parsed copy."""
    path, copy = tmp_path / "registry.yaml", tmp_path / "copy.json"
    shutil.copyfile(registry_path(), path)
    copy.write_text(encode_copy(load_registry(path), path))
    return path, copy


def test_the_committed_copy_is_of_the_registry_as_it_is():
    path = registry_path()
    assert COPY.read_text() == encode_copy(load_registry(path), path), "run python -m tools.parsed_copy"


def test_the_copy_has_the_same_specs_as_the_yaml(copied):
    path, copy = copied
    registry, parsed = read_copy(path, copy), load_registry(path)
    assert with_types(registry.models) == with_types(parsed.models)
    assert registry.path == parsed.path


def test_files_beside_the_registry_are_looked_for_where_it_is(copied):
    path, copy = copied
    (model,) = (model for model in read_copy(path, copy).models if model.name == "RepVGG_N0")
    source = model.checkpoint("digits").file.sources[0]
    assert path.parent.resolve() in Path(source).parents


def test_names_are_listed_and_found_without_reading_yaml():
    subprocess.run([sys.executable, "-c", WITHOUT_YAML], check=True)


def test_a_registry_that_was_changed_is_read_anew(copied):
    path, copy = copied
    path.write_text(path.read_text() + "# a comment\n")
    assert read_copy(path, copy) is None


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: "", id="empty"),
        pytest.param(lambda text: text[: len(text) // 2], id="cut off"),
        pytest.param(lambda text: "[" * 100_000, id="nested too deeply"),
        pytest.param(lambda text: text.replace('"Cost"', '"Price"'), id="of a spec that does not exist"),
        pytest.param(lambda text: text.replace('"Cost":[', '"Cost":[1,', 1), id="of a spec with more fields"),
        pytest.param(lambda text: text.replace('"', '"0', 1), id="of another digest"),
        pytest.param(lambda text: '{"Cost":[1,2]}', id="of one spec"),
    ],
)
def test_a_copy_that_cannot_be_right_is_not_used(copied, change):
    path, copy = copied
    copy.write_text(change(copy.read_text()))
    assert read_copy(path, copy) is None


def test_a_copy_that_is_missing_is_not_used(copied):
    path, copy = copied
    copy.unlink()
    assert read_copy(path, copy) is None
