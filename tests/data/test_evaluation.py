"""evaluate: figures that can be checked by hand, on the digits, and runs that go on after any interruption."""

from __future__ import annotations

import csv
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.data.counts import Counts, accuracy
from repvgg_zoo.data.evaluation_report import EvaluationReport
from repvgg_zoo.errors import ArgumentError, DependencyError, MissingFileError
from repvgg_zoo.registry.specs import IMAGENET

from .conftest import digit_members, digits, png, write_folder, write_tar

ROOT = Path(__file__).resolve().parents[2]
evaluate = functools.partial(repvgg_zoo.evaluate, threads=1)  # so that one network is compiled instead of two


@pytest.fixture(scope="module")
def report(digit_folder) -> EvaluationReport:
    return repvgg_zoo.evaluate("RepVGG_N0.digits", digit_folder)


@pytest.fixture(scope="module")
def predictions() -> Any:
    """The class that predict finds for each of the digits."""
    return [top[0].index for top in repvgg_zoo.predict("RepVGG_N0", list(digits()[0]))]


def rows_of(path: Path) -> List[Dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_figures_are_those_of_predict_on_the_same_images(report, predictions):
    labels = digits()[1]
    assert report.n == 360
    assert report.top1.correct == sum(labels == predictions)
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels, predictions), 1)
    assert np.array_equal(report.confusion_matrix, matrix)
    assert [item.top1.correct for item in report.per_class] == list(np.diag(matrix))
    assert report.top5 is not None and report.top5.correct == 360


def test_the_stated_accuracy_is_confirmed(report):
    assert (report.stated_top1, report.top1.percent, report.difference) == (99.44, 99.44, 0.0)
    assert report.verdict == "agrees"
    assert "agrees" in str(report) and "95 % interval 98.00 to 99.85" in str(report)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(0, 10, 0.0, 27.75), (10, 10, 72.25, 100.0), (1, 2, 9.45, 90.55), (36205, 50000, 72.02, 72.8), (0, 0, 0.0, 100.0)],
)
def test_the_interval_is_wilsons(correct, n, low, high):
    result = accuracy(correct, n)
    assert (result.low, result.high) == (low, high)


