"""The folder hub/ is a bundle and a mirror as it stands, and holds what the registry says."""

from __future__ import annotations

import repvgg_zoo
from repvgg_zoo._resources import hub_folder
from repvgg_zoo._settings import Settings
from repvgg_zoo.hub import bundle, cache_filename, fetch_file
from repvgg_zoo.registry.api import find_default_checkpoint

DIGITS = find_default_checkpoint("RepVGG_N0.digits").file


def test_it_can_be_imported_as_a_bundle(tmp_path):
    paths = bundle.unpack(hub_folder(), settings=Settings(cache_dir=tmp_path))
    assert {name: path.name for name, path in paths.items()} == {"RepVGG_N0.digits": cache_filename(DIGITS)}
    assert fetch_file(DIGITS, offline=True, settings=Settings(cache_dir=tmp_path)) == tmp_path / cache_filename(DIGITS)


def test_it_serves_as_a_read_only_cache_in_place(tmp_path):
    settings = Settings(cache_dir=tmp_path / "unused", read_only_cache_dirs=(hub_folder(),))
    assert fetch_file(DIGITS, offline=True, settings=settings) == hub_folder() / cache_filename(DIGITS)
    assert sorted(path.name for path in (tmp_path / "unused").iterdir()) == ["CACHEDIR.TAG", "stamps"]


def test_every_checkpoint_of_this_repository_is_in_it():
    ours = [
        checkpoint
        for name in repvgg_zoo.list_models()
        for checkpoint in repvgg_zoo.model_info(name).checkpoints
        if checkpoint.publisher == "repvgg_zoo"
    ]
    assert [checkpoint.name for checkpoint in ours] == ["RepVGG_N0.digits"]
    stored = {path.name for path in hub_folder().glob("*.safetensors")}
    assert stored == {cache_filename(checkpoint.file) for checkpoint in ours}
