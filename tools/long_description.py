"""The package's long description for hatchling: README.md with absolute links, which work outside the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?://|#|mailto:)(?P<path>[^)\s]+)\)")


class LongDescription(MetadataHookInterface):
    """Sets the field ``readme``."""

    def update(self, metadata: Dict[str, Any]) -> None:
        root = Path(self.root)
        init = (root / "repvgg_zoo" / "__init__.py").read_text(encoding="utf-8")
        version = re.search(r'^__version__ = "(.+)"$', init, re.MULTILINE)
        assert version is not None
        text = (root / "README.md").read_text(encoding="utf-8")
        links = absolute_links(text, metadata["urls"]["Source"], f"v{version.group(1)}")
        metadata["readme"] = {"content-type": "text/markdown", "text": links}


def absolute_links(text: str, repository: str, ref: str) -> str:
    """Return Markdown whose links to files of the repository are URLs of its release ``ref``."""
    raw = repository.replace("https://github.com/", "https://raw.githubusercontent.com/", 1)

    def absolute(match: re.Match[str]) -> str:
        base = f"{raw}/{ref}" if match["image"] else f"{repository}/blob/{ref}"
        return f"{match['image']}[{match['text']}]({base}/{match['path']})"

    return LINK.sub(absolute, text)
