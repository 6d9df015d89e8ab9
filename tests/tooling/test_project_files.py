"""The files for visitors of the repository say what the package says: citation, issue forms, security, contributing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import repvgg_zoo
from tools.build import release_problem
from tools.repository import repository

ROOT = Path(__file__).resolve().parents[2]
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
TYPES = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == repvgg_zoo.__version__ and citation["license"] == "MIT"
    assert citation["repository-code"] == f"https://github.com/{repository()}"
    (paper,) = citation["references"]
    assert paper["title"] == "RepVGG: Making VGG-style ConvNets Great Again" and paper["url"].endswith("2101.03697")
    assert [author["family-names"] for author in paper["authors"]] == ["Ding", "Zhang", "Ma", "Han", "Ding", "Sun"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_an_issue_form_is_valid_and_asks_for_the_doctors_findings(form: Path) -> None:
    fields = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= fields.keys() <= {"name", "description", "title", "labels", "body"}
    ids = [field["id"] for field in fields["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids)) and {field["type"] for field in fields["body"]} <= TYPES
    assert all("label" in field["attributes"] for field in fields["body"])
    assert "repvgg-zoo doctor --json" in form.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "README.md", "README.zh-CN.md"])
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        assert (ROOT / path).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings], target


@pytest.mark.parametrize(
    "name", ["CONTRIBUTING.md", ".github/workflows/tests.yml", "docs/installation.md", "README.md"]
)
def test_every_dev_command_of_a_page_exists(name: str) -> None:
    usage = (ROOT / "dev").read_text(encoding="utf-8")
    commands = r"(?:^|`|run: )\./dev ([a-z][\w-]+)"
    for job in re.findall(commands, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE):
        assert job == "help" or re.search(rf"^  {job} ", usage, re.MULTILINE), job


@pytest.mark.parametrize(
    ("tag", "changelog", "citation", "problem"),
    [
        ("v1.2.0", "## 1.2.0 (2026-12-01)", "1.2.0", None),
        ("v1.2.1", "## 1.2.0 (2026-12-01)", "1.2.0", "the tag v1.2.1 is not v1.2.0"),
        ("1.2.0", "## 1.2.0 (2026-12-01)", "1.2.0", "the tag 1.2.0 is not v1.2.0"),
        ("v1.2.0", "## 1.2.0 (unreleased)", "1.2.0", "CHANGELOG.md has no heading"),
        ("v1.2.0", "## 1.2.0 (2026-12-01)", "1.1.0", "CITATION.cff does not have version"),
    ],
)
def test_a_release_needs_its_version_everywhere(
    tmp_path: Path, tag: str, changelog: str, citation: str, problem: str
) -> None:
    (tmp_path / "repvgg_zoo").mkdir()
    (tmp_path / "repvgg_zoo" / "__init__.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{changelog}\n")
    (tmp_path / "CITATION.cff").write_text(f"type: software\nversion: {citation}\nlicense: MIT\n")
    result = release_problem(tag, tmp_path)
    assert result is None if problem is None else result is not None and result.startswith(problem)
