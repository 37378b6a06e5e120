"""The vhost-user conversation as text: one line a message, for people and for `vhostnet replay`.

::

    # vhostnet trace 1: vhost-user
    2026-11-22T17:03:22.123456 dev0 +++ connected: pid 4711 +++
    2026-11-22T17:03:22.123907 dev0 GET_FEATURES() = 0x40000000<PROTOCOL_FEATURES> <0.000012>
    2026-11-22T17:03:22.124001 dev0 SET_VRING_CALL(0x1<1>, fds=[14<anon_inode:[eventfd]>]) <...>
    2026-11-22T17:03:22.124100 dev0 SET_VRING_NUM(index=0, num=3, NEED_REPLY) = 1 (3 is ...) <...>
    2026-11-22T17:03:22.124200 dev0 SET_VRING_NUM(payload=00) = ? (payload of 1 ...) <0.000007>

Behind "=" is what was sent back: the reply's struct, or the number of an ack (0, or 1 and why);
without "=" nothing was; "?" closed the connection.  The seconds at the end are what the answer
took.  How the payloads look follows from the session's rules (`RULES`) and the structs' own
declarations, and a line is read back into what was said: flags, bytes, number of descriptors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from vhostnet.protocol.spelling import (
    SpellingError,
    read_form,
    remark,
    spell_form,
    split,
    without_remarks,
)
from vhostnet.protocol.vhost_user_session import RULES
from vhostnet.uapi.vhost_user import (
    NOTHING,
    NUMBER,
    REQUEST_NAMES,
    VHOST_USER_NEED_REPLY_MASK,
    VHOST_USER_VERSION,
)
from vhostnet.uapi.wire import Form

HEADING = "# vhostnet trace 1: vhost-user"
#: Of a request, beside the version: the only flag that a front-end sets.
_FLAGS = {VHOST_USER_NEED_REPLY_MASK: "NEED_REPLY"}
#: Flags that no front-end sends: all of the header's.
_ALL_FLAGS = "header_flags="
_NUMBERS = {name: number for number, name in REQUEST_NAMES.items()}
_SECONDS = re.compile(r" <\d+\.\d{6}>$")
_EXCHANGE = re.compile(
    r"(?P<name>\w+)\((?P<arguments>[^()]*)\)( = (?P<answer>[^()]*?))?( \((?P<why>.*)\))?"
)
#: Time, who, and what was said.
_LINE = re.compile(r"(?P<time>\S+) (?P<who>\S+) (?P<said>.*)")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One message of a front-end and what came of it.

    Attributes:
        number: request number.
        flags: header flags as sent.
        payload: as sent.
        fds: descriptors that came with it, numbers of the process that took them.
        files: what they are; empty when read from a line.
        answer: payload of what was sent back, or None for nothing.
        error: why it was refused, or None.
        is_end: the connection was closed for it.
        seconds: what it took.
    """

    number: int
    flags: int
    payload: bytes
    fds: tuple[int, ...] = ()
    files: tuple[str, ...] = ()
    answer: bytes | None = None
    error: str | None = None
    is_end: bool = False
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The request's name as in the document."""
        return _name(self.number)


@dataclass(frozen=True, slots=True)
class Event:
    """The beginning or the end of a connection."""

    text: str


def stamp(when: datetime, who: str, said: Exchange | Event | str) -> str:
    """One line of a trace, without the newline."""
    if isinstance(said, Exchange):
        said = spell_exchange(said)
    elif isinstance(said, Event):
        said = f"+++ {_one_line(said.text)} +++"
    return f"{when.isoformat(timespec='microseconds')} {who.replace(' ', '')} {said}"


def spell_exchange(exchange: Exchange) -> str:
    """The message, its answer and the time that it took."""
    arguments = [spell_form(_form(exchange.number), exchange.payload)]
    if exchange.fds:
        files = exchange.files or ("",) * len(exchange.fds)
        spelled = (
            f"{fd}{remark(file)}" if file else str(fd)
            for fd, file in zip(exchange.fds, files, strict=True)
        )
        arguments.append(f"fds=[{', '.join(spelled)}]")
    arguments += _spell_flags(exchange.flags)
    text = f"{exchange.name}({', '.join(part for part in arguments if part)})"
    if exchange.is_end:
        text += " = ?"
    elif exchange.answer is not None:
        text += f" = {spell_form(_reply_form(exchange.number), exchange.answer)}"
    if exchange.error is not None:
        text += f" ({_one_line(exchange.error)})"
    return f"{text} <{exchange.seconds:.6f}>"


def read_exchange(text: str) -> Exchange:
    """What `spell_exchange` has written.  Raises SpellingError."""
    taken = _SECONDS.search(text)
    if taken is None:
        raise SpellingError(f"{text!r}: no time in angle brackets at the end")
    match = _EXCHANGE.fullmatch(without_remarks(text[: taken.start()]))
    if match is None:
        raise SpellingError(f"{text!r} is not NAME(...) = ...")
    number = _number(match["name"])
    flags = VHOST_USER_VERSION
    fds: tuple[int, ...] = ()
    rest = []
    for part in split(match["arguments"]):
        bit = next((bit for bit, name in _FLAGS.items() if name == part), 0)
        if bit:
            flags |= bit
        elif part.startswith(_ALL_FLAGS):
            flags = int(part[len(_ALL_FLAGS) :], 0)
        elif part.startswith("fds=["):
            fds = tuple(int(fd) for fd in split(part[len("fds=[") : -1]))
        else:
            rest.append(part)
    is_end = match["answer"] == "?"
    answer = None
    if match["answer"] is not None and not is_end:
        answer = read_form(_reply_form(number), match["answer"])
    return Exchange(
        number,
        flags,
        read_form(_form(number), ", ".join(rest)),
        fds,
        answer=answer,
        error=match["why"],
        is_end=is_end,
        seconds=float(taken[0].strip(" <>")),
    )


def read_trace(lines: Iterable[str]) -> Iterator[tuple[str, Exchange | Event]]:
    """Who, and what was said, of each line of a trace; raises SpellingError with its number."""
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\n")
        if number == 1 and line != HEADING:
            raise SpellingError(f"line 1 is not {HEADING!r}")
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        try:
            if match is None:
                raise SpellingError("neither a message nor an event")
            said = match["said"]
            if said.startswith("+++ "):
                yield match["who"], Event(said.strip("+ "))
            else:
                yield match["who"], read_exchange(said)
        except ValueError as e:
            raise SpellingError(f"line {number}: {e}") from e


def _spell_flags(flags: int) -> list[str]:
    if flags & ~sum(_FLAGS) != VHOST_USER_VERSION:
        return [f"{_ALL_FLAGS}{flags:#x}"]
    return [name for bit, name in _FLAGS.items() if flags & bit]


def _form(number: int) -> Form:
    rule = RULES.get(number)
    return Form(NOTHING) if rule is None else rule.form


def _reply_form(number: int) -> Form:
    """Of what is sent back: a reply of its own, or the number of an ack."""
    rule = RULES.get(number)
    return Form(NUMBER if rule is None or rule.reply is None else rule.reply)


def _name(number: int) -> str:
    return REQUEST_NAMES.get(number, f"REQUEST_{number}")


def _number(name: str) -> int:
    if name in _NUMBERS:
        return _NUMBERS[name]
    if name.startswith("REQUEST_") and name[len("REQUEST_") :].isdigit():
        return int(name[len("REQUEST_") :])
    raise SpellingError(f"there is no message {name}")


def _one_line(text: str) -> str:
    return re.sub(r"[^ -~]|[<>]", " ", text)