def imagenet_report(classes: int, images: int, percent: float, skipped: int = 0) -> EvaluationReport:
    """A report of ``classes`` of the 1000 classes, with as many images as stated, of which so many are correct."""
    each, correct = images // classes, round(images * percent / 100)
    right = [correct // classes + (index < correct % classes) for index in range(classes)]
    predicted = {(index, index): count for index, count in enumerate(right)}
    predicted.update({(index, (index + 1) % 1000): each - count for index, count in enumerate(right)})
    spec = repvgg_zoo.model_info("RepVGG_A0").checkpoint("timm")
    counts = Counts(predicted, {}, (("x", "y"),) * skipped)
    names = tuple(map(str, range(1000)))
    return EvaluationReport("x", None, "y", "z", names, spec.preprocessing, counts, IMAGENET, spec.top1, spec.top5)


VERDICTS = {
    "as stated": (imagenet_report(1000, 50000, 72.4), "agrees"),
    "a sample": (imagenet_report(1000, 10000, 70), "other data"),
    "another result on as many images": (imagenet_report(1000, 50000, 60), "differs"),
    "another result with skipped images": (imagenet_report(1000, 48000, 60, skipped=2000), "differs"),
    "a tenth of the classes, by chance as stated": (imagenet_report(100, 5000, 72), "other data"),
}


@pytest.mark.parametrize(("report", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_the_verdict_is_that_of(report, verdict):
    assert report.verdict == verdict


def test_a_file_has_no_stated_accuracy(few):
    report = evaluate(repvgg_zoo.fetch("RepVGG_N0"), few)
    assert (report.verdict, report.difference) == ("not stated", None)
    assert not any("stated" in line for line in str(report).splitlines()[2:])


LAYOUTS = {
    "tar files": lambda root: [str(write_tar(root / f"{i}.tar", digit_members(24 * i, 24 * i + 24))) for i in range(2)],
    "pairs": lambda root: list(zip(digits()[0][:48], digits()[1][:48])),
    "a folder for each class": lambda root: write_folder(root / "images", 48),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_each_kind_of_source_gives_the_same_figures(tmp_path, layout, predictions):
    report = evaluate("RepVGG_N0", layout(tmp_path))
    assert (report.n, report.top1.correct) == (48, sum(digits()[1][:48] == predictions[:48]))


def test_the_order_of_folders_does_not_matter(tmp_path, report):
    names = dict(
        zip(map(str, range(10)), ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    )
    root = write_folder(tmp_path / "images")
    for digit, name in names.items():
        (root / digit).rename(root / name)
    renamed = evaluate("RepVGG_N0", root, class_names=list(names.values()))
    assert renamed.counts.predicted == report.counts.predicted


ERRORS = {
    "folders of other classes": (
        lambda root: (root / "3").rename(root / "three"),
        {},
        "'three'.*its 10 classes: '0'",
    ),
    "an image without a label": (
        lambda root: next((root / "9").iterdir()).rename(root / "x.png"),
        {},
        "x.png has no label",
    ),
    "too few class names": (lambda root: None, {"class_names": ["a", "b"]}, "2 class names for the 10 classes"),
    "a file of class names that does not exist": (lambda root: None, {"class_names": "x.txt"}, "x.txt does not exist"),
    "an output in no folder": (lambda root: None, {"output": "none/rows.csv"}, "the folder none does not exist"),
}


@pytest.mark.parametrize(("change", "options", "message"), ERRORS.values(), ids=ERRORS)
def test_an_error_says_what_is_wrong_with(few, change, options, message):
    change(few)
    with pytest.raises(ArgumentError, match=message):
        evaluate("RepVGG_N0", few, **options)


def test_a_network_without_a_head_is_an_error(few):
    with pytest.raises(ArgumentError, match="no head"):
        evaluate(repvgg_zoo.create("RepVGG_N0", num_classes=0), few)


def test_skipped_images_are_counted_and_named(few):
    (few / "3" / "bad.png").write_bytes(b"text")
    with pytest.raises(ArgumentError, match=r"bad\.png"):
        evaluate("RepVGG_N0", few)
    report = evaluate("RepVGG_N0", few, on_error="skip", output=few / "rows.csv")
    assert (report.n, [key for key, _ in report.skipped]) == (48, ["3/bad.png"])
    assert "48 images, 1 skipped" in str(report)
    (row,) = [row for row in rows_of(few / "rows.csv") if row["error"]]
    assert (row["key"], row["label"], row["prediction"]) == ("3/bad.png", "3", "")


def test_a_row_for_each_image_says_what_was_predicted(tmp_path, digit_folder, report):
    again = evaluate("RepVGG_N0", digit_folder, output=tmp_path / "rows.csv")
    assert again == report
    rows = rows_of(tmp_path / "rows.csv")
    assert [row["key"] for row in rows] == [sample.key for sample in repvgg_zoo.open_images(digit_folder)]
    assert sum(row["rank"] == "1" for row in rows) == report.top1.correct
    assert all((row["label"] == row["prediction"]) == (row["rank"] == "1") for row in rows)
    best = repvgg_zoo.predict("RepVGG_N0", digit_folder / rows[0]["key"])[0]
    assert float(rows[0]["probability"]) == pytest.approx(best.probability, abs=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_a_finished_file_is_replaced_only_on_request(few):
    (few / "rows.csv").write_text("mine")
    with pytest.raises(ArgumentError, match="exists already"):
        evaluate("RepVGG_N0", few, output=few / "rows.csv")
    evaluate("RepVGG_N0", few, output=few / "rows.csv", overwrite=True)
    assert len(rows_of(few / "rows.csv")) == 48


# A process that is killed while it evaluates: by itself, so that it is known how far it has come.
KILLED = """
import os, signal, sys
import repvgg_zoo

class Kill:
    def update(self, name, done, total):
        if done >= 160:
            os.kill(os.getpid(), signal.SIGKILL)
    def message(self, text): pass
    def close(self): pass

repvgg_zoo.evaluate("RepVGG_N0", sys.argv[1], output=sys.argv[2], progress=Kill())
"""


@pytest.fixture(scope="module")
def killed(digit_folder, tmp_path_factory) -> bytes:
    """What a killed process has left."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLED, str(digit_folder), str(folder / "rows.csv")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert [path.name for path in folder.iterdir()] == ["rows.csv.partial"]
    return (folder / "rows.csv.partial").read_bytes()


@pytest.mark.parametrize("lost", [0, 17, 2000])
def test_after_a_kill_each_row_is_written_once_and_the_report_is_the_same(tmp_path, digit_folder, report, killed, lost):
    # What a power failure may lose besides: the end of the file, in the middle of a row.
    (tmp_path / "rows.csv.partial").write_bytes(killed[: max(0, len(killed) - lost)])
    resumed = evaluate("RepVGG_N0", digit_folder, output=tmp_path / "rows.csv")
    assert resumed == report
    assert resumed.computed == {0: 200, 17: 216}.get(lost, resumed.computed) < 360
    assert resumed.computed % 16 == 360 % 16
    assert [row["key"] for row in rows_of(tmp_path / "rows.csv")] == [
        s.key for s in repvgg_zoo.open_images(digit_folder)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


OTHERS = {
    "another model": (lambda root: {"model": repvgg_zoo.create("RepVGG_N0")}, "another model"),
    "other data": (lambda root: {"data": write_folder(root, 100)}, "another data"),
    "other class names": (lambda root: {"class_names": list("abcdefghij")}, "another classes"),
}


@pytest.mark.parametrize(("change", "message"), OTHERS.values(), ids=OTHERS)
def test_an_interrupted_run_is_not_continued_with(tmp_path, digit_folder, killed, change, message):
    (tmp_path / "rows.csv.partial").write_bytes(killed)
    arguments = {"model": "RepVGG_N0", "data": digit_folder, "output": tmp_path / "rows.csv"}
    arguments.update(change(tmp_path / "other"))
    with pytest.raises(ArgumentError, match=message):
        evaluate(**arguments)
    assert (tmp_path / "rows.csv.partial").read_bytes() == killed


def test_an_interrupted_run_is_replaced_on_request(tmp_path, few, killed):
    (tmp_path / "rows.csv.partial").write_bytes(killed)
    report = evaluate("RepVGG_N0", few, output=tmp_path / "rows.csv", overwrite=True)
    assert (report.computed, len(rows_of(tmp_path / "rows.csv"))) == (48, 48)


def test_a_file_of_something_else_is_left_alone(tmp_path, few):
    (tmp_path / "rows.csv.partial").write_text("my notes\n")
    with pytest.raises(ArgumentError, match="not of an interrupted evaluation"):
        evaluate("RepVGG_N0", few, output=tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv.partial").read_text() == "my notes\n"


def test_after_an_image_that_cannot_be_read_the_run_goes_on_if_it_is_skipped(few, tmp_path):
    (few / "7" / "bad.png").write_bytes(b"text")
    with pytest.raises(ArgumentError, match=r"bad\.png"):
        evaluate("RepVGG_N0", few, output=tmp_path / "rows.csv", batch_size=4)
    report = evaluate("RepVGG_N0", few, output=tmp_path / "rows.csv", batch_size=4, on_error="skip")
    assert 0 < report.computed < 30
    assert len(rows_of(tmp_path / "rows.csv")) == 49


def test_two_processes_do_not_write_one_file(tmp_path, few, killed):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "rows.csv.partial").write_bytes(killed)
    with (tmp_path / "rows.csv.partial").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ArgumentError, match="another process writes"):
            evaluate("RepVGG_N0", few, output=tmp_path / "rows.csv")


def test_any_file_name_and_label_comes_back_from_the_rows(tmp_path):
    names = ['with, comma and "quotes".png', "line\nbreak.png", b"not\xffutf8.png".decode("utf-8", "surrogateescape")]
    (tmp_path / "1").mkdir()
    for name in names:
        (tmp_path / "1" / name).write_bytes(png(digits()[0][0]))
    report = evaluate("RepVGG_N0", tmp_path, output=tmp_path / "rows.csv", batch_size=1)
    assert report.n == 3
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert {row["key"] for row in csv.DictReader(file)} == {f"1/{name}" for name in names}


def test_counts_of_parts_merge_to_those_of_the_whole(report, digit_folder):
    parts = [
        evaluate("RepVGG_N0", [(s.image, s.label) for s in shard]).counts
        for shard in repvgg_zoo.open_images(digit_folder).split(150).shards
    ]
    merged = parts[2].merge(parts[0]).merge(parts[1])
    assert merged == report.counts
    assert Counts.from_plain(json.loads(json.dumps(merged.to_plain()))) == merged


class Recorder:
    def __init__(self) -> None:
        self.updates: List[Any] = []

    def update(self, name: str, done: int, total: Any) -> None:
        self.updates.append((name, done, total))

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        self.updates.append("closed")


def test_progress_is_reported_batch_by_batch_with_the_end(few):
    progress = Recorder()
    evaluate("RepVGG_N0", few, progress=progress)
    assert progress.updates == [*(("RepVGG_N0.digits", done, 48) for done in (0, 16, 32, 48)), "closed"]


def test_the_end_is_estimated_for_tar_files(tmp_path):
    for number in range(4):
        write_tar(tmp_path / f"{number}.tar", digit_members(8 * number, 8 * number + 8))
    progress = Recorder()
    evaluate("RepVGG_N0", tmp_path, progress=progress, batch_size=4, threads=1)
    assert progress.updates[0][2] is None
    assert [total for _, _, total in progress.updates[3:-1]] == [32] * len(progress.updates[3:-1])


def test_the_confusion_matrix_is_drawn(report, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    report.plot_confusion(tmp_path / "x.png")
    assert image.imread(tmp_path / "x.png").shape[2] == 4
    imagenet_report(1000, 50000, 60).plot_confusion(tmp_path / "x.svg", max_classes=3)
    with pytest.raises(ArgumentError, match="suffix"):
        report.plot_confusion(tmp_path / "x.doc")


def test_without_matplotlib_the_error_names_the_extra(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match="matplotlib") as caught:
        report.plot_confusion(tmp_path / "x.png")
    assert "repvgg-zoo[plot]" in caught.value.hint


def test_the_report_is_json_and_a_table(report):
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (values["top1"]["percent"], values["images"], values["verdict"]) == (99.44, 360, "agrees")
    assert values["model_sha256"] == repvgg_zoo.model_info("RepVGG_N0").checkpoint("digits").file.sha256
    assert "99.44 %" in report._repr_html_()


def test_a_source_that_does_not_exist_is_missing():
    with pytest.raises(MissingFileError):
        evaluate("RepVGG_N0", "nowhere")
