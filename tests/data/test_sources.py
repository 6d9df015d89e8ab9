"""Images are found wherever they are, each with the label that the data gives it and a key of its own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest

from repvgg_zoo import open_images
from repvgg_zoo.errors import ArgumentError, MissingFileError

from .conftest import digit_members, png, write_folder, write_tar

PNG = png(np.zeros((8, 8), np.uint8))


def write(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    return root


def labels_of(source: Any) -> Dict[str, Any]:
    samples = list(source)
    assert len({sample.key for sample in samples}) == len(samples)
    return {sample.key: sample.label for sample in samples}


def test_the_class_of_an_image_is_the_first_folder_of_its_path(tmp_path):
    source = open_images(write(tmp_path, "cat/1.png", "cat/sub/2.JPG", "dog/1.webp", "dog/notes.txt", ".git/x.png"))
    assert labels_of(source) == {"cat/1.png": "cat", "cat/sub/2.JPG": "cat", "dog/1.webp": "dog"}
    assert (source.class_names, source.count) == (("cat", "dog"), 3)


def test_folders_without_images_are_named_and_shift_no_class(tmp_path):
    for name in ("a_empty", "z_empty"):
        (tmp_path / name).mkdir()
    source = open_images(write(tmp_path, "cat/1.png", "dog/1.png"))
    assert (source.class_names, source.empty_classes) == (("cat", "dog"), ("a_empty", "z_empty"))


def test_links_to_folders_and_files_are_followed_and_circles_end(tmp_path):
    write(tmp_path / "store", "x/1.png", "x/2.png")
    write(tmp_path / "data", "cat/1.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "store" / "x")
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "cat" / "2.png").symlink_to(tmp_path / "store" / "x" / "1.png")
    assert labels_of(open_images(tmp_path / "data")) == {
        "cat/1.png": "cat",
        "cat/2.png": "cat",
        "dog/1.png": "dog",
        "dog/2.png": "dog",
    }


@pytest.mark.parametrize("names", [("train", "val"), ("Test",), ("train", "validation", "test")])
def test_the_splits_of_a_data_set_are_not_its_classes(tmp_path, names):
    write(tmp_path, *(f"{name}/cat/1.png" for name in names))
    with pytest.raises(ArgumentError, match="splits and not classes") as caught:
        open_images(tmp_path)
    assert str(tmp_path / sorted(names)[-1]) in str(caught.value.hint)


def test_images_beside_class_folders_have_no_label(tmp_path):
    assert labels_of(open_images(write(tmp_path, "cat/1.png", "2.png"))) == {"cat/1.png": "cat", "2.png": None}


FILES = ("a.png", "b.png", "sub/c.JPEG", "ILSVRC2012_val_00000001.JPEG", "with space.png", "with,comma.png")
EXPECTED = {"a.png": "cat", "b.png": "dog"}
DIALECTS = {
    "a header": ("filename,label\na.png,cat\nb.png,dog\n", EXPECTED),
    "no header": ("a.png,cat\nb.png,dog\n", EXPECTED),
    "one line and no header": ("a.png,cat\n", {"a.png": "cat"}),
    "an unknown header of two columns": ("x,y z\na.png,cat\nb.png,dog\n", EXPECTED),
    "the label first": ("cat,a.png\ndog,b.png\n", EXPECTED),
    "a header with the label first": ("Class Name;Image ID\ncat;a.png\ndog;b.png\n", EXPECTED),
    "tabs": ("file\tlabel\na.png\tcat\nb.png\tdog\n", EXPECTED),
    "semicolons": ("a.png;cat\nb.png;dog\n", EXPECTED),
    "spaces, as Caffe's lists": (
        "a.png 0\nb.png 1\nwith space.png 2\n",
        {"a.png": "0", "b.png": "1", "with space.png": "2"},
    ),
    "a byte order mark and Windows line ends": ("\ufefffilename,label\r\na.png,cat\r\nb.png,dog\r\n", EXPECTED),
    "quotes": ('filename,label\n"with,comma.png","cat, big"\n', {"with,comma.png": "cat, big"}),
    "empty lines": ("\na.png,cat\n\n\nb.png,dog\n\n", EXPECTED),
    "names without a suffix": ("id,label\na,cat\nb,dog\n", EXPECTED),
    "names without folders": ("image,label\nc.JPEG,cat\n", {"sub/c.JPEG": "cat"}),
    "names without either": ("image,label\nc,cat\n", {"sub/c.JPEG": "cat"}),
    "paths from the folder": ("path,label\n./a.png,cat\nsub\\c.JPEG,dog\n", {"a.png": "cat", "sub/c.JPEG": "dog"}),
    "a name before an index": ("file,label,class_name\na.png,0,cat\nb.png,1,dog\n", EXPECTED),
    "more columns": ("uid,path,width,label\n7,a.png,8,cat\n8,b.png,8,dog\n", EXPECTED),
    "Kaggle's ImageNet": (
        "ImageId,PredictionString\nILSVRC2012_val_00000001,n01751748 1 2 3 4 n01751748 5 6 7 8\n",
        {"ILSVRC2012_val_00000001.JPEG": "n01751748"},
    ),
    "the same image twice with one label": ("a.png,cat\na.png,cat\nb.png,dog\n", EXPECTED),
}


@pytest.mark.parametrize(("text", "expected"), DIALECTS.values(), ids=DIALECTS)
def test_labels_of_a_flat_folder_come_from_a_csv_file_in_any_form(tmp_path, text, expected):
    write(tmp_path / "images", *FILES)
    (tmp_path / "labels.csv").write_bytes(text.encode("utf-8"))
    source = open_images(tmp_path / "images", labels=tmp_path / "labels.csv")
    assert labels_of(source) == expected
    assert source.class_names == tuple(sorted(set(expected.values())))


WRONG_LABELS = {
    "an image that does not exist": ("a.png,cat\nx.png,dog\n", "line 2 of .*lists 1 of 2 images"),
    "two labels of one image": ("a.png,cat\nb.png,dog\na.png,dog\n", "line 3 of .*the labels cat and dog for a.png"),
    "a name that may be two images": ("same.png,cat\n", "which may be one/same.png, two/same.png"),
    "no label": ("a.png,cat\nb.png,\n", "line 2 of .*has no label for b.png"),
    "a line that is too short": ("id,path,label\n1,a.png,cat\n2,b.png\n", "line 3 of .*has 2 columns"),
    "indices without names, as ImageNet's ground truth": ("490\n361\n171\n", "has 1 column"),
    "columns without names that are known": ("p,q,r\na.png,1,cat\n", "has 3 columns"),
    "a header and nothing else": ("filename,label\n", "no lines"),
    "an empty file": ("\n\n", "is empty"),
    "a quote that is not closed": ('a.png,"cat\nb.png,dog\n', "not valid CSV"),
    "another encoding": (b"a.png,cat\nb.png,\xff\n", "not UTF-8"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_a_csv_file_that_leaves_doubt_is_an_error_with_the_line(tmp_path, text, message):
    write(tmp_path / "images", *FILES, "one/same.png", "two/same.png")
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArgumentError, match=message) as caught:
        open_images(tmp_path / "images", labels=tmp_path / "labels.csv")
    assert caught.value.path == str(tmp_path / "labels.csv")


def test_labels_may_be_a_mapping_with_indices(tmp_path):
    source = open_images(write(tmp_path, "a.png", "b.png", "c.png"), labels={"a.png": 1, "b.png": np.int64(0)})
    assert labels_of(source) == {"a.png": "1", "b.png": "0"}


def test_pairs_are_paths_bytes_arrays_or_images_with_labels():
    pixels = np.zeros((8, 8), np.uint8)
    source = open_images([("x/a.png", "cat"), (PNG, 3), (pixels, np.int64(7)), (pixels, None)])
    assert labels_of(source) == {"x/a.png": "cat", "00000001": "3", "00000002": "7", "00000003": None}


def test_a_list_joins_sources_and_keys_say_from_which(tmp_path):
    write(tmp_path, "one/cat/1.png", "two/cat/1.png")
    write_tar(tmp_path / "x.tar", digit_members(0, 2))
    source = open_images([tmp_path / "one", tmp_path / "two", tmp_path / "x.tar"])
    assert list(labels_of(source)) == ["one/cat/1.png", "two/cat/1.png", "x.tar/000", "x.tar/001"]
    assert (source.count, source.class_names) == (None, None)
    with pytest.raises(ArgumentError, match="listed twice"):
        open_images([tmp_path / "one", tmp_path / "one"])


def test_shards_of_a_split_are_the_same_images_in_the_same_order(few):
    source = open_images(few)
    parts = source.split(10)
    assert [shard.count for shard in parts.shards] == [10, 10, 10, 10, 8]
    assert list(parts) == list(source)
    assert [list(pickle.loads(pickle.dumps(shard))) for shard in parts.shards] == [list(s) for s in parts.shards]


CHANGES = {
    "an image is added": lambda root: write(root, "9/new.png"),
    "an image is removed": lambda root: next(root.rglob("*.png")).unlink(),
    "an image is another one": lambda root: next(root.rglob("*.png")).write_bytes(PNG + b"x"),
    "an image has another label": lambda root: next((root / "0").iterdir()).rename(root / "1" / "x.png"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_digest_changes_when(few, change):
    before = open_images(few).digest()
    assert open_images(few).digest() == before
    change(few)
    assert open_images(few).digest() != before


NO_SOURCES = {
    "a path that does not exist": ("nowhere", MissingFileError),
    "a folder without images": ("empty", ArgumentError),
    "a file of another kind": ("text.txt", ArgumentError),
    "images beside tar files": ("mixed", ArgumentError),
    "a number": (5, ArgumentError),
    "nothing": ([], ArgumentError),
    "pairs of three": ([("a.png", 1, 2)], ArgumentError),
    "a label that is neither name nor index": ([("a.png", 1.5)], ArgumentError),
    "the same path twice": ([("a.png", 1), ("a.png", 2)], ArgumentError),
    "a range that goes down": ("x-{9..1}.tar", ArgumentError),
}


@pytest.mark.parametrize(("data", "error"), NO_SOURCES.values(), ids=NO_SOURCES)
def test_no_source_of_images_is(tmp_path, monkeypatch, data, error):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    write(tmp_path / "mixed", "cat/1.png")
    write_tar(tmp_path / "mixed" / "x.tar", digit_members(0, 1))
    with pytest.raises(error) as caught:
        open_images(data)
    assert caught.value.expected or caught.value.hint


@pytest.mark.parametrize("data", ["x.tar", ["few"], [("a.png", 1)], open_images([("a.png", 1)])], ids=type)
def test_labels_are_for_a_folder_only(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "x.tar", digit_members(0, 1))
    write_folder(tmp_path / "few", 1)
    with pytest.raises(ArgumentError, match="labels of its own"):
        open_images(data, labels={"a.png": 1})
