"""The workflows run what `./dev` and `.ci/run` do, on every supported Python, and can do no more than they must.

The kind of fault: a workflow that drifts from what developers run, or that gives a token to code that does not need it.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, Set

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}
WORKFLOWS: Dict[str, Dict[Any, Any]] = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
JOBS = [(name, job) for name, workflow in WORKFLOWS.items() for job in workflow["jobs"]]


def steps(name: str, job: str) -> Iterator[Dict[str, Any]]:
    yield from WORKFLOWS[name]["jobs"][job]["steps"]


def dev_job(command: str) -> str:
    """Return the job of a ./dev command, without the arguments that differ between callers."""
    job, *arguments = command.split()
    return "test --floors" if arguments[:1] == ["--floors"] else job


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_a_job_runs_nothing_but_dev(name: str, job: str) -> None:
    usage = subprocess.run([str(ROOT / "dev"), "help"], stdout=subprocess.PIPE, text=True, check=True).stdout
    for step in steps(name, job):
        if "run" in step:
            match = re.fullmatch(r'\./dev ([\w-]+)( --floors| "\$GITHUB_REF_NAME")?', step["run"])
            assert match, f"{step['run']} is not a ./dev command"
            assert re.search(rf"^  {match.group(1)} ", usage, re.MULTILINE)


def test_the_workflows_and_the_local_run_do_the_same() -> None:
    in_workflows = {dev_job(step["run"][6:]) for job in JOBS for step in steps(*job) if "run" in step}
    local = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    in_local: Set[str] = set()
    for command in re.findall(r"(?:\./dev|on_python [\d.]+) ([a-z][\w -]*)", local):
        if not command.startswith("which-python"):
            in_local.add(dev_job(command))
    assert in_workflows == in_local


def test_the_tests_run_on_every_python_that_is_supported() -> None:
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    strategy = WORKFLOWS["tests"]["jobs"]["tests"]["strategy"]["matrix"]
    assert strategy["python"] == classifiers
    assert {row["os"] for row in strategy["include"]} == {"ubuntu-24.04-arm", "macos-14"}
    tests = [step for step in steps("tests", "tests") if "run" in step]
    assert all(step["env"]["REPVGG_ZOO_PYTHON"] == "${{ steps.python.outputs.python-path }}" for step in tests)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_action_is_pinned_to_a_commit(name: str) -> None:
    for line in TEXTS[name].splitlines():
        if "uses:" in line:
            assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_a_job_has_no_permission_that_it_does_not_need(name: str, job: str) -> None:
    publishes = (name, job) == ("release", "publish")
    permissions = {"contents": "read", "id-token": "write", "attestations": "write"} if publishes else None
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    assert WORKFLOWS[name]["jobs"][job].get("permissions") == permissions
    assert "secrets." not in TEXTS[name] and "pull_request_target" not in TEXTS[name]
    for step in steps(name, job):
        if "actions/checkout" in step.get("uses", ""):
            assert step["with"] == {"persist-credentials": False}


def test_a_tag_is_tested_built_attested_and_published_by_the_trusted_publisher() -> None:
    release = WORKFLOWS["release"]
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads "on" as true
    assert [job.get("needs") for job in release["jobs"].values()] == [None, "verify", "build"]
    runs = {job: [step["run"] for step in steps("release", job) if "run" in step] for job in release["jobs"]}
    assert runs == {
        "verify": ["./dev check", "./dev test"],
        "build": ['./dev build "$GITHUB_REF_NAME"'],
        "publish": [],  # what can sign and publish runs no code of ours, nor of a requirement
    }
    publish = release["jobs"]["publish"]
    assert publish["environment"]["name"] == "pypi"
    actions = [step["uses"].partition("@")[0] for step in publish["steps"]]
    assert actions == [
        "actions/download-artifact",
        "actions/attest-build-provenance",
        "pypa/gh-action-pypi-publish",
    ]
    assert "with" not in publish["steps"][-1]  # neither a user nor a token
