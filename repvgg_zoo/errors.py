"""The exceptions of repvgg_zoo: each carries the data needed to react and a hint that says what to do.

::

    ZooError
    ├── ArgumentError (ValueError)            an argument has a value that cannot work
    │   └── MissingFileError (OSError)        a file does not exist
    ├── DependencyError (ImportError)         a package is missing or of a wrong version
    ├── UnavailableError (AttributeError)     an attribute of repvgg_zoo needs a package that is missing
    ├── RegistryError (ValueError)            a registry file is not valid
    ├── UnknownModelError (LookupError)       no variant or checkpoint has this name
    ├── NoWeightsError (LookupError)          the variant has no published weights
    ├── PluginError                           a plugin cannot be used
    ├── DownloadError (OSError)               all sources failed
    │   └── OfflineError                      not in the cache, and the network may not be used
    ├── IntegrityError (OSError)              a file is not the one that the registry describes
    ├── UnverifiedError                       the publisher states no digest
    ├── CacheError (OSError)                  the cache folder cannot be used
    │   └── DiskFullError                     the disk is full
    ├── BundleError (ValueError)              a bundle is damaged, or not a bundle
    ├── CheckpointFormatError (ValueError)    a file is damaged or of an unknown encoding
    │   └── UnsafePickleError                 a pickle asks for code
    ├── LayoutError (ValueError)              the keys follow no known layout
    ├── StateError (ValueError)               a checkpoint does not fit a network
    ├── FormError (ValueError)                train or deploy form does not allow this
    ├── EquivalenceError (ArithmeticError)    two forms disagree, or cannot be fused
    ├── QuantizationError (ArithmeticError)   a quantized network would be too inaccurate
    ├── TrainingError (ArithmeticError)       training diverged
    ├── ClosedError (ValueError)              a compiled network was closed
    └── WorkerLostError (RuntimeError)        workers of a run end again and again, or none can be started
"""

from __future__ import annotations

import os
from typing import Any, Dict, Optional, Sequence, Tuple, Type, Union

from ._escape import escape, escape_message

PathLike = Union[str, "os.PathLike[str]"]


