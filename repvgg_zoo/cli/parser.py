"""The table of commands, their argument parsers, and the help of the program."""

from __future__ import annotations

import argparse
import difflib
from types import MappingProxyType
from typing import Any, List, Mapping, NamedTuple, NoReturn, Optional, Sequence

from ..errors import ArgumentError
from .console import Result, print_text
from .errors import EXIT_CODE_MEANINGS

PROGRAM = "repvgg-zoo"


class Command(NamedTuple):
    """A command's module in ``commands``, and what it does in one line."""

    module: str
    summary: str


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "list": Command("list", "list the variants; filters and the Pareto front"),
        "info": Command("info", "show a variant or a checkpoint"),
        "fetch": Command("fetch", "download checkpoints into the cache, verified; print their paths"),
        "verify": Command("verify", "check the digests of the cache, a checkpoint or a file"),
        "convert": Command("convert", "convert a checkpoint to another layout, format or form"),
        "predict": Command("predict", "predict the classes of images"),
        "compare": Command("compare", "compare the outputs of the train form and the deploy form"),
        "bench": Command("bench", "measure the latency of both forms and of the compiled network"),
        "cache": Command("cache", "manage the cache: ls, rm, prune, where"),
        "bundle": Command("bundle", "copy checkpoints to machines without internet: pack, unpack, show"),
        "doctor": Command("doctor", "check the installation and the settings, and say how to fix them"),
    }
)
EXAMPLES = ("repvgg-zoo list", "repvgg-zoo info RepVGG_A0", "repvgg-zoo fetch RepVGG_N0", "repvgg-zoo doctor")


class UsageError(ArgumentError):
    """The command line is not valid; ``usage`` is the command's usage line."""

    def __init__(self, message: str, *, usage: str, **data: Any) -> None:
        super().__init__(message, **data)
        self.usage = usage


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with the options that every command has, which raises its errors instead of printing them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)  # an option that is added later must not change what a script means
        super().__init__(*args, **kwargs)
        # SUPPRESS: an action's parser must not reset what the command's parser has read.
        self.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
        self.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_args(args, argparse.Namespace(json=False, traceback=False))

    def _print_message(self, message: str, file: Any = None) -> None:
        print_text(message)  # argparse prints nothing but help here

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().split())[len("usage: ") :]
        raise UsageError(message, usage=usage, hint=f"{self.prog} --help")


def command_parser(name: str, module: Any) -> ArgumentParser:
    """Return the parser of one command, whose help ends with its examples."""
    examples = "\n".join(f"  {line}" for line in module.EXAMPLES)
    parser = ArgumentParser(
        prog=f"{PROGRAM} {name}", description=module.HELP.strip(), epilog=f"examples:\n{examples}\n"
    )
    module.add_arguments(parser)
    return parser


def run_action(args: argparse.Namespace) -> Result:
    """Run the selected action of a command that has several, such as ``cache ls``."""
    result: Result = args.action_run(args)
    return result


def top_help() -> str:
    """Return what ``repvgg-zoo --help`` prints; no command's module is imported for it."""
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [arguments] [--json]",
            "",
            "A model zoo of RepVGG in MegEngine: from a name to a verified checkpoint and a",
            "working network.",
            "",
            "commands:",
            *(f"  {name:9} {command.summary}" for name, command in COMMANDS.items()),
            "",
            f"{PROGRAM} COMMAND --help shows a command's arguments and examples.",
            "",
            "examples:",
            *(f"  {line}" for line in EXAMPLES),
            "",
            "exit codes:",
            *(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODE_MEANINGS.items()),
            "",
        ]
    )


def unknown_command(name: str) -> UsageError:
    """Return the error for a first word that is not a command."""
    close = closest(name, list(COMMANDS))
    return UsageError(
        f"{name!r} is not a valid {'option' if name.startswith('-') else 'command'}",
        usage=f"{PROGRAM} COMMAND [arguments]",
        expected=list(COMMANDS),
        actual=name,
        hint=f"did you mean {PROGRAM} {close}?" if close else f"{PROGRAM} --help lists the commands",
    )


def closest(name: str, words: Sequence[str]) -> Optional[str]:
    """Return the word that is most similar to ``name``, or None."""
    matches: List[str] = difflib.get_close_matches(name.lower(), words, 1, cutoff=0.5)
    return matches[0] if matches else None
