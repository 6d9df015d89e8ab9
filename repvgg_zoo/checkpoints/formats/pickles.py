"""Read pickles as data: opcodes build plain values, and only globals from a format's allow-list mean anything.

``pickle.Unpickler`` with a guarded ``find_class`` runs no foreign code either, but a hostile file can still make it
allocate by a declared size, hash a tuple a million levels deep (which overflows the C stack) or multiply one string by
calling a harmless function often; and it copies every array. Here each of these has a limit, and large strings stay
views of the buffer. pickle_machine.py has the interpreter.
"""

from __future__ import annotations

import struct
from typing import Any, Callable, Dict, List, Mapping, Optional, Set, Tuple

from ...errors import UnsafePickleError
from .file_buffer import Buffer, MalformedFile, UnsupportedFile
from .pickle_machine import Machine
from .pickle_values import Builder, Global, NotRead, Placeholder

MAX_NODES = 1_000_000  # objects of the payload; shared ones count at each use
MAX_DEPTH = 64


class Budget:
    """The bytes that builders may allocate: a pickle can call them often with one memoized string."""

    def __init__(self, size: int) -> None:
        self.remaining = size

    def spend(self, size: int) -> None:
        self.remaining -= size
        if self.remaining < 0:
            raise UnsupportedFile("it would unpack to many times its size")


def load(
    data: Buffer,
    start: int,
    allowed_globals: Mapping[str, Builder],
    persistent_load: Optional[Callable[[Any], Any]] = None,
) -> Tuple[Any, int]:
    """Read one pickle of protocol 0 to 5 that begins at ``start``: its value, still with placeholders, and its end.

    ``allowed_globals`` maps "module.name" to what is called in its place; ``persistent_load`` reads persistent ids, as
    in pickle.Unpickler. What comes of other globals are Blocked placeholders, which ``resolve`` turns into NotRead.
    Raises MalformedFile, or UnsafePickleError (whose path the caller adds) with all such globals if there are any.
    """
    machine = Machine(data, start, allowed_globals, persistent_load)
    return _run(machine), machine.position


def load_plain(data: Buffer, start: int) -> Tuple[Any, int]:
    """Read one pickle that must not name globals, as those around the payload in torch's legacy format."""
    machine = Machine(data, start, {}, None)
    value = _run(machine)
    if machine.blocked:
        raise _unsafe(machine)
    return value, machine.position


def _run(machine: Machine) -> Any:
    problem: Optional[MalformedFile] = None
    value = None
    try:
        value = machine.run()
    except MalformedFile as error:
        problem = error
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError, struct.error, RecursionError) as error:
        # A builder got arguments that no writer passes, or an opcode found no operand.
        problem = MalformedFile(f"the pickle is damaged near byte {machine.position} ({type(error).__name__})")
        problem.__cause__ = error
    if problem is not None and machine.blocked:  # their names say more than the place in the pickle
        raise _unsafe(machine, damaged=problem.damaged)
    if problem is not None:
        raise problem
    return value


def _unsafe(machine: Machine, *, damaged: bool = False) -> UnsafePickleError:
    return UnsafePickleError(
        "the pickle names globals outside the allow-list", blocked=list(machine.blocked), damaged=damaged
    )


def blocked_names(value: Any) -> List[str]:
    """Return the names of all globals that were not read in a resolved payload, or in a part of one."""
    names: Dict[str, None] = {}
    done: Set[int] = set()

    def visit(part: Any) -> None:
        if isinstance(part, NotRead):
            names[part.name] = None
        elif isinstance(part, (dict, list, tuple)) and id(part) not in done:
            done.add(id(part))
            for item in part.values() if isinstance(part, dict) else part:
                visit(item)

    visit(value)
    return list(names)


def resolve(value: Any) -> Any:
    """Return the payload with arrays and scalars for placeholders.

    Shared parts stay shared, yet each use counts: ``[x, x]`` forty levels deep is small in memory and takes forever
    to walk. Raises MalformedFile beyond the limits and for a cycle.
    """
    done: Dict[int, Tuple[Any, int]] = {}
    try:
        result, _ = _resolve(value, done, set(), 0)
    except MalformedFile:
        raise
    except (ValueError, OverflowError, TypeError) as error:  # NumPy's, about shapes beyond what it can address
        raise MalformedFile(f"an array is damaged ({type(error).__name__})") from error
    return result


def _resolve(value: Any, done: Dict[int, Tuple[Any, int]], path: Set[int], depth: int) -> Tuple[Any, int]:
    if isinstance(value, Global):
        return value.name, 1
    if not isinstance(value, (dict, list, tuple, memoryview, Placeholder)):
        return value, 1
    if type(value) in (dict, list, tuple) and not value:
        return value, 1  # not noted as done, which would take more memory than it does itself
    key = id(value)
    if key in done:
        return done[key]
    if key in path:
        raise UnsupportedFile("an object contains itself")
    if depth > MAX_DEPTH:
        raise UnsupportedFile(f"objects are nested more than {MAX_DEPTH} levels deep")
    path.add(key)
    nodes = 1
    result: Any
    if isinstance(value, Placeholder):
        result = value.resolve()
    elif isinstance(value, memoryview):
        result = bytes(value)  # once, however often the pickle names it
    else:
        parts = []
        for part in value.values() if isinstance(value, dict) else value:
            finished, count = _resolve(part, done, path, depth + 1)
            parts.append(finished)
            nodes += count
            if nodes > MAX_NODES:
                raise UnsupportedFile(f"it would unpack to more than {MAX_NODES} objects")
        result = dict(zip(value, parts)) if isinstance(value, dict) else type(value)(parts)
    path.discard(key)
    done[key] = result, nodes
    return result, nodes
