"""An argument is a model's name or the path of a file: which of the two, and what the error says if it is neither.

The kind of fault: a name with a namespace is taken for a path, as it has a slash; a path for a name, as it has none;
and the error tells of only one of the two.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import repvgg_zoo
from repvgg_zoo.cli import main
from repvgg_zoo.errors import ArgumentError, MissingFileError, RegistryError, UnknownModelError
from repvgg_zoo.registry.model_or_file import find_model_or_file

from .installed import registry


@pytest.fixture(autouse=True)
def acme(tmp_path, monkeypatch):
    """A model in a namespace, one whose tag ends like a file, a folder with the model's name, and a few files."""
    repvgg_zoo.register(yaml.safe_load(registry("acme/RepVGG_Q", "aliases: [acme/q.pth]\n")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path in ("weights.pth", "acme/weights", "home/mine.pkl", "RepVGG_B0"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    (tmp_path / "acme" / "RepVGG_Q").mkdir()
    yield
    repvgg_zoo.unregister("acme/RepVGG_Q")


@pytest.mark.parametrize(
    ("argument", "variant", "tag"),
    [
        ("RepVGG_A0", "RepVGG_A0", None),
        ("a0.timm", "RepVGG_A0", "timm"),
        ("acme/RepVGG_Q", "acme/RepVGG_Q", None),
        ("ACME/q", "acme/RepVGG_Q", None),
        ("timm/repvgg_a0.rvgg_in1k", "RepVGG_A0", "timm"),
        ("acme/q.pth", "acme/RepVGG_Q", None),
    ],
)
def test_a_name_is_a_name_with_and_without_a_namespace(argument, variant, tag):
    model, found_tag = find_model_or_file(argument)
    assert (model.name, found_tag) == (variant, tag)


@pytest.mark.parametrize(
    ("argument", "path"),
    [
        ("weights.pth", "weights.pth"),
        ("./weights.pth", "weights.pth"),
        (Path("weights.pth"), "weights.pth"),
        ("acme/weights", "acme/weights"),
        ("~/mine.pkl", "home/mine.pkl"),
        (Path("~/mine.pkl"), "home/mine.pkl"),
        ("RepVGG_B0", "RepVGG_B0"),
        ("./acme", "acme"),
    ],
)
def test_what_exists_or_is_written_as_a_path_is_a_path(tmp_path, argument, path):
    result = find_model_or_file(argument)
    assert isinstance(result, Path) and (tmp_path / result) == tmp_path / path


@pytest.mark.parametrize(
    ("argument", "error", "says"),
    [
        ("./RepVGG_A0", MissingFileError, ["RepVGG_A0 does not exist"]),
        ("~/RepVGG_A0", MissingFileError, ["home/RepVGG_A0 does not exist"]),
        (Path("RepVGG_A0"), MissingFileError, ["RepVGG_A0 does not exist"]),
        ("weight.pth", MissingFileError, ["weight.pth does not exist, and no model", "did you mean weights.pth"]),
        ("repvgg_a4.pth", MissingFileError, ["no model has this name", "did you mean RepVGG_A"]),
        ("runs/last.ckpt", MissingFileError, ["runs/last.ckpt does not exist", "the folder runs does not exist"]),
        ("RepVGG_A4", UnknownModelError, ["unknown model 'RepVGG_A4'", "did you mean RepVGG_A", "a file 'RepVGG_A4'"]),
        ("acme/RepVGG_R", UnknownModelError, ["did you mean acme/RepVGG_Q", "a file 'acme/RepVGG_R' does not exist"]),
        ("RepVGG_A0.nope", UnknownModelError, ["has no checkpoint 'nope'", "a file 'RepVGG_A0.nope'"]),
        ("x" * 5000, UnknownModelError, ["unknown model"]),
        ("a\0b", UnknownModelError, ["unknown model"]),
        ("", UnknownModelError, ["unknown model"]),
        ("https://me:secret@host.example/w.pth", ArgumentError, ["https://host.example/w.pth is a URL"]),
        ("hf://timm/repvgg_a0", ArgumentError, ["is a URL"]),
        (5, ArgumentError, ["the name or path is 5"]),
        (None, ArgumentError, ["the name or path is None"]),
        (b"RepVGG_A0", ArgumentError, ["the name or path is b'RepVGG_A0'"]),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_the_error_says_what_was_tried(argument, error, says):
    with pytest.raises(error) as caught:
        find_model_or_file(argument)
    assert type(caught.value) is error and caught.value.hint
    assert all(text in str(caught.value) for text in says), str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_broken_registry_file_stops_names_and_no_paths(tmp_path, monkeypatch):
    (tmp_path / "bad.yaml").write_text("schema: [")
    monkeypatch.setenv("REPVGG_ZOO_REGISTRY", "bad.yaml")
    assert find_model_or_file("acme/weights") == Path("acme/weights")
    with pytest.raises(MissingFileError):
        find_model_or_file("missing.pth")
    with pytest.raises(RegistryError, match=r"bad\.yaml:2: not valid YAML"):
        find_model_or_file("other/RepVGG_Q")


COMMANDS = [
    ["verify", "{}"],
    ["convert", "{}", "out.pkl"],
    ["compare", "{}"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("argument", "code", "says"),
    [
        ("missing.pth", 5, "missing.pth does not exist, and no model has this name"),
        ("acme/RepVGG_R", 3, "did you mean acme/RepVGG_Q"),
        ("./acme/RepVGG_R", 5, "RepVGG_R does not exist"),
    ],
)
def test_every_command_says_the_same(command, argument, code, says, capsys):
    assert main([word.format(argument) for word in command]) == code
    assert says in capsys.readouterr().err
