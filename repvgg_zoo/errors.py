"""The exception tree: every error carries the data needed to react and a hint that says what to do."""

from __future__ import annotations

import os
from typing import Any, Dict, Optional, Sequence, Tuple, Type, Union

PathLike = Union[str, "os.PathLike[str]"]


class ZooError(Exception):
    """Any failure that repvgg_zoo reports to its user.

    Attributes: ``message`` (one sentence), ``hint`` (what to do), and, where they apply, ``path``, ``url``,
    ``expected`` and ``actual``. ``str(error)`` shows the message, then the hint on a line of its own.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: Optional[str] = None,
        path: Optional[PathLike] = None,
        url: Optional[str] = None,
        expected: Any = None,
        actual: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.path = None if path is None else os.fspath(path)
        self.url = url
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"

    # Errors cross process borders (multiprocessing, pytest-xdist); the default reduction would call
    # __init__ with the message alone and lose the rest.
    def __reduce__(self) -> Tuple[Any, ...]:
        return _rebuild, (type(self), self.message, dict(self.__dict__))


def _rebuild(cls: Type[ZooError], message: str, state: Dict[str, Any]) -> ZooError:
    error = cls.__new__(cls, message)
    error.__dict__.update(state)
    error.args = (message,)
    return error


class ArgumentError(ZooError, ValueError):
    """An argument has a value that cannot work; ``expected`` and ``actual`` say which would and which was given."""


class DependencyError(ZooError, ImportError):
    """A package that this call needs is missing or of a version that cannot work."""


# The registry ------------------------------------------------------------------------------------------------


class RegistryError(ZooError, ValueError):
    """A registry file is not valid; ``path`` and ``line`` (1-based, if known) say where."""

    def __init__(self, message: str, *, line: Optional[int] = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.line = line


class UnknownModelError(ZooError, LookupError):
    """No variant or checkpoint has this name; ``suggestions`` holds the closest ones."""

    def __init__(self, message: str, *, name: str, suggestions: Sequence[str] = (), **data: Any) -> None:
        super().__init__(message, **data)
        self.name = name
        self.suggestions = tuple(suggestions)


class NoWeightsError(ZooError, LookupError):
    """The variant is known, but no credible pretrained weights of it are published."""


class PluginError(ZooError):
    """A plug-in cannot be used; ``plugin`` is its namespace, ``distribution`` what was installed, ``__cause__`` why."""

    def __init__(self, message: str, *, plugin: str, distribution: Optional[str] = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.plugin = plugin
        self.distribution = distribution


# The hub loader ----------------------------------------------------------------------------------------------


class DownloadError(ZooError, OSError):
    """No source gave the file; ``attempts`` holds one line for each try."""

    def __init__(self, message: str, *, attempts: Sequence[str] = (), **data: Any) -> None:
        super().__init__(message, **data)
        self.attempts = tuple(attempts)


class OfflineError(DownloadError):
    """The file is not at hand and the network may not be used; ``attempts`` holds the places looked in."""


class IntegrityError(ZooError, OSError):
    """A file is not the one that the registry describes; ``expected`` and ``actual`` are digests or sizes."""


class UnverifiedError(ZooError):
    """The publisher states no digest for this file and the user has not allowed unverified files."""


class CacheError(ZooError, OSError):
    """The cache folder cannot be used; ``path`` says which."""


class DiskFullError(CacheError):
    """The disk lacks room; ``needed`` and ``free`` are in bytes."""

    def __init__(self, message: str, *, needed: int, free: int, **data: Any) -> None:
        super().__init__(message, **data)
        self.needed = needed
        self.free = free


class BundleError(ZooError, ValueError):
    """A bundle is damaged, hostile, or not a bundle."""


# Checkpoints and networks ------------------------------------------------------------------------------------


class CheckpointFormatError(ZooError, ValueError):
    """A checkpoint file is damaged or of an encoding that is not known."""


class UnsafePickleError(CheckpointFormatError):
    """A pickle names globals outside the allow-list, so it was not read; ``blocked`` lists them."""

    def __init__(self, message: str, *, blocked: Sequence[str], **data: Any) -> None:
        super().__init__(message, **data)
        self.blocked = tuple(blocked)


class LayoutError(ZooError, ValueError):
    """The keys of a checkpoint follow no known layout, or not the one that was asked for."""


class StateError(ZooError, ValueError):
    """A checkpoint does not fit a network, which was left untouched.

    ``missing`` and ``unexpected`` are keys; ``misshapen`` are (key, shape in the network, shape in the file).
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshapen: Sequence[Tuple[str, Tuple[int, ...], Tuple[int, ...]]] = (),
        **data: Any,
    ) -> None:
        super().__init__(message, **data)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.misshapen = tuple(misshapen)


class FormError(ZooError, ValueError):
    """The form (train or deploy) of a checkpoint or network does not allow what was asked."""


class EquivalenceError(ZooError, ArithmeticError):
    """Two forms of a network disagree by more than the bound, or the weights cannot be fused."""


class ClosedError(ZooError, ValueError):
    """A compiled network was called after it was closed, or in a process forked from its own."""
