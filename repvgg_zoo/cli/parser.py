"""The table of commands, their argument parsers, and the help of the program."""

from __future__ import annotations

import argparse
from types import MappingProxyType
from typing import Any, Iterable, Iterator, List, Mapping, NamedTuple, NoReturn, Optional, Sequence

from ..errors import ArgumentError
from .console import TEXT_WIDTH, Result, print_text, terminal_width, wrap
from .errors import EXIT_CODE_MEANINGS

PROGRAM = "repvgg-zoo"


class Command(NamedTuple):
    """A command's module in ``commands``, and what it does in one line."""

    module: str
    summary: str


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "list": Command("list", "list variants or checkpoints; filters and the Pareto front"),
        "search": Command("search", "search names, publishers, licenses and notes"),
        "info": Command("info", "show a variant, a checkpoint or a file"),
        "fetch": Command("fetch", "download checkpoints into the cache, verified; print their paths"),
        "verify": Command("verify", "check the digests of the cache, a checkpoint or a file"),
        "convert": Command("convert", "convert a checkpoint to another layout, format or form"),
        "finetune": Command("finetune", "train a checkpoint for the classes of your images"),
        "quantize": Command("quantize", "quantize a checkpoint to int8, calibrated on images"),
        "export": Command("export", "write a network as ONNX, or for MegEngine Lite"),
        "predict": Command("predict", "predict the classes of images"),
        "features": Command("features", "write the pooled features of images"),
        "evaluate": Command("evaluate", "measure the accuracy on your own labeled images"),
        "compare": Command("compare", "compare the outputs of the train form and the deploy form"),
        "bench": Command("bench", "measure the latency of both forms and of the compiled network"),
        "cache": Command("cache", "manage the cache: ls, rm, prune, where"),
        "bundle": Command("bundle", "copy checkpoints to machines without internet: pack, unpack, show"),
        "registry": Command("registry", "describe your own checkpoints: check a registry file, draft one"),
        "completion": Command("completion", "print a script for completion in bash, zsh or fish"),
        "doctor": Command("doctor", "check the installation and the settings, and say how to fix them"),
    }
)
# Options of every command, which may also stand before it.
GLOBAL_OPTIONS: Mapping[str, str] = MappingProxyType(
    {"--json": "print one JSON document", "--traceback": "show the traceback of an error"}
)
TOP_OPTIONS: Mapping[str, str] = MappingProxyType(
    {**GLOBAL_OPTIONS, "--version": "print the version", "--help": "print this help"}
)
EXAMPLES = ("repvgg-zoo list", "repvgg-zoo info RepVGG_A0", "repvgg-zoo fetch RepVGG_N0", "repvgg-zoo doctor")


class UsageError(ArgumentError):
    """The command line is not valid; ``usage`` is the command's usage line."""

    def __init__(self, message: str, *, usage: str, **data: Any) -> None:
        super().__init__(message, **data)
        self.usage = usage


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """As wide as the terminal, or else as all other text; paragraphs are filled, examples are not."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=(terminal_width() or TEXT_WIDTH) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return text
        paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
        return "\n\n".join("\n".join(wrap(paragraph, width + 2)) for paragraph in paragraphs)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with the options that every command has, which raises its errors instead of printing them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)  # an option that is added later must not change what a script means
        super().__init__(*args, **kwargs)
        # SUPPRESS: an action's parser must not reset what the command's parser has read.
        for option, text in GLOBAL_OPTIONS.items():
            self.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=text)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments = list(args or ())
        selected = selected_parser(self, arguments)
        for word in option_words(arguments):  # first, as argparse would rather report that a NAME is missing
            if word not in self._option_string_actions and word not in selected._option_string_actions:
                raise selected.invalid_word(word, f"option of {selected.prog}", option_names(selected))
        return super().parse_args(arguments, argparse.Namespace(json=False, traceback=False))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            label = "/".join(action.option_strings) or action.metavar
            raise self.invalid_word(value, str(label), [str(choice) for choice in action.choices])

    def _print_message(self, message: str, file: Any = None) -> None:
        print_text(message)  # argparse prints nothing but help here

    def invalid_word(self, word: str, kind: str, expected: Sequence[str]) -> UsageError:
        """Return the error for a word that is none of ``expected``, with the closest of them."""
        close = closest(word, expected)
        hint = f"did you mean {close}?" if close else f"{self.prog} --help"
        message = f"{word!r} is not a valid {kind}"
        return UsageError(message, usage=self._usage_line(), expected=list(expected), actual=word, hint=hint)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, usage=self._usage_line(), hint=f"{self.prog} --help")

    def _usage_line(self) -> str:
        return " ".join(self.format_usage().split())[len("usage: ") :]


def selected_parser(parser: ArgumentParser, arguments: Sequence[str]) -> ArgumentParser:
    """Return the parser of the action that the arguments name, such as ``rm`` of ``cache``, or the parser itself."""
    actions = next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None) or {}
    return next((actions[word] for word in arguments if word in actions), parser)


def option_names(parser: ArgumentParser) -> List[str]:
    """Return the long options of a parser."""
    return [name for name in parser._option_string_actions if name.startswith("--")]


def option_words(arguments: Iterable[str]) -> Iterator[str]:
    """Yield the long options of a command line, without their values; what follows ``--`` is none."""
    for word in arguments:
        if word == "--":
            return
        if word.startswith("--") and " " not in word:
            yield word.partition("=")[0]


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
            f"usage: {PROGRAM} [--json] [--traceback] COMMAND [arguments]",
            "",
            "A model zoo of RepVGG in MegEngine: from a name to a verified checkpoint and a",
            "working network.",
            "",
            "commands:",
            *(f"  {name:11} {command.summary}" for name, command in COMMANDS.items()),
            "",
            f"{PROGRAM} COMMAND --help shows a command's arguments and examples.",
            "",
            "options, the first two before or after COMMAND:",
            *(f"  {option:11}  {text}" for option, text in TOP_OPTIONS.items()),
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
    is_option = name.startswith("-")
    close = closest(name, list(TOP_OPTIONS if is_option else COMMANDS))
    hint = f"{PROGRAM} --help lists the commands{', after which their options stand' if is_option else ''}"
    return UsageError(
        f"{name!r} is not a valid {'option' if is_option else 'command'}",
        usage=f"{PROGRAM} COMMAND [arguments]",
        expected=list(TOP_OPTIONS if is_option else COMMANDS),
        actual=name,
        hint=f"did you mean {PROGRAM} {close}?" if close else hint,
    )


def closest(name: str, words: Sequence[str]) -> Optional[str]:
    """Return the word that is most similar to ``name``, or None; the dashes of options do not count."""
    import difflib  # known names do not need it

    bare = {word.lstrip("-"): word for word in words}
    matches = difflib.get_close_matches(name.lstrip("-").lower(), list(bare), 1, cutoff=0.5)
    return bare[matches[0]] if matches else None
