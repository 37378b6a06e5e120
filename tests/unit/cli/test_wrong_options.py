"""What people get wrong, by the hundred: made from the declaration of the options.

Each wrong value and each misspelt name is tried wherever the option can be given.  The answer is
one line that names the option and what would be right, and a status that is documented.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from vhostnet.cli.chardev import OPTIONS as CHARDEV_OPTIONS
from vhostnet.cli.logs import AREAS
from vhostnet.cli.main import main
from vhostnet.cli.option_kinds import (
    Backend,
    Choice,
    Cpus,
    Group,
    LogLevels,
    Mode,
    Name,
    NodeName,
    Number,
    SchedulingPolicy,
    SocketPath,
    Switch,
)
from vhostnet.cli.options import DAEMON_OPTIONS, DEVICE_KEYS, DEVICE_OPTIONS, Option
from vhostnet.cli.run import OPTIONS as RUN_OPTIONS

NULL = ("--socket-path", "s", "--backend", "null")
#: One wrong way of writing each option; the first letters' order, a letter less, one more.
MISSPELLINGS = (
    lambda word: word[:-1],
    lambda word: word + word[-1],
    lambda word: word[:-2] + word[-1] + word[-2],
)


@dataclass(frozen=True)
class Wrong:
    """A mistake.

    Attributes:
        words: a command line, in which FILE is a file of `text`.
        says: what the answer has to have in it: the option, and what would be right.
        status: that it ends with.
    """

    words: tuple[str, ...]
    says: tuple[str, ...]
    status: int = 2
    text: str = ""


def wrong_texts(option: Option) -> Iterator[tuple[str, str]]:
    """Words that the option's kind does not take, with what the answer says is right."""
    kind = option.kind
    if isinstance(kind, Number):
        for text in ("", "-1", "x", "1e1", "1_0", "0x1", "١", str(kind.high + 1), "9" * 5000):
            yield text, f"a number from {kind.low} to {kind.high}"
    elif isinstance(kind, Switch):
        for text in ("", "yes", "true", "1", "On"):
            yield text, "must be on or off"
    elif isinstance(kind, Choice):
        for text in ("", kind.names[0].upper() + "x", kind.names[-1] + "x"):
            yield text, f"is not one of {', '.join(kind.names)}"
    elif isinstance(kind, LogLevels):
        for text in ("", "loud", "info,", "device=", "INFO"):
            yield text, "is not one of error, warning, info, debug"
        yield (
            "devcie=info",
            f"'devcie' is no area: one of {', '.join(AREAS)} (did you mean device?)",
        )
        yield "tap=info,tap=debug", "is given twice"
    elif isinstance(kind, Cpus):
        for text in ("", "a", "1-", "-1", "1.5", "0x1", "5-2"):
            yield text, "is not a list of processors such as 2-5"
        for text in ("99998", "99997-99998", "5-99999"):
            yield text, "is not for this process to use; there are"
    elif isinstance(kind, SchedulingPolicy):
        for text in ("", "5", "FIFO:5", "fif:5"):
            yield text, "is not one of other, batch, fifo, rr"
        for text in ("fifo", "fifo:", "fifo:0", "fifo:100", "fifo:-1", "fifo:5.0", "fifo:0x5"):
            yield text, "must be fifo:N, N from 1 to 99"
        for text in ("other:", "other:-21", "other:20", "other:--1", "other:+1", "other:9999999"):
            yield text, "must be other:N, N from -20 to 19"
    elif isinstance(kind, Mode):
        for text in ("", "8", "rw", "0o660", "-1", "1000"):
            yield text, "is not an octal mode such as 660"
    elif isinstance(kind, Group):
        yield "no-such-group", "no group is called"
    elif isinstance(kind, Name):
        for text in ("", "a b", "-a", "ä", "x" * 33):
            yield text, "is not a name of 1 to 32 letters"
    elif isinstance(kind, NodeName):
        for text in ("", "a/b", "..", "a b"):
            yield text, "letters, digits"
    elif isinstance(kind, SocketPath):
        yield "", "the socket path is empty"
        yield "x" * 108, "a unix socket allows 107"
    elif isinstance(kind, Backend):
        for text in ("", "tapp:x", "Null"):
            yield text, "there are tap:NAME, tap-fd:N"
        for text, right in (
            ("tap", "an interface name of 1 to 15"),
            ("tap:" + "x" * 16, "an interface name of 1 to 15"),
            ("tap:a/b", "an interface name of 1 to 15"),
            ("tap-fd:x", "takes descriptor numbers"),
            ("gen:64", "write gen:size=N"),
            ("gen:size=13", "14 to 65535 bytes"),
            ("loop:x", "takes no argument"),
            ("null:sum", "takes only :checksum"),
            ("port:", "takes a name"),
        ):
            yield text, right


def wrong_values(option: Option) -> Iterator[tuple[str, str]]:
    """Values of TOML that the option's kind does not take, and what the answer says."""
    for text, right in wrong_texts(option):
        if not isinstance(option.kind, (Number, Switch)):
            yield json.dumps(text), right
    if isinstance(option.kind, (Number, Switch)):
        right = (
            f"a number from {option.kind.low} to {option.kind.high}"
            if isinstance(option.kind, Number)
            else "must be true or false"
        )
        for value in ('"1"', '"on"', "1.5", "-1", "[]", "{}", "2024-01-01"):
            yield value, right
    else:
        for value in ("1", "true", "[]", "{ a = 1 }"):
            yield value, "must be text in quotes, such as"


