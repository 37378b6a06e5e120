"""argparse that answers a mistake with one line and what would have been right."""

from __future__ import annotations

import argparse
import contextlib
import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from vhostnet.errors import UsageError


def nearest(word: str, known: Iterable[str]) -> str:
    """A suggestion to append to an error message: " (did you mean X?)", or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError, one line, instead of printing its usage.

    Options can not be shortened: a script that says --socket would break on the day when a
    second option begins so.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))

    def parse_with_command(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse what stands before "--"; what comes after it is `command`, a command line.

        Raises UsageError, also if there is none.
        """
        at = words.index("--") if "--" in words else len(words)
        arguments = self.parse(words[:at])
        arguments.command = list(words[at + 1 :])
        if not arguments.command:
            raise UsageError(f"a command is needed: {self.prog} [options] -- COMMAND ...")
        return arguments

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse all of `words`, or raise UsageError."""
        # An option that does not exist is what people most often get wrong.  It is looked for
        # first, since argparse would rather complain about the value that follows it.
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("--") and name not in self._option_string_actions and name != "--":
                suggestion = nearest(name, self._option_string_actions)
                raise UsageError(f"there is no option {name}{suggestion}")
        arguments, unknown = self.parse_known_args(words)
        if unknown:
            raise UsageError(f"what is {unknown[0]!r} for? (see {self.prog} --help)")
        return arguments


def seconds_within(low: float, high: float) -> Callable[[str], float]:
    """A converter for argparse: a number of seconds from `low` to `high`."""

    def convert(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= float(text) <= high:
                return float(text)
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds from {low:g} to {high:g}"
        )

    return convert


def number_within(low: int, high: int) -> Callable[[str], int]:
    """A converter for argparse: a decimal number from `low` to `high`."""

    def convert(text: str) -> int:
        # int() would also take " 1_0", which nobody means.
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return int(text)

    return convert
