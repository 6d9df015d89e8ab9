"""The requirement ranges of this package, which pyproject.toml states and nothing else repeats."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import List, Mapping, NamedTuple, Optional

DISTRIBUTION = "repvgg-zoo"
# Import names that are not the distribution's.
IMPORT_NAMES: Mapping[str, str] = {"opencv-python": "cv2", "pillow": "PIL", "pyyaml": "yaml"}


class Requirement(NamedTuple):
    """A distribution and its range of versions; ``str`` is what pip takes, such as "numpy>=1.21.2,<2"."""

    name: str
    lower: Optional[str]
    upper: Optional[str]

    def __str__(self) -> str:
        bounds = [f">={self.lower}" if self.lower else "", f"<{self.upper}" if self.upper else ""]
        return self.name + ",".join(filter(None, bounds))

    @property
    def import_name(self) -> str:
        """The name of its module."""
        return IMPORT_NAMES.get(self.name, self.name)


@functools.lru_cache(maxsize=1)
def requirements() -> Mapping[str, Requirement]:
    """Return all requirements by the name of the distribution.

    A checkout's pyproject.toml comes first, as another version of this package may be installed beside it.
    """
    root = Path(__file__).resolve().parents[1]
    parsed = map(_parse, _stated_in_checkout(root / "pyproject.toml") or _stated_in_metadata())
    return {requirement.name: requirement for requirement in parsed}


def requirement(name: str) -> Requirement:
    """Return the requirement on a distribution or a module, such as "numpy" or "cv2"; of others any version will do."""
    distributions = {module: distribution for distribution, module in IMPORT_NAMES.items()}
    distribution = distributions.get(name, name)
    return requirements().get(distribution, Requirement(distribution, None, None))


def _stated_in_checkout(pyproject: Path) -> List[str]:
    try:
        text = pyproject.read_text(encoding="utf-8")
    except OSError:
        return []
    if f'name = "{DISTRIBUTION}"' not in text:
        return []
    table = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'^\s*"([^"]+)"', table.group(1), re.MULTILINE) if table else []


def _stated_in_metadata() -> List[str]:
    from importlib import metadata  # here, as it takes 20 ms

    try:
        return [text for text in metadata.requires(DISTRIBUTION) or [] if "extra ==" not in text]
    except metadata.PackageNotFoundError:  # copied without its metadata
        return []


def _parse(text: str) -> Requirement:
    name = re.match(r"[A-Za-z0-9._-]+", text)
    assert name is not None, text
    bounds = dict(re.findall(r"(>=|<)\s*([0-9][0-9A-Za-z.]*)", text.partition(";")[0]))
    return Requirement(name.group(), bounds.get(">="), bounds.get("<"))
