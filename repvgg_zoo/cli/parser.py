"""The table of commands, their parsers, and the help of all of them together."""

from __future__ import annotations

import argparse
import difflib
from types import MappingProxyType
from typing import Any, List, Mapping, NamedTuple, NoReturn, Optional, Sequence

from ..errors import ArgumentError

PROGRAM = "repvgg-zoo"


class Command(NamedTuple):
    """A command's module in this package, and what it does in one line."""

    module: str
    summary: str


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "list": Command("list", "the variants as a table; filters, and the Pareto front"),
        "info": Command("info", "all that is known of one variant, or of one checkpoint"),
        "fetch": Command("fetch", "bring checkpoints into the cache, verified; print their paths"),
        "verify": Command("verify", "hash the cache, a checkpoint or a file: is it right?"),
        "convert": Command("convert", "a checkpoint to another layout, format or form"),
        "predict": Command("predict", "predict the classes of images"),
        "compare": Command("compare", "how far the deploy form's numbers are from the train form's"),
        "bench": Command("bench", "time both forms and compiled: percentiles"),
        "cache": Command("cache", "look after the cache: ls, rm, prune, verify, where"),
        "bundle": Command("bundle", "for a machine without internet: pack, unpack, show"),
        "mirror": Command("mirror", "the mirrors in force, and a folder that is one: show, make"),
        "doctor": Command("doctor", "what is wrong with this machine's set-up, and what to type"),
    }
)

EXIT_CODES = """\
exit codes:
  0    all is well
  1    what was checked is wrong: damage, forms that differ, a faulty set-up
  2    the command line is wrong
  3    the registry has no such name, no weights for it, or is not valid
  4    a file could not be fetched, or is not the right one
  5    the cache, the disk or a file cannot be read or written
  6    a checkpoint or bundle is damaged, of no known kind, or does not fit
  7    a package is missing or too old
  70   a fault of repvgg-zoo itself, or of MegEngine
  130  stopped with Ctrl-C
"""


class UsageError(ArgumentError):
    """The command line is wrong; ``usage`` says how it goes."""

    def __init__(self, message: str, *, usage: str, **data: Any) -> None:
        super().__init__(message, **data)
        self.usage = usage


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with the options that every command has, whose errors are raised and not printed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)  # an option that is added later must not change what a script means
        super().__init__(*args, **kwargs)
        # SUPPRESS: a command's parser must not undo what the parser above it has read.
        self.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON document on stdout")
        self.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_args(args, argparse.Namespace(json=False, traceback=False))

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().split())[len("usage: ") :]
        raise UsageError(message, usage=usage, hint=f"{self.prog} --help")


def command_parser(name: str, module: Any) -> ArgumentParser:
    """The parser of one command, whose help ends in its examples."""
    examples = "\n".join(f"  {line}" for line in module.EXAMPLES)
    parser = ArgumentParser(
        prog=f"{PROGRAM} {name}", description=module.HELP.strip(), epilog=f"examples:\n{examples}\n"
    )
    module.add_arguments(parser)
    return parser


def top_help() -> str:
    """What ``repvgg-zoo --help`` prints; no command's module is imported for it."""
    lines = [f"  {name:9} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [arguments] [--json]",
            "",
            "A model zoo of RepVGG in MegEngine: from a name to a verified checkpoint and a",
            "working network.",
            "",
            "commands:",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help shows a command's arguments and examples.",
            "",
            "examples:",
            *(f"  {line}" for line in EXAMPLES),
            "",
            EXIT_CODES,
        ]
    )


EXAMPLES = ("repvgg-zoo list", "repvgg-zoo info RepVGG_A0", "repvgg-zoo fetch RepVGG_N0", "repvgg-zoo doctor")


def unknown_command(name: str) -> UsageError:
    """The error for a first word that is no command."""
    close = closest(name, list(COMMANDS))
    what = f"there is no option {name}" if name.startswith("-") else f"there is no command {name!r}"
    hint = f"did you mean {PROGRAM} {close}?" if close else f"{PROGRAM} --help lists the commands"
    return UsageError(what, usage=f"{PROGRAM} COMMAND [arguments]", expected=list(COMMANDS), actual=name, hint=hint)


def closest(name: str, known: Sequence[str]) -> Optional[str]:
    """The known word that looks most like ``name``, if any does."""
    found: List[str] = difflib.get_close_matches(name.lower(), known, 1, cutoff=0.5)
    return found[0] if found else None


def run_action(args: argparse.Namespace) -> int:
    """Runs the chosen action of a command that has several, such as ``cache ls``."""
    code: int = args.action_run(args)
    return code
