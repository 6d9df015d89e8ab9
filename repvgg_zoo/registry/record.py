"""``@record``: a frozen dataclass that costs next to nothing to define, for every listing waits for all of them.

The module ``dataclasses`` imports ``inspect`` and compiles half a dozen functions for each class, which takes as long
as to read the whole registry. Records share their methods instead. Who asks one for its fields or its signature
(``dataclasses.replace`` and ``asdict``, ``inspect``, ``help``) is answered by a real dataclass, made at that moment.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Callable, Mapping, Tuple, TypeVar, get_type_hints

T = TypeVar("T")
__all__ = ["is_record", "names_and_defaults", "record", "replace"]

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:

    def record(*, frozen, eq=True):
        """Makes a record of an annotated class; ``frozen`` is said for the reader, as there is no other kind."""
        assert frozen

        def made(cls):
            cls._names = dict.fromkeys(cls.__annotations__)  # in order, and its keys are a set
            cls._defaults = {name: vars(cls)[name] for name in cls._names if name in vars(cls)}
            cls._required = cls._names.keys() - cls._defaults.keys()
            cls.__init__, cls.__repr__, cls.__setattr__, cls.__delattr__ = _init, _repr, _refuse, _refuse
            if eq:
                cls.__eq__, cls.__hash__ = _eq, _hash
            cls.__dataclass_fields__ = _Asked(lambda cls: _dataclass(cls).__dataclass_fields__)
            cls.__signature__ = _Asked(_signature)
            return cls

        return made


def is_record(kind: Any) -> bool:
    """Whether this is the class of a record."""
    return hasattr(kind, "_required")


def names_and_defaults(kind: Any) -> Tuple[Tuple[str, ...], Mapping[str, Any]]:
    """The fields of a record's class in their order, and the values of those that need not be given."""
    return tuple(kind._names), kind._defaults


def replace(instance: T, **changes: Any) -> T:
    """A copy with some other values: ``dataclasses.replace`` without the import."""
    return type(instance)(**{**vars(instance), **changes})


def _init(self: Any, *values: Any, **named: Any) -> None:
    # By name is the registry's way, and the quick one; anything else may be a mistake, for which Python has the words.
    if values or not self._required <= named.keys() <= self._names.keys():
        named = _signature(self.__class__).bind(*values, **named).arguments
    vars(self).update(self._defaults)
    vars(self).update(named)


def _repr(self: Any) -> str:
    return f"{type(self).__qualname__}({', '.join(f'{name}={vars(self)[name]!r}' for name in self._names)})"


def _eq(self: Any, other: Any) -> Any:
    return vars(self) == vars(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash(tuple(vars(self)[name] for name in self._names))


def _refuse(self: Any, name: str, value: Any = None) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"{type(self).__name__}.{name} cannot be changed; dataclasses.replace() makes a copy")


class _Asked:
    """An attribute of a class that is worked out when somebody asks for it."""

    def __init__(self, answer: Callable[[type], Any]) -> None:
        self.answer = answer

    def __get__(self, instance: Any, owner: type) -> Any:
        return self.answer(owner)


@functools.lru_cache(maxsize=None)
def _signature(cls: Any) -> Any:
    import inspect

    return inspect.signature(_dataclass(cls))


@functools.lru_cache(maxsize=None)
def _dataclass(cls: Any) -> Any:
    import dataclasses

    def default(value: Any) -> Any:
        # From 3.11 on, a default without a hash, such as an empty mapping, is taken for a mistake.
        return value if value.__hash__ else dataclasses.field(default_factory=lambda: value)

    hints = get_type_hints(cls)
    defaults = {name: default(value) for name, value in cls._defaults.items()}
    return dataclasses.make_dataclass(cls.__name__, [(name, hints[name]) for name in cls._names], namespace=defaults)