def flag_with(option: Option, text: str) -> tuple[str, ...]:
    return (f"{option.option_string}={text}",)


def without(words: tuple[str, ...], option: Option) -> tuple[str, ...]:
    """A command line less the option that is tried."""
    if option.option_string not in words:
        return words
    at = words.index(option.option_string)
    return words[:at] + words[at + 2 :]


def on_the_command_line() -> Iterator[Wrong]:
    for command, options, rest in (
        ("serve", (*DEVICE_OPTIONS, *DAEMON_OPTIONS), NULL),
        ("chardev", CHARDEV_OPTIONS, ()),
        ("run", RUN_OPTIONS, ("--", "true")),
    ):
        status = 125 if command == "run" else 2
        for option in options:
            words = without(rest, option)
            is_flag = isinstance(option.kind, Switch) and not option.default
            if is_flag:
                yield Wrong(
                    (command, *flag_with(option, "x"), *words), (option.option_string,), status
                )
            else:
                for text, right in wrong_texts(option):
                    yield Wrong(
                        (command, *flag_with(option, text), *words),
                        (f"{option.option_string}: ", right),
                        status,
                    )
                yield Wrong(
                    (command, *words[: words.index("--") if "--" in words else None],
                     option.option_string, *(("--", "true") if command == "run" else ())),
                    (option.option_string, "expected one argument"),
                    status,
                )  # fmt: skip
            for misspell in MISSPELLINGS:
                name = misspell(option.option_string)
                if len(option.key) > 3 and name not in {o.option_string for o in options}:
                    yield Wrong(
                        (command, f"{name}=1", *words),
                        (f"there is no option {name} (did you mean {option.option_string}?)",),
                        status,
                    )


def in_a_device() -> Iterator[Wrong]:
    for key, option in DEVICE_KEYS.items():
        rest = {"socket": "s", "backend": "null"}
        rest.pop(key, None)
        words = ",".join(f"{k}={v}" for k, v in rest.items())
        for text, right in wrong_texts(option):
            if "," not in text:
                yield Wrong(
                    ("serve", "--device", f"{words},{key}={text}"), (f"--device: {key}: ", right)
                )
        for misspell in MISSPELLINGS:
            if misspell(key) not in DEVICE_KEYS:
                yield Wrong(
                    ("serve", "--device", f"{words},{misspell(key)}=1"),
                    (f"there is no key {misspell(key)!r} (did you mean {key}?)",),
                )
        yield Wrong(("serve", "--device", f"{words},{key}"), (f"{key!r} is not KEY=VALUE",))


def in_a_file() -> Iterator[Wrong]:
    for option in DEVICE_OPTIONS:
        rest = {"socket": '"s"', "backend": '"null"'}
        rest.pop(option.key, None)
        table = "[device.a]\n" + "".join(f"{k} = {v}\n" for k, v in rest.items())
        if not option.in_file:
            yield Wrong(("serve", "--config=FILE"), (f":4: [device.a] {option.key}: ",), 3,
                        f"{table}{option.key} = 1\n")  # fmt: skip
            continue
        at = table.count("\n") + 1
        for value, right in wrong_values(option):
            yield Wrong(("serve", "--config=FILE"), (f":{at}: [device.a] {option.key}: ", right), 3,
                        f"{table}{option.key} = {value}\n")  # fmt: skip
        for misspell in MISSPELLINGS:
            text = f"{table}{misspell(option.key)} = 1\n"
            text += f"{option.key} = {rest.get(option.key, chr(34) + 'null' + chr(34))}\n" * (
                option.key == "backend"
            )
            yield Wrong(
                ("check", "FILE"),
                (f":{at}: [device.a] {misspell(option.key)}: ", f"(did you mean {option.key}?)"),
                3,
                text,
            )
    table = '[device.a]\nsocket = "s"\nbackend = "null"\n'
    for option in DAEMON_OPTIONS:
        if not option.in_file:
            yield Wrong(("check", "FILE"), (f":1: {option.key}: is for the command line only",), 3,
                        f"{option.key} = 1\n{table}")  # fmt: skip
            continue
        for value, right in wrong_values(option):
            yield Wrong(("check", "FILE"), (f":1: {option.key}: ", right), 3,
                        f"{option.key} = {value}\n{table}")  # fmt: skip
        yield Wrong(("check", "FILE"), (f":4: [device.a] {option.key}: belongs elsewhere",), 3,
                    f"{table}{option.key} = 1\n")  # fmt: skip


ALL = (*on_the_command_line(), *in_a_device(), *in_a_file())


def test_there_are_many_ways_to_be_wrong():
    assert len(set(ALL)) >= 200


@pytest.mark.parametrize("wrong", ALL, ids=lambda wrong: ascii(" ".join(wrong.words))[:60])
def test_a_mistake_is_answered_with_one_line_and_a_status(wrong, tmp_path, capsys):
    (tmp_path / "f.toml").write_text(wrong.text)
    assert (
        main([word.replace("FILE", str(tmp_path / "f.toml")) for word in wrong.words])
        == wrong.status
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vhostnet: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert "bug in this program" not in err
    for text in wrong.says:
        assert text in err
