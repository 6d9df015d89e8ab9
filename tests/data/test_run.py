"""``run``: shards are computed by workers that may end at any moment, and each row is there once.

The kinds of faults: a row that is missing, twice, or of another run; a run that hangs or begins from the start; an
error that does not say which shard or which file it is about.
"""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.data.engines.pool import share_out
from repvgg_zoo.data.engines.processes import ProcessFleet, unpickle
from repvgg_zoo.data.manifest import Manifest, finished_shard
from repvgg_zoo.data.output_folder import OutputFolder
from repvgg_zoo.data.runner import parse_part
from repvgg_zoo.data.tasks import Plan, Task, model_sha256
from repvgg_zoo.data.worker import Worker
from repvgg_zoo.errors import ArgumentError, IntegrityError, WorkerLostError

from . import runs


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_digits(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing interrupted."""
    output = tmp_path_factory.mktemp("finished")
    run("predict", images, output)
    return output


def run(job: str, images: Any, output: Path, **options: Any) -> Any:
    defaults = {"model": "RepVGG_N0", "workers": 1, "shard_size": runs.IMAGES_OF_A_SHARD}
    return repvgg_zoo.run(job, images, output, **{**defaults, **options})


def test_each_image_has_one_row_with_what_predict_says(images: Path, finished: Path) -> None:
    assert runs.keys(finished) == runs.all_keys(images)
    key, index, label, probability = runs.rows(finished)[3][:4]
    expected = repvgg_zoo.predict("RepVGG_N0", images / key)[0]
    assert (int(index), label) == (expected.index, expected.label)
    assert float(probability) == pytest.approx(expected.probability, abs=1e-5)


def test_a_finished_run_is_not_computed_again(images: Path, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    report = run("predict", images, finished)
    assert (report.shards, report.resumed, report.images) == (runs.SHARDS, runs.SHARDS, runs.IMAGES)
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


DAMAGES: Dict[str, Callable[[Path], object]] = {
    "a file of rows is missing": lambda folder: (folder / "000003.csv").unlink(),
    "a file of rows is cut": lambda folder: (folder / "000003.csv").write_bytes(b"key"),
    "a record is missing": lambda folder: (folder / "000003.json").unlink(),
    "a record is cut": lambda folder: (folder / "000003.json").write_bytes(b'{"shard": 3'),
    "a record is empty": lambda folder: (folder / "000003.json").write_bytes(b""),
    "a record is of another run": lambda folder: (folder / "000003.json").write_text('{"manifest": "0"}'),
    "a record is a list": lambda folder: (folder / "000003.json").write_text("[1, 2]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_shard_is_computed_again_if(damage: Callable[[Path], object], finished: Path, tmp_path: Path) -> None:
    for path in finished.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    folder = OutputFolder(tmp_path)
    content = json.loads((finished / "manifest.json").read_text())
    digest = Manifest(**{**content, "shards": tuple(map(tuple, content["shards"]))}).sha256
    assert all(finished_shard(folder, digest, index, folder.sizes()) for index in range(runs.SHARDS))
    damage(tmp_path)
    states = [finished_shard(folder, digest, index, folder.sizes()) is not None for index in range(runs.SHARDS)]
    assert states == [index != 3 for index in range(runs.SHARDS)]


def test_parts_do_every_nth_shard_and_a_run_without_one_reports_them_all(images: Path, tmp_path: Path) -> None:
    reports = [run("evaluate", images, tmp_path, part=f"{number}/2") for number in (2, 1)]
    assert [report.shards for report in reports] == [runs.SHARDS // 2] * 2
    assert runs.keys(tmp_path) == runs.all_keys(images)
    whole = run("evaluate", images, tmp_path)
    assert whole.resumed == runs.SHARDS
    assert [report.evaluation for report in reports] == [None, None]
    expected = repvgg_zoo.evaluate("RepVGG_N0", images)
    assert (whole.evaluation.n, whole.evaluation.counts) == (runs.IMAGES, expected.counts)


def test_features_are_in_the_order_of_the_rows(images: Path, tmp_path: Path) -> None:
    runs.compute_here("features", images, tmp_path / "output")
    to_input = repvgg_zoo.preprocess("RepVGG_N0")
    head = repvgg_zoo.load_checkpoint(repvgg_zoo.fetch("RepVGG_N0")).state_dict
    with repvgg_zoo.compile("RepVGG_N0", threads=1) as network:
        for path in sorted((tmp_path / "output").glob("*.csv")):
            names = [row[0] for row in list(csv.reader(path.open()))[1:]]
            logits = np.load(path.with_suffix(".npy")) @ head["linear.weight"].T + head["linear.bias"]
            expected = network(np.stack([to_input(images / name) for name in names]))
            np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("job", ["predict", "features", "evaluate"])
def test_parquet_has_the_same_rows_as_csv(job: str, images: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for format in ("csv", "parquet"):
        runs.compute_here(job, images, tmp_path / format, format=format, size=runs.IMAGES)
    table = parquet.read_table(tmp_path / "parquet" / "000000.parquet").to_pydict()
    assert table["key"] == [row[0] for row in runs.rows(tmp_path / "csv")]
    if job == "features":
        assert np.array_equal(table["features"], np.load(tmp_path / "csv" / "000000.npy"))


@pytest.mark.parametrize("job", ["predict", "features", "evaluate"])
def test_an_image_that_cannot_be_read_has_the_reason_in_its_row(job: str, images: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(images.rglob("*.png"))[:3]):
        copy = tmp_path / "images" / path.parent.name / f"{number}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    broken = f"{copy.parent.name}/broken.png"
    (tmp_path / "images" / broken).write_bytes(b"\x89PNG\r\n\x1a\n")
    runs.compute_here(job, tmp_path / "images", tmp_path / "output")
    reasons = {row[0]: row[-1] for row in runs.rows(tmp_path / "output")}
    assert [key for key, reason in reasons.items() if reason] == [broken]
    assert json.loads((tmp_path / "output" / "000000.json").read_text())["errors"] == [[broken, reasons[broken]]]
    if job == "features":
        missing = np.isnan(np.load(tmp_path / "output" / "000000.npy")).all(axis=1)
        assert [key for key, is_missing in zip(reasons, missing) if is_missing] == [broken]
    with pytest.raises(ArgumentError, match=r"broken\.png"):
        runs.compute_here(job, tmp_path / "images", tmp_path / "strict", on_error="error")


CHANGES: Dict[str, Dict[str, Any]] = {
    "job": {"job": "features"},
    "options": {"topk": 2},
    "format": {"format": "parquet"},
    "shards": {"shard_size": 7},
    "model_sha256": {"model": "own.safetensors"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_output_folder_keeps_to_the_run_that_began_it(
    change: str, images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change == "format":
        pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    repvgg_zoo.save_checkpoint("own.safetensors", repvgg_zoo.load_checkpoint(repvgg_zoo.fetch("RepVGG_N0")))
    with pytest.raises(ArgumentError, match="another run") as caught:
        run(**{"job": "predict", "images": images, "output": finished, **CHANGES[change]})
    assert change in caught.value.expected and change in caught.value.actual
    assert caught.value.path == f"{finished}/manifest.json"


def worker_plan(output: Path, **changes: Any) -> Plan:
    options = {"topk": 1, "class_names": None, "batch_size": 4, "on_error": "skip"}
    values = {"model": "RepVGG_N0", "model_sha256": model_sha256("RepVGG_N0"), "options": options, **changes}
    return Plan(job="predict", format="csv", output=str(output), manifest_sha256="", **values)


def test_a_worker_refuses_another_model_and_other_files_than_the_manifests(images: Path, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError) as caught:
        Worker(worker_plan(tmp_path, model_sha256="0" * 64)).prepare()
    assert caught.value.expected == "0" * 64 and len(caught.value.actual) == 64
    worker = Worker(worker_plan(tmp_path))
    worker.prepare()
    shard = runs.logged(images, tmp_path / "log").shards[0]
    with pytest.raises(IntegrityError, match=shard.name):
        worker.run(Task(0, shard, "0" * 64))
    assert runs.begun(tmp_path / "log") == [] and not list(tmp_path.glob("0*"))


def test_a_killed_worker_is_replaced_and_its_shard_done_again(images: Path, tmp_path: Path) -> None:
    source = runs.logged(images, tmp_path / "log", kill_once=tmp_path / "killed")
    report = run("predict", source, tmp_path / "output")
    assert (tmp_path / "killed").exists()
    assert report.images == runs.IMAGES and runs.keys(tmp_path / "output") == runs.all_keys(images)
    assert len(runs.begun(tmp_path / "log")) == runs.SHARDS + 1


def test_a_shard_that_kills_each_worker_is_named(images: Path, tmp_path: Path) -> None:
    shard = runs.logged(images, tmp_path / "log", kill_always=True).shards[2]
    fleet = ProcessFleet(worker_plan(tmp_path))
    with pytest.raises(WorkerLostError, match="2 times: its process ended with SIGKILL") as caught:
        list(share_out(fleet, [Task(0, shard, shard.digest())], 1, max_losses=2))
    assert caught.value.shard == shard.name and not fleet.processes


def test_an_error_of_a_worker_ends_the_run_and_all_workers(images: Path, tmp_path: Path) -> None:
    fleet = ProcessFleet(worker_plan(tmp_path, model_sha256="0" * 64))
    shard = runs.logged(images, tmp_path / "log").shards[0]
    with pytest.raises(IntegrityError):
        list(share_out(fleet, [Task(0, shard, shard.digest())], 1))
    assert not fleet.processes


def test_what_a_worker_cannot_unpickle_is_an_error_that_names_it() -> None:
    with pytest.raises(ArgumentError, match="nothing_like_this"):
        unpickle(pickle.dumps(Unknown()))


class Unknown:
    def __reduce__(self) -> Any:
        return __import__, ("nothing_like_this",)


def test_a_killed_driver_loses_at_most_a_shard_of_each_worker(images: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "output", tmp_path / "log"
    driver = runs.start_driver(images, output, log)
    runs.wait_for_records(output, 2)
    driver.kill()
    driver.wait()
    report = run("predict", runs.logged(images, log), output)
    assert report.resumed >= 2 and report.images == runs.IMAGES
    assert runs.keys(output) == runs.all_keys(images)
    assert len(runs.begun(log)) <= runs.SHARDS + 2


@pytest.mark.parametrize("part", ["0/4", "5/4", "3", "3/0", "-1/4", "a/b", "", (0, 4), (5, 4), (1,), 3, 2.5, b"1/4"])
def test_a_part_is_a_number_of_a_count(part: Any) -> None:
    with pytest.raises(ArgumentError):
        parse_part(part)
    assert parse_part("3/16") == parse_part((3, 16)) == (3, 16)
