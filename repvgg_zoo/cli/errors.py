"""What goes wrong, told to the user: a message and a hint, or JSON; an exit code for each family; no traceback."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Tuple, Type

from .. import errors
from .._requirements import requirement
from .console import paint, print_json

FAULT, INTERRUPTED, READER_GONE = 70, 130, 141  # EX_SOFTWARE, and 128 plus SIGINT and SIGPIPE as shells count

# The first family that fits: a class comes before its bases.
FAMILIES: Tuple[Tuple[Type[BaseException], int], ...] = (
    (errors.ArgumentError, 2),
    (errors.UnknownModelError, 3),
    (errors.NoWeightsError, 3),
    (errors.RegistryError, 3),
    (errors.DownloadError, 4),
    (errors.IntegrityError, 4),
    (errors.UnverifiedError, 4),
    (errors.DependencyError, 7),
    (errors.CacheError, 5),
    (errors.ZooError, 6),
    (ModuleNotFoundError, 7),
    (OSError, 5),
)


class Outcome:
    """The exit code that a command line ends with."""

    code = 0


@contextmanager
def handled(argv: List[str]) -> Iterator[Outcome]:
    """Runs the body; whatever it raises is reported, and becomes the outcome's code."""
    outcome = Outcome()
    try:
        yield outcome
    except SystemExit as leaving:  # argparse's --help
        outcome.code = leaving.code if isinstance(leaving.code, int) else 0
    except BrokenPipeError:
        # The reader (head, less) has what it wanted. What Python flushes at exit must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        outcome.code = READER_GONE
    except KeyboardInterrupt as stopped:
        print(f"\n{stopped}" if str(stopped) else "\nstopped", file=sys.stderr)
        outcome.code = INTERRUPTED
    except Exception as error:
        outcome.code = exit_code(error)
        if "--traceback" in argv:
            import traceback

            traceback.print_exc()
        report(error, as_json="--json" in argv)


def exit_code(error: BaseException) -> int:
    """The exit code of the error's family."""
    return next((code for family, code in FAMILIES if isinstance(error, family)), FAULT)


def report(error: Exception, *, as_json: bool) -> None:
    """Tells the error: as one JSON document on stdout, or as a few lines on stderr."""
    facts = described(error)
    if as_json:
        print_json({"error": facts})
        return
    print(f"{paint('error', 'red', sys.stderr)}: {facts['message']}", file=sys.stderr)
    for what in ("path", "url"):
        if facts.get(what) and facts[what] not in facts["message"]:
            print(f"{what}:  {facts[what]}", file=sys.stderr)
    if facts["hint"]:
        print(f"{paint('hint', 'cyan', sys.stderr)}:  {facts['hint']}", file=sys.stderr)
    if facts.get("usage"):
        print(f"usage: {facts['usage']}", file=sys.stderr)


def described(error: Exception) -> Dict[str, Any]:
    """The error's data: type, message, hint, and all else that it carries and that is not None."""
    if isinstance(error, errors.ZooError):
        # ImportError keeps path where vars() does not see it.
        own = {name: getattr(error, name) for name in ("path", "url", "expected", "actual")}
        carried = {key: value for key, value in {**own, **vars(error)}.items() if value is not None}
        facts = {"type": type(error).__name__, "hint": error.hint, **carried}
        if isinstance(error, errors.UnknownModelError) and not error.suggestions:
            facts["hint"] = "repvgg-zoo list shows every name"
        return facts
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or "a package").split(".")[0]
        return {
            "type": type(error).__name__,
            "message": f"this needs {name}, which is not installed",
            "hint": f"pip install '{requirement(name)}'; repvgg-zoo doctor checks the whole installation",
        }
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return {
            "type": type(error).__name__,
            "message": f"{where}{error.strerror or error}",
            "hint": None,
            "path": None if error.filename is None else str(error.filename),
        }
    return {
        "type": type(error).__name__,
        "message": f"{type(error).__name__}: {error}",
        "hint": "this is no fault of yours; --traceback shows where it happened, for a bug report",
    }
