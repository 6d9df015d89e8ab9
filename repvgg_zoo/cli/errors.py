"""Report errors to the user: a message and a hint, or JSON, and an exit code; a traceback only with --traceback."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import Any, Dict, Iterator, List, Mapping, Tuple, Type

from .. import errors
from .._escape import escape_message
from .._requirements import dependency_error
from .console import flush, print_error, print_json, style

EX_SOFTWARE = 70  # as in sysexits.h
EXIT_SIGINT, EXIT_SIGPIPE = 130, 141  # 128 plus the number of the signal, as in shells

# The first entry that matches applies, so a class comes before its bases.
EXIT_CODES: Tuple[Tuple[Type[BaseException], int], ...] = (
    (errors.MissingFileError, 5),
    (errors.ArgumentError, 2),
    (errors.UnknownModelError, 3),
    (errors.NoWeightsError, 3),
    (errors.RegistryError, 3),
    (errors.DownloadError, 4),
    (errors.IntegrityError, 4),
    (errors.UnverifiedError, 4),
    (errors.DependencyError, 7),
    (errors.UnavailableError, 7),
    (errors.CacheError, 5),
    (errors.WorkerLostError, 8),
    (errors.ZooError, 6),
    (ModuleNotFoundError, 7),
    (OSError, 5),
)

# Raised for what is in a file, and from OSError if the file cannot be read.
READ_ERRORS = (errors.BundleError, errors.CheckpointFormatError, errors.RegistryError)

ALL_NAMES = "repvgg_zoo.list_models() lists all names"  # in the hint of an UnknownModelError

# What the help says.
EXIT_CODE_MEANINGS: Mapping[int, str] = {
    0: "success",
    1: "a check failed: damaged files, forms that differ, a broken installation",
    2: "invalid command line",
    3: "the name is unknown or has no weights, or the registry is not valid",
    4: "a file could not be downloaded, or is not the right one",
    5: "the cache, the disk or a file cannot be read or written",
    6: "a checkpoint or bundle is damaged, of an unknown format, or does not fit",
    7: "a package is missing or too old",
    8: "workers of a run were lost; the same command continues it",
    EX_SOFTWARE: "a bug in repvgg-zoo or MegEngine",
    EXIT_SIGINT: "interrupted with Ctrl-C",
}


class Outcome:
    """The exit code that a command line ends with."""

    exit_code = 0


@contextmanager
def handled(arguments: List[str]) -> Iterator[Outcome]:
    """Run the body; report any exception and turn it into the outcome's exit code."""
    outcome = Outcome()
    try:
        yield outcome
    except SystemExit as error:  # argparse's --help
        failed = error.code is not None  # a plugin's sys.exit("why")
        outcome.exit_code = error.code if isinstance(error.code, int) else EX_SOFTWARE if failed else 0
    except BrokenPipeError:
        outcome.exit_code = EXIT_SIGPIPE  # the reader (head, less) has closed the pipe
    except KeyboardInterrupt as error:
        print_error("")
        print_error(str(error) or "interrupted")
        outcome.exit_code = EXIT_SIGINT
    except Exception as error:
        explained = explain(error)
        outcome.exit_code = exit_code(explained)
        report(explained, as_json="--json" in arguments, with_traceback="--traceback" in arguments)


def explain(error: Exception) -> Exception:
    """Return the error to report: for an import that failed in a required package, the one that has the cure."""
    return (isinstance(error, ImportError) and dependency_error(error, "this command")) or error


def exit_code(error: BaseException) -> int:
    """Return the exit code for an exception; a file that cannot be read has the same one wherever it was to be read."""
    if isinstance(error, READ_ERRORS) and isinstance(error.__cause__, OSError):
        return exit_code(error.__cause__)
    return next((code for family, code in EXIT_CODES if isinstance(error, family)), EX_SOFTWARE)


def report(error: Exception, *, as_json: bool, with_traceback: bool = False) -> None:
    """Print the error: as one JSON document on stdout, or as a few lines on stderr; raises nothing."""
    if with_traceback:
        import traceback

        with suppress(Exception):
            for line in "".join(traceback.format_exception(type(error), error, error.__traceback__)).split("\n")[:-1]:
                print_error(line)
    try:
        payload = to_dict(error)
    except Exception:  # its own text or data cannot be read
        payload = {"type": type(error).__name__, "message": type(error).__name__, "hint": None}
    if as_json:
        with suppress(Exception):  # if stdout is full, the text may still be seen
            print_json({"error": payload})
            flush()
            return
    for line in to_lines(payload):
        print_error(line)


def to_lines(payload: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of text of an error: its message, its path and URL where it does not say them, its hint."""
    message = escape_message(payload["message"])
    first, *rest = message.split("\n")
    yield f"{style('error', 'red', on_stderr=True)}: {first}"
    yield from rest
    for key in ("path", "url"):
        if payload.get(key) and escape_message(str(payload[key])) not in message:
            yield f"{key}:  {payload[key]}"
    if payload["hint"]:
        yield f"{style('hint', 'cyan', on_stderr=True)}:  {payload['hint']}"
    if payload.get("usage"):
        yield f"usage: {payload['usage']}"


def to_dict(error: Exception) -> Dict[str, Any]:
    """Return the error's type, message and hint, and its other attributes that are not None."""
    if isinstance(error, errors.ZooError):
        # ImportError keeps path where vars() does not see it.
        common = {name: getattr(error, name) for name in ("path", "url", "expected", "actual")}
        attributes = {key: value for key, value in {**common, **vars(error)}.items() if value is not None}
        payload = {"type": type(error).__name__, "hint": error.hint, **attributes}
        if isinstance(error, errors.UnknownModelError) and not error.suggestions:
            payload["hint"] = (error.hint or "").replace(ALL_NAMES, "repvgg-zoo list shows every name")
        return payload
    if isinstance(error, ModuleNotFoundError):
        from .._requirements import requirement

        name = (error.name or "a package").split(".")[0]
        return {
            "type": type(error).__name__,
            "message": f"this needs {name}, which is not installed",
            "hint": f"pip install '{requirement(name)}'; repvgg-zoo doctor checks the whole installation",
        }
    if isinstance(error, OSError):
        prefix = f"{error.filename}: " if error.filename else ""
        return {
            "type": type(error).__name__,
            "message": f"{prefix}{error.strerror or error}",
            "hint": None,
            "path": None if error.filename is None else str(error.filename),
        }
    return {
        "type": type(error).__name__,
        "message": f"{type(error).__name__}: {error}",
        "hint": "this is a bug in repvgg-zoo; please report it with the output of --traceback",
    }