class ZooError(Exception):
    """Base class of all errors that repvgg_zoo raises for its users.

    Attributes: ``message`` (one sentence), ``hint`` (what to do), and, where they apply, ``path``, ``url``,
    ``expected`` and ``actual``. ``str(error)`` shows the message, the path if the message does not, and the hint, each
    on a line of its own. Message and hint are escaped, as they may quote a file or a server; the other attributes are
    not.
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
        self.message = escape_message(message)
        self.hint = None if hint is None else escape_message(hint)
        super().__init__(self.message)
        self.path = None if path is None else os.fspath(path)
        self.url = url
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        lines = [self.message]
        if self.path is not None and escape(str(self.path)) not in self.message:
            lines.append(f"path: {escape(str(self.path))}")
        if self.hint is not None:
            lines.append(f"hint: {self.hint}")
        return "\n  ".join(lines)

    # Errors are pickled between processes (multiprocessing, pytest-xdist); the default reduction would call
    # __init__ with the message alone and lose the other fields.
    def __reduce__(self) -> Tuple[Any, ...]:
        # ImportError keeps its path where __dict__ does not have it.
        return _rebuild, (type(self), self.message, {**self.__dict__, "path": self.path})


def _rebuild(cls: Type[ZooError], message: str, state: Dict[str, Any]) -> ZooError:
    # Of a class that is also a ValueError, cls.__new__ is that of ValueError, which makes no OSError.
    error = OSError.__new__(cls, message) if issubclass(cls, OSError) else cls.__new__(cls, message)
    for name, value in state.items():
        setattr(error, name, value)
    error.args = (message,)
    return error


class ArgumentError(ZooError, ValueError):
    """An argument has a value that cannot work; ``expected`` and ``actual`` say what would work and what was passed."""


class MissingFileError(ArgumentError, FileNotFoundError):
    """The file that an argument names, ``path``, does not exist."""


class DependencyError(ZooError, ImportError):
    """A package that this call needs is missing or of a version that does not work."""


class UnavailableError(ZooError, AttributeError):
    """An attribute of ``repvgg_zoo`` needs a package that is missing; ``__cause__`` is the DependencyError.

    So ``hasattr(repvgg_zoo, "create")`` is False without MegEngine; ``from repvgg_zoo import create`` raises the
    DependencyError itself.
    """


# The registry ------------------------------------------------------------------------------------------------


class RegistryError(ZooError, ValueError):
    """A registry file is not valid; ``path`` and ``line`` (1-based, if known) say where."""

    def __init__(self, message: str, *, line: Optional[int] = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.line = line


class UnknownModelError(ZooError, LookupError):
    """No variant or checkpoint has this name; ``suggestions`` holds the closest names."""

    def __init__(self, message: str, *, name: str, suggestions: Sequence[str] = (), **data: Any) -> None:
        super().__init__(message, **data)
        self.name = name
        self.suggestions = tuple(suggestions)


class NoWeightsError(ZooError, LookupError):
    """The variant is known, but no pretrained weights of it are published."""


class PluginError(ZooError):
    """A plugin cannot be used; ``plugin`` is its namespace, ``distribution`` its package, ``__cause__`` the reason."""

    def __init__(self, message: str, *, plugin: str, distribution: Optional[str] = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.plugin = plugin
        self.distribution = distribution


# The hub loader ----------------------------------------------------------------------------------------------


class DownloadError(ZooError, OSError):
    """All sources of a file failed; ``attempts`` holds one line for each attempt."""

    def __init__(self, message: str, *, attempts: Sequence[str] = (), **data: Any) -> None:
        super().__init__(message, **data)
        self.attempts = tuple(attempts)


class OfflineError(DownloadError):
    """The file is not in the cache and the network may not be used; ``attempts`` holds the paths that were searched."""


class IntegrityError(ZooError, OSError):
    """A file is not the one that the registry describes; ``expected`` and ``actual`` are digests or sizes."""


class UnverifiedError(ZooError):
    """The publisher states no digest for this file and the user has not allowed unverified files."""


class CacheError(ZooError, OSError):
    """The cache folder at ``path`` cannot be used."""


class DiskFullError(CacheError):
    """The disk is full; ``needed`` and ``free`` are in bytes."""

    def __init__(self, message: str, *, needed: int, free: int, **data: Any) -> None:
        super().__init__(message, **data)
        self.needed = needed
        self.free = free


class BundleError(ZooError, ValueError):
    """A bundle is damaged, malicious, or not a bundle."""


# Checkpoints and networks ------------------------------------------------------------------------------------


class CheckpointFormatError(ZooError, ValueError):
    """A checkpoint file is damaged or of an unknown encoding.

    ``damaged`` is False for a file that may well be whole, but of a kind that is not read.
    """

    def __init__(self, message: str, *, damaged: bool = True, **data: Any) -> None:
        super().__init__(message, **data)
        self.damaged = damaged


class UnsafePickleError(CheckpointFormatError):
    """A pickle names globals outside the allow-list, so it was not read; ``blocked`` lists them."""

    def __init__(self, message: str, *, blocked: Sequence[str], **data: Any) -> None:
        super().__init__(message, **data)
        self.blocked = tuple(blocked)


class LayoutError(ZooError, ValueError):
    """The keys of a checkpoint follow no known layout, or not the requested one."""


class StateError(ZooError, ValueError):
    """A checkpoint does not fit a network, which was left untouched.

    ``missing`` and ``unexpected`` are keys; ``shape_mismatches`` are (key, shape in the network, shape in the file).
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        shape_mismatches: Sequence[Tuple[str, Tuple[int, ...], Tuple[int, ...]]] = (),
        **data: Any,
    ) -> None:
        super().__init__(message, **data)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.shape_mismatches = tuple(shape_mismatches)


class FormError(ZooError, ValueError):
    """The form (train or deploy) of a checkpoint or network does not allow the request."""


class EquivalenceError(ZooError, ArithmeticError):
    """Two forms of a network disagree by more than the bound, or the weights cannot be fused."""


class QuantizationError(ZooError, ArithmeticError):
    """A network cannot be quantized within the accuracy that was asked for; ``blocks`` are the worst ones, worst first.

    ``expected`` and ``actual`` are signal-to-noise ratios in dB.
    """

    def __init__(self, message: str, *, blocks: Sequence[str] = (), **data: Any) -> None:
        super().__init__(message, **data)
        self.blocks = tuple(blocks)


class TrainingError(ZooError, ArithmeticError):
    """Training diverged; ``actual`` is the loss."""


class ClosedError(ZooError, ValueError):
    """A compiled network was called after it was closed, or in a forked process."""


class WorkerLostError(ZooError, RuntimeError):
    """Workers of a run end again and again, or none can be started; ``shard`` is the shard that they had, if any.

    What was finished before stays so: the same call again continues the run.
    """

    def __init__(self, message: str, *, shard: Optional[str] = None, **data: Any) -> None:
        super().__init__(message, **data)
        self.shard = shard
