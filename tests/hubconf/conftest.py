"""The stand-in for GitHub that megengine.hub talks to."""

from __future__ import annotations

from typing import Iterator

import pytest

from .github import GitHub, archive


@pytest.fixture(scope="module")
def github(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHub]:
    running = GitHub(tmp_path_factory.mktemp("github"))
    running.publish(archive())
    yield running
    running.close()
