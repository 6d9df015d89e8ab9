"""Module, Sequential: MegEngine's, built and searched several times as quickly.

MegEngine asks of everything that a module holds whether it is a module, and goes through ABCMeta for the answer: when
it is set, when the module becomes part of another, and at each search for tensors. Nearly all of it are numbers, flags
and names, which are passed over here. It matters where no weight is copied: this took longer than all else.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any, Optional, Set, TypeVar

import megengine.module as M
from megengine import Tensor

Made = TypeVar("Made", bound=M.Module)

PLAIN = frozenset((int, float, bool, str, type(None)))
HOLDERS = frozenset((Tensor, M.Module, list, tuple, dict))


class Module(M.Module):
    """Behaves as MegEngine's does."""

    def __setattr__(self, name: str, value: Any) -> None:
        plain = type(value) in PLAIN or _is_plain(value)
        if plain and name not in self.__dict__.get("_modules", ()):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _flatten(self, *, with_parent: bool = False, seen: Optional[Set[int]] = None, **options: Any) -> Any:
        if with_parent:
            return super()._flatten(with_parent=True, seen=seen, **options)
        holding = {
            name: value for name, value in vars(self).items() if type(value) not in PLAIN and not _is_plain(value)
        }
        seen = {id(self)} if seen is None else seen
        return M.Module._flatten(SimpleNamespace(**holding), seen=seen, **options)


class Sequential(Module, M.Sequential):
    """MegEngine's, to which modules can be appended; one that is part of a network already gives them their names."""

    def append(self, module: M.Module) -> None:
        key = str(len(self))
        setattr(self, key, module)
        self.layer_keys.append(key)


def twin(module: Made) -> Made:
    """A module like this one, with parameters of its own that have the same values; quicker than to build another."""
    made = object.__new__(type(module))
    for name, value in vars(module).items():
        kinds = type(value).__mro__
        if Tensor in kinds:
            value = type(value)(value)  # on the same memory, until one of them is given another value
        elif kinds[0] not in PLAIN:
            value = twin(value) if M.Module in kinds else copy.copy(value)
        vars(made)[name] = value
    vars(made).update(_name=None, _short_name=None)  # it is part of nothing yet
    return made


def _is_plain(value: Any) -> bool:
    """Whether MegEngine would find no tensor or module in it."""
    kind = type(value)
    if kind in PLAIN or HOLDERS.isdisjoint(kind.__mro__):
        return True
    if kind is tuple or kind is list:
        return all(map(_is_plain, value))
    return kind is OrderedDict and not value
