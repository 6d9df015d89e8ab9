"""What a pickle's values are besides plain ones: the globals that it names, and what is complete only later."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

from .file_buffer import MalformedFile

Builder = Callable[..., Any]


class Global:
    """A global that a pickle names; ``build``, from the format's allow-list, is what is called in its place."""

    def __init__(self, name: str, build: Builder) -> None:
        self.name = name
        self.build = build


class Placeholder:
    """A value that is complete only after its state (numpy) or the whole pickle (torch) has been read."""

    def set_state(self, state: Any) -> None:
        raise MalformedFile(f"a state for a {type(self).__name__.lower()}, which has none")

    def resolve(self) -> Any:
        raise MalformedFile(f"a {type(self).__name__.lower()} by itself, which is not a value")


class NotRead(NamedTuple):
    """What the payload has in place of a value that a blocked ``name`` stands for."""

    name: str


class Blocked(Placeholder):
    """A global that is not allowed, or whatever a pickle makes of one: calls, states and items of it are dropped."""

    def __init__(self, name: str) -> None:
        self.value = NotRead(name)

    def set_state(self, state: Any) -> None:
        pass

    def resolve(self) -> NotRead:
        return self.value
