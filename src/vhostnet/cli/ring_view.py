"""A ring's picture (`observe.ring_picture`) as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vhostnet.cli.ctl_views import table

Picture = Mapping[str, Any]


def ring_view(picture: Picture) -> list[str]:
    """The lines."""
    state = "running" if picture["running"] else "stopped"
    title = f"{picture['device']} {picture['queue']}: {picture['format']} ring"
    lines = [f"{title} of {picture['num']}, {state}"]
    lines += _indented(table(picture["parts"])) if picture["parts"] else []
    if "avail" in picture:
        lines += _split(picture)
    elif "ring" in picture:
        lines += _packed(picture)
    for chain in picture.get("chains", ()):
        lines += _chain(chain)
    if picture["last-error"]:
        lines += ["", f"the device's last error: {picture['last-error']}"]
    problems = picture["problems"]
    lines += ["", "what is wrong: " + ("nothing" if not problems else "")]
    return [line.rstrip() for line in (*lines, *(f"  {problem}" for problem in problems))]


def _split(picture: Picture) -> list[str]:
    avail, used, device = picture["avail"], picture["used"], picture["device-side"]
    return [
        "",
        f"device  last_avail {device['last-avail']}  last_used {device['last-used']}  "
        f"waiting {device['waiting']}  unpublished {device['unpublished']}",
        "",
        f"avail   flags {_flags(avail)}  idx {avail['idx']}  used_event {avail['used-event']}",
        *_indented(_pointed(avail["entries"], device["last-avail"], "next")),
        "",
        f"used    flags {_flags(used)}  idx {used['idx']}  avail_event {used['avail-event']}",
        *_indented(table(used["entries"])),
    ]


def _packed(picture: Picture) -> list[str]:
    device, driver, ours = (
        picture[name] for name in ("device-side", "driver-event", "device-event")
    )
    return [
        "",
        f"device  avail {device['avail-pos']} wrap {device['avail-wrap']}  "
        f"used {device['used-pos']} wrap {device['used-wrap']}  "
        f"unpublished {device['unpublished']}",
        f"driver event  {driver['flags']} at {driver['position']} wrap {driver['wrap']}",
        f"device event  {ours['flags']} at {ours['position']} wrap {ours['wrap']}",
        "",
        "descriptors",
        *_indented(_pointed(picture["ring"], device["avail-pos"], "avail")),
    ]


def _pointed(rows: Sequence[Picture], at: int, what: str) -> list[str]:
    """A table with an arrow at the row whose first column is *at*."""
    head, *lines = table(rows)
    marks = [f"  <- {what}" if next(iter(row.values())) == at else "" for row in rows]
    return [head, *(line + mark for line, mark in zip(lines, marks, strict=True))]


def _chain(chain: Picture) -> list[str]:
    if "head" in chain:
        title = f"chain {chain['avail-idx']}, head {chain['head']}"
    else:
        title = f"chain at {chain['position']}, id {chain['id']}"
    sizes = f"{chain['readable']} bytes to read, {chain['writable']} to write"
    more = "" if chain["complete"] else " (not all of it is shown)"
    taken = " (taken meanwhile)" if chain["taken-meanwhile"] else ""
    lines = ["", f"{title}: {sizes}{more}{taken}"]
    for d in chain["descriptors"]:
        indent = "      " if "in-table" in d else "  "
        link = f" -> {d['next']}" if "next" in d else ""
        flags = " ".join(d["flags"])
        lines.append(f"{indent}{d['index']:5}  {d['address']:>18}  {d['len']:>8}  {flags}{link}")
    if chain["problem"]:
        lines.append(f"  !  {chain['problem']}")
    elif chain["note"]:
        lines.append(f"  {chain['note']}")
    return lines


def _flags(part: Picture) -> str:
    return " ".join((str(part["flags"]), *part["flag-names"]))


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
