"""What is measured is kept row by row, and the page that is made of it hides nothing."""

from __future__ import annotations

import json

import pytest

from benchmarks.report import page
from benchmarks.results_file import Record, commit, machine, spread

MACHINE = {
    "date": "2030-01-02",
    "cpu": "A Processor",
    "cores": 2,
    "instructions": ["avx2"],
    "memory_gib": 8,
    "system": "Linux 6",
    "versions": {"python": "3.10.1", "megengine": "1.13.0"},
}
KEY = {"variant": "RepVGG_A0", "batch": 1, "threads": 2, "image_size": 224}


def timed(*times):
    return {"ms": spread(times), "versions": {"torch": "2.0"}}


@pytest.fixture
def record(tmp_path):
    return Record(tmp_path / "results.json", MACHINE)


def line_of(text, start):
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return line


def test_rows_are_on_the_disk_at_once_and_the_same_key_replaces_its_row(record):
    record.add("inference", KEY, contenders={"ours": timed(3.0)})
    record.add("inference", {**KEY, "batch": 8}, contenders={"ours": timed(4.0)})
    record.add("inference", KEY, contenders={"ours": timed(5.0)})
    kept = Record.read(record.path)
    assert len(kept.rows) == 2
    assert kept.find("inference", KEY)["contenders"]["ours"]["ms"]["median"] == 5.0
    assert kept.find("growth", KEY) is None


OTHERS = {"cpu": "another", "cores": 999, "instructions": ["none"]}


@pytest.mark.parametrize("name", OTHERS)
def test_a_record_of_another_machine_is_not_added_to(name, tmp_path):
    here = Record(tmp_path / "here.json", machine())
    here.add("inference", KEY, contenders={})
    assert Record.resume(here.path, "inference").rows == here.rows
    there = Record(tmp_path / "there.json", {**machine(), name: OTHERS[name]})
    there.add("inference", KEY, contenders={})
    with pytest.raises(SystemExit, match=f"has {name}"):
        Record.resume(there.path, "inference")


def test_a_table_of_another_commit_is_not_added_to_and_the_page_names_both(tmp_path):
    record = Record(tmp_path / "record.json", machine(), commits={"inference": "abc1234", "growth": "abc1234"})
    record.add("inference", KEY, contenders={"ours": timed(3.0)})
    record.add("loading", {"contender": "ours"}, seconds=spread([0.1]))
    with pytest.raises(SystemExit, match="inference at commit abc1234"):
        Record.resume(record.path, "inference")
    resumed = Record.resume(record.path, "loading")
    assert (resumed.rows, resumed.commits) == (record.rows, {**record.commits, "loading": commit()})
    assert f"inference, growth at commit `abc1234`; loading at commit `{commit()}`" in page(resumed, [])


def test_the_page_divides_ours_by_the_best_peer(record):
    contenders = {"torch": timed(20.0), "openvino": timed(10.0, 8.0, 12.0), "megengine eager": timed(1.0)}
    record.add("inference", KEY, contenders={**contenders, "ours": timed(9.0)})
    assert line_of(page(record, []), "| RepVGG_A0 |").endswith("| 9.0 | 0.90 |")


def test_the_page_says_why_a_contender_has_no_figure(record):
    contenders = {"torch": timed(20.0), "openvino": {"failed": "ModuleNotFoundError: No module named 'openvino'"}}
    record.add("inference", KEY, contenders={**contenders, "ours": {"failed": "its logits are 1.0e-02 off"}})
    text = page(record, [])
    line = line_of(text, "| RepVGG_A0 |")
    assert line.count("failed (") == 5  # three were not asked to run
    assert line.endswith("| - |")
    assert "OpenVINO: ModuleNotFoundError: No module named 'openvino'" in text
    assert "ours: its logits are 1.0e-02 off" in text


@pytest.mark.parametrize(("disturbance", "provisional"), [(0.02, False), (0.5, True)])
def test_the_page_says_when_the_machine_was_busy(record, disturbance, provisional):
    record.add("inference", KEY, disturbance=disturbance, contenders={"ours": timed(3.0)})
    assert ("provisional" in page(record, [])) == provisional


def test_the_page_says_which_targets_were_missed(record):
    record.add("bounds", {"question": "fast enough"}, value=0.9, bound=1.0)
    record.add("bounds", {"question": "small enough"}, value=1.2, bound=1.15)
    text = page(record, [])
    assert line_of(text, "| fast enough |").endswith("| yes |")
    assert line_of(text, "| small enough |").endswith("| **no** |")


def test_all_of_a_record_is_plain_json(record):
    record.add("loading", {"contender": "ours"}, seconds=spread([0.1, 0.2, 0.4]))
    (row,) = json.loads(record.path.read_text())["rows"]
    assert row["seconds"] == {"median": 0.2, "min": 0.1, "q1": 0.1, "q3": 0.4, "samples": 3}
