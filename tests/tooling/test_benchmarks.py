"""Results are written row by row, and the page that is generated from them hides nothing."""

from __future__ import annotations

import json

import pytest

from benchmarks.report import PAGE, page
from benchmarks.results_file import RESULTS, Results, commit, machine, summarize

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
    return {"ms": summarize(times), "versions": {"torch": "2.0"}}


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results.json", MACHINE)


def line_of(text, start):
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return line


def test_rows_are_written_at_once_and_replace_rows_with_the_same_key(results):
    results.add("inference", KEY, runtimes={"ours": timed(3.0)})
    results.add("inference", {**KEY, "batch": 8}, runtimes={"ours": timed(4.0)})
    results.add("inference", KEY, runtimes={"ours": timed(5.0)})
    written = Results.read(results.path)
    assert len(written.rows) == 2
    assert written.find("inference", KEY)["runtimes"]["ours"]["ms"]["median"] == 5.0
    assert written.find("scaling", KEY) is None


OTHERS = {"cpu": "another", "cores": 999, "instructions": ["none"]}


@pytest.mark.parametrize("name", OTHERS)
def test_results_of_another_machine_are_not_added_to(name, tmp_path):
    here = Results(tmp_path / "here.json", machine())
    here.add("inference", KEY, runtimes={})
    assert Results.resume(here.path, "inference").rows == here.rows
    there = Results(tmp_path / "there.json", {**machine(), name: OTHERS[name]})
    there.add("inference", KEY, runtimes={})
    with pytest.raises(SystemExit, match=f"has {name}"):
        Results.resume(there.path, "inference")


def test_a_table_of_another_commit_is_not_added_to(tmp_path):
    results = Results(tmp_path / "results.json", machine(), commits={"inference": "abc1234", "scaling": "abc1234"})
    results.add("inference", KEY, runtimes={"ours": timed(3.0)})
    results.add("loading", {"case": "ours"}, seconds=summarize([0.1]))
    with pytest.raises(SystemExit, match="inference at commit abc1234"):
        Results.resume(results.path, "inference")
    resumed = Results.resume(results.path, "loading")
    assert (resumed.rows, resumed.commits) == (results.rows, {**results.commits, "loading": commit()})
    text = page([resumed], [])
    assert "at commit `abc1234`" in text and f"at commit `{commit()}`" in text


def test_each_section_is_of_the_newest_results_that_have_it(tmp_path):
    old, new = (
        Results(
            tmp_path / f"{name}.json", {**MACHINE, "cpu": name}, commits=dict.fromkeys(("inference", "startup"), name)
        )
        for name in ("old", "new")
    )
    for results, seconds in ((old, 1.0), (new, 2.0)):
        results.add("startup", {"command": "list"}, seconds=summarize([seconds]))
    old.add("inference", KEY, runtimes={"ours": timed(3.0)})
    text = page([old, new], [])
    assert line_of(text, "| list |") == "| list | 2.000 |"
    assert "at commit `old` on 2 cores of an old" in text.partition("## Startup")[0]
    assert "at commit `new` on 2 cores of an new" in text.partition("## Startup")[2]


def test_the_shipped_page_is_generated_from_the_shipped_results():
    records = [Results.read(path) for path in sorted(RESULTS.glob("*.json"))]
    figures = sorted(path.stem for path in (PAGE.parent / "performance").glob("*.svg"))
    assert page(records, figures) == PAGE.read_text(encoding="utf-8")


def test_the_page_divides_ours_by_the_best_peer(results):
    runtimes = {"torch": timed(20.0), "openvino": timed(10.0, 8.0, 12.0), "megengine eager": timed(1.0)}
    results.add("inference", KEY, runtimes={**runtimes, "ours": timed(9.0)})
    line = line_of(page([results], []), "| RepVGG_A0 |")
    assert line.startswith("| RepVGG_A0 | 9.0 |") and line.endswith("| 0.90 |"), "ours comes first"


