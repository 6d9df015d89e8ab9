"""Registries that are registered for one test."""

from __future__ import annotations

from typing import Any, Callable, Iterator, List

import pytest

import repvgg_zoo


@pytest.fixture
def register() -> Iterator[Callable[[Any], None]]:
    """``repvgg_zoo.register`` that is undone after the test."""
    sources: List[Any] = []

    def add(source: Any) -> None:
        repvgg_zoo.register(source)
        sources.append(source)

    yield add
    for source in sources:
        repvgg_zoo.unregister(source)
