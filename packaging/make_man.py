"""Write the manual pages: options from the parsers, the rest from `man/COMMAND.roff`.

    python packaging/make_man.py FOLDER

What is in the parser is not typed again: description, options, examples and exit statuses.  The
files in `man/` have what it does not know: how it works, signals, files, see also.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from vhostnet import __version__
from vhostnet.cli.main import COMMANDS
from vhostnet.cli.parser import Parser
from vhostnet.errors import EXIT_STATUSES

BY_HAND = Path(__file__).parent / "man"
_HEADING = re.compile(r"^(\w[\w ]*):$")


def escaped(text: str) -> str:
    """Text that roff prints as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in text.split("\n"))


def page(name: str, purpose: str, sections: list[str]) -> str:
    """A page of section 1."""
    title = f'.TH {name.upper()} 1 "" "vhostnet {__version__}" "vhostnet"'
    return "\n".join([title, ".SH NAME", f"{name} \\- {escaped(purpose)}", *sections]) + "\n"


def command_page(command: str) -> str:
    """The page of `vhostnet COMMAND`."""
    module = importlib.import_module(f"vhostnet.cli.{command}")
    parser = Parser(prog=f"vhostnet {command}")
    module.add_arguments(parser)
    sections = [".SH SYNOPSIS", ".nf", escaped(usage(parser)), ".fi"]
    sections += [".SH DESCRIPTION", escaped((parser.description or "").strip())]
    by_hand = BY_HAND / f"{command}.roff"
    before, _, after = (by_hand.read_text() if by_hand.exists() else "").partition('.\\" options\n')
    sections += [before.rstrip()] if before else []
    sections += [".SH OPTIONS", *options(parser), *epilog(parser.epilog or "")]
    sections += [after.rstrip()] if after else []
    return page(f"vhostnet-{command}", COMMANDS[command], sections)


def usage(parser: argparse.ArgumentParser) -> str:
    """The usage, lines as argparse breaks them."""
    return parser.format_usage().removeprefix("usage: ").rstrip()


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Each group under its title, each option with its help."""
    formatter = argparse.HelpFormatter(parser.prog)
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
        if actions:
            yield f".SS {escaped(group.title or '')}"
        for action in actions:
            yield ".TP"
            yield f".B {escaped(formatter._format_action_invocation(action))}"
            yield escaped(" ".join(formatter._expand_help(action).split()))


def epilog(text: str) -> Iterator[str]:
    """Paragraphs of an epilogue: "title:" begins a section, what is indented stays as it is."""
    yield from (".SH NOTES",) if text and not _HEADING.match(text.split("\n")[0]) else ()
    literal = False
    for line in text.rstrip().split("\n") if text else ():
        heading = _HEADING.match(line)
        indented = line.startswith(" ") or (literal and not line)
        if literal and not indented:
            yield ".fi"
            literal = False
        if heading:
            yield f".SH {escaped(heading[1].upper())}"
        elif indented:
            if not literal:
                yield ".nf"
                literal = True
            yield escaped(line) or "."
        else:
            yield escaped(line) or ".PP"
    if literal:
        yield ".fi"


def top_page() -> str:
    """The page of the program."""
    sections = [
        ".SH SYNOPSIS",
        ".B vhostnet",
        "COMMAND ...",
        (BY_HAND / "vhostnet.roff").read_text().rstrip(),
        ".SH COMMANDS",
    ]
    for command, purpose in COMMANDS.items():
        sections += [".TP", f".BR vhostnet\\-{command} (1)", escaped(purpose)]
    sections.append(".SH EXIT STATUS")
    for status, meaning in EXIT_STATUSES.items():
        sections += [".TP", f".B {status}", escaped(meaning)]
    return page("vhostnet", "Linux's vhost_net driver as a Python program", sections)


def pages() -> dict[str, str]:
    """All pages, by file name."""
    found = {f"vhostnet-{command}.1": command_page(command) for command in COMMANDS}
    return {"vhostnet.1": top_page(), **found}


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: make_man.py FOLDER", file=sys.stderr)
        return 2
    # The width that argparse breaks usages at must not be the terminal's.
    os.environ["COLUMNS"] = "80"
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
