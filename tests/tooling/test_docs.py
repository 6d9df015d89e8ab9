"""The docs are complete where the code has a list of its own."""

from __future__ import annotations

import re
from pathlib import Path

from repvgg_zoo._settings import VARIABLES

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_table_of_settings_has_every_environment_variable() -> None:
    text = (DOCS / "guides" / "downloads.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(REPVGG_ZOO_\w+)` \|", text, re.MULTILINE)) == sorted(VARIABLES)
