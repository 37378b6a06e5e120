"""What the daemon answers, for human eyes: tables, and lists of names and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

#: Of what there is much of, the columns of a table of several; one alone is shown with all it has.
COLUMNS = {
    "query-devices": (
        "device", "socket", "backend", "partner", "connected", "pid", "queue-pairs", "running",
    ),
    "query-vrings": (
        "device", "queue", "running", "format", "num", "last-avail", "avail", "avail-pos",
        "last-used", "used-pos", "waiting", "kicks-wanted", "ring-errors", "last-error",
    ),
    "query-workers": (
        "device", "worker", "tid", "parked", "wakeups", "runs", "busy-ns", "idle-ns",
    ),
    "query-log": ("area", "level", "own"),
}  # fmt: skip


def view(command: str, given: Mapping[str, Any], answer: Any) -> list[str]:
    """Lines that show the answer to a command."""
    if command in _VIEWS:
        return _VIEWS[command](given, answer)
    if isinstance(answer, dict):
        return pairs(answer)
    if isinstance(answer, list) and all(isinstance(item, dict) for item in answer):
        if not answer:
            return ["(none)"]
        if len(answer) == 1 and command in COLUMNS:
            return pairs(answer[0])
        return table(answer, COLUMNS.get(command))
    return [_text(answer)]


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> list[str]:
    """Rows under a head; columns that no row has are left out, numbers stand to the right."""
    names = columns or list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if any(name in row for row in rows)]
    cells = [[_text(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(row[at]) for row in cells)) for at, name in enumerate(names)]
    rights = [
        all(isinstance(row.get(name), (int, float, type(None))) for row in rows) for name in names
    ]

    def line(words: Iterable[str]) -> str:
        padded = (
            word.rjust(width) if right else word.ljust(width)
            for word, width, right in zip(words, widths, rights, strict=True)
        )
        return "  ".join(padded).rstrip()

    return [line(names), *(line(row) for row in cells)]


def pairs(values: Mapping[str, Any]) -> list[str]:
    """One name and value a line; nothing for nothing."""
    width = max((len(name) for name in values), default=0)
    return [f"{name.ljust(width)}  {_text(value)}" for name, value in values.items()]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(_text(item) for item in value) or "-"
    if isinstance(value, dict):
        return " ".join(f"{name}={_text(item)}" for name, item in value.items()) or "-"
    # a name that a front-end or a file gave must not write on the terminal
    return "".join(c if c.isprintable() else "?" for c in str(value)) or "-"


def _commands(_given: Mapping[str, Any], answer: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for command in answer:
        words = [
            a["name"].upper() if a["required"] else f"[{a['name']}]" for a in command["arguments"]
        ]
        text = " ".join((command["name"].removeprefix("query-"), *words))
        rows += [text, f"    {command['help']}"]
    return rows


def _memory(_given: Mapping[str, Any], answer: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for device in answer:
        mib = device["size"] / (1 << 20)
        lines.append(f"{device['device']}: {mib:g} MiB in {len(device['regions'])} regions")
        if device["regions"]:
            lines += [f"  {line}" for line in table(device["regions"])]
        if "iotlb" in device:
            shown, n = len(device["iotlb"]), device["iotlb-entries"]
            lines.append(f"  IOTLB: {n} entries" + (f", {shown} shown" if shown < n else ""))
            lines += [f"  {line}" for line in table(device["iotlb"])] if shown else []
    return lines or ["(none)"]


def _stats(given: Mapping[str, Any], answer: Sequence[Mapping[str, Any]]) -> list[str]:
    if "device" in given:
        return _stats_of_one(answer[0])
    rows = []
    for device in answer:
        for number, pair in enumerate(device["pairs"]):
            for direction in ("rx", "tx"):
                counters = pair[direction]["counters"]
                drops = sum(n for name, n in counters.items() if name.startswith("drop"))
                rows.append(
                    {
                        "device": device["name"],
                        "queue": f"{direction}{number}",
                        **{name: counters[name] for name in ("packets", "bytes", "kicks", "calls")},
                        "drops": drops,
                        "ring-errors": counters["ring_errors"],
                    }
                )
    return table(rows) if rows else ["(none)"]


def _stats_of_one(device: Mapping[str, Any]) -> list[str]:
    """All that is not zero."""
    lines = []
    for number, pair in enumerate(device["pairs"]):
        parts = {
            **{f"{name}{number}": pair[name]["counters"] for name in ("rx", "tx")},
            f"worker {number}": pair["worker"],
            f"backend {number}": pair["backend"],
        }
        for name, counters in parts.items():
            moved = {key: n for key, n in counters.items() if n}
            if moved:
                lines += [f"{name}:", *(f"  {line}" for line in pairs(moved))]
    return lines or ["(nothing has moved yet)"]


def _sandbox(_given: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    why = f" ({answer['why']})" if "why" in answer else ""
    return [
        f"sandbox: {answer['sandbox']}{why}",
        *(table(answer["stages"]) if answer["stages"] else []),
        *("", "the kernel says:", *(f"  {line}" for line in pairs(answer["kernel"]))),
        *("", "tried just now:", *(f"  {line}" for line in pairs(answer["attempts"]))),
    ]


def _capture(_given: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    facts = {name: value for name, value in answer.items() if name != "queues"}
    queues = table(answer["queues"]) if answer.get("queues") else []
    return [*pairs(facts), *([""] if queues else []), *queues]


_VIEWS: dict[str, Callable[[Mapping[str, Any], Any], list[str]]] = {
    "capture-start": _capture,
    "capture-stop": _capture,
    "query-capture": _capture,
    "query-commands": _commands,
    "query-memory": _memory,
    "query-sandbox": _sandbox,
    "query-stats": _stats,
}