def test_the_page_opens_with_a_summary_of_the_ratios_and_targets(results):
    for variant, ms in (("RepVGG_A0", 5.0), ("RepVGG_A1", 20.0)):
        results.add("inference", {**KEY, "variant": variant}, runtimes={"torch": timed(10.0), "ours": timed(ms)})
    results.add(
        "int8", KEY, runtimes={"openvino int8": {**timed(4.0), "error": 0.1}, "ours int8": {**timed(3.0), "error": 0.1}}
    )
    results.add("targets", {"of": "inference", "target": "fast enough"}, value=0.9, bound=1.0)
    results.add("targets", {"of": "inference", "target": "small enough"}, value=1.2, bound=1.15)
    text = page([results], [])
    assert text.split("\n## ")[1].startswith("Summary")
    assert "| [float32](#inference), batch 1, 2 threads | 1.00 | 0.50 to 2.00 | 2 | A Processor |" in text
    assert "| [int8](#int8), batch 1, 2 threads | 0.75 | 0.75 to 0.75 | 1 | A Processor |" in text
    assert "1 of the 2 [targets](#targets)" in text


def test_the_summary_has_the_newest_figures_of_each_processor_side_by_side(tmp_path):
    records = [Results(tmp_path / f"{i}.json", {**MACHINE, "cpu": cpu}) for i, cpu in enumerate(("B", "A", "B"))]
    for results, ms in zip(records, (2.0, 3.0, 4.0)):
        for threads in (1, 2):
            results.add(
                "inference", {**KEY, "threads": threads}, runtimes={"torch": timed(10.0), "ours": timed(ms * threads)}
            )
    lines = [line for line in page(records, []).splitlines() if line.startswith("| [float32]")]
    assert [line.split(" | ")[1::3] for line in lines] == [
        ["0.30", "A |"],
        ["0.40", "B |"],
        ["0.60", "A |"],
        ["0.80", "B |"],
    ]


def test_a_figure_has_a_light_and_a_dark_version(results):
    results.add("inference", KEY, runtimes={"ours": timed(3.0)})
    text = page([results], ["ratio", "ratio-dark"])
    for name, mode in (("ratio", "light"), ("ratio-dark", "dark")):
        assert f"```{{image}} performance/{name}.svg\n:class: only-{mode}\n:alt: " in text


def test_the_page_says_why_a_runtime_has_no_figure(results):
    runtimes = {"torch": timed(20.0), "openvino": {"failed": "ModuleNotFoundError: No module named 'openvino'"}}
    results.add("inference", KEY, runtimes={**runtimes, "ours": {"failed": "its logits are 1.0e-02 off"}})
    text = page([results], [])
    line = line_of(text, "| RepVGG_A0 |")
    assert line.count("failed (") == 5  # three were not selected
    assert line.endswith("| - |")
    assert "OpenVINO: ModuleNotFoundError: No module named 'openvino'" in text
    assert "ours: its logits are 1.0e-02 off" in text


@pytest.mark.parametrize(("background_load", "provisional"), [(0.02, False), (0.5, True)])
def test_the_page_says_when_the_machine_was_busy(results, background_load, provisional):
    results.add("inference", KEY, background_load=background_load, runtimes={"ours": timed(3.0)})
    assert ("provisional" in page([results], [])) == provisional


def test_the_page_says_which_targets_were_missed(results):
    results.add("inference", KEY, runtimes={"ours": timed(3.0)})
    results.add("targets", {"of": "inference", "target": "fast enough"}, value=0.9, bound=1.0)
    results.add("targets", {"of": "inference", "target": "small enough"}, value=1.2, bound=1.15)
    text = page([results], [])
    assert line_of(text, "| fast enough |").endswith("| yes |")
    assert line_of(text, "| small enough |").endswith("| **no** |")


def test_results_are_plain_json(results):
    results.add("loading", {"case": "ours"}, seconds=summarize([0.1, 0.2, 0.4]))
    (row,) = json.loads(results.path.read_text())["rows"]
    assert row["seconds"] == {"median": 0.2, "min": 0.1, "q1": 0.1, "q3": 0.4, "samples": 3}


def test_int8_is_compared_with_the_fastest_peer_that_ran_and_shows_errors(results):
    cells = {
        "ours": timed(8.0),
        "onnxruntime int8": {**timed(6.0), "error": 2e-2},
        "openvino int8": {"failed": "no such file"},
        "ours int8": {**timed(3.0), "error": 4e-3},
    }
    results.add("int8", KEY, runtimes=cells)
    line = line_of(page([results], ()), "| RepVGG_A0, 2 threads")
    assert line == "| RepVGG_A0, 2 threads | 3.0 | 6.0 | failed | 8.0 | 0.50 | 4.0e-03 | 2.0e-02 | - |"
