"""Log lines on stderr: one event, one line (a bug's traceback excepted), in three forms."""

from __future__ import annotations

import json
import logging
import time
from typing import TextIO

from vhostnet.cli.parser import nearest
from vhostnet.log_levels import LEVELS, ROOT


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("vhostnet: %(message)s")


class _Fields(logging.Formatter):
    """Base of the forms for machines: time in UTC, level, message, traceback if there is one."""

    def fields(self, record: logging.LogRecord) -> dict[str, str]:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "area": _area(record.name),
            "msg": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return fields


def _area(logger: str) -> str:
    name = logger.removeprefix(f"{ROOT}.")
    return name if name in AREAS else "daemon"


class _Json(_Fields):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.fields(record))


class _Logfmt(_Fields):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_quoted(text)}" for key, text in self.fields(record).items())


def _quoted(text: str) -> str:
    # A JSON string is a valid logfmt value, and keeps a traceback on one line.
    return json.dumps(text) if not text or any(c in text for c in ' "=\n') else text


# Of what guests and front-ends cause: a session's counters of 50 queue pairs fit.
BURST = 100
INTERVAL_S = 10.0


class _Bounded(logging.Filter):
    """Hold back lines that a guest or a front-end can cause without end, and count them.

    The door bounds its own lines (logger "vhostnet", see peer_log); these come from below it.
    Errors, which are bugs or the host's doing, always pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self._began = 0.0
        self._lines = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == ROOT or record.levelno >= logging.ERROR:
            return True
        now = time.monotonic()
        if now - self._began >= INTERVAL_S:
            held_back = self._lines - BURST
            self._began, self._lines = now, 0
            if held_back > 0:
                record.msg = f"{record.msg} ({held_back} lines before this one were held back)"
        self._lines += 1
        return self._lines <= BURST


#: Parts of the program whose lines have a level of their own, and what they tell of.
AREAS = {
    "device": "rings, memory, features and counters of cards",
    "tap": "TAPs",
    "worker": "worker threads",
    "control": "who is at the control socket",
    "cuse": "the character device's callers",
    "stall": "rings that should move and do not",
    "metrics": "who asks for the metrics",
    "capture": "captures of packets",
    "null": "the null backend",
}

#: Levels by area; "" is what holds for the others.
Levels = dict[str, str]


def parse_levels(text: str) -> Levels:
    """Read "info,device=debug"; ValueError says what would be right."""
    levels: Levels = {}
    for part in text.split(","):
        area, equals, level = part.rpartition("=")
        if level not in LEVELS:
            raise ValueError(f"{level!r} is not one of {', '.join(LEVELS)}{nearest(level, LEVELS)}")
        if equals and area not in AREAS:
            raise ValueError(
                f"{area!r} is no area: one of {', '.join(AREAS)}{nearest(area, AREAS)}"
            )
        if area in levels:
            raise ValueError(f"{part!r}: {'the area' if area else 'a level'} is given twice")
        levels[area] = level
    return levels


def set_levels(levels: Levels) -> None:
    """Change what is logged, at any time; an area that is not named follows the others."""
    root = logging.getLogger(ROOT)
    root.setLevel(LEVELS[levels.get("", "info")])
    for area in AREAS:
        level = levels.get(area)
        root.getChild(area).setLevel(LEVELS[level] if level else logging.NOTSET)


FORMATS: dict[str, type[logging.Formatter]] = {"text": _Text, "logfmt": _Logfmt, "json": _Json}


def set_up(levels: Levels, form: str) -> None:
    """Send this program's log to stderr; other packages' (numba's is long) stays off."""
    handler = logging.StreamHandler()
    handler.setFormatter(FORMATS[form]())
    handler.addFilter(_Bounded())
    logging.getLogger(ROOT).handlers[:] = [handler]
    set_levels(levels)


def send_to(stream: TextIO) -> None:
    """Send what `set_up` has set up to another place than stderr."""
    for handler in logging.getLogger(ROOT).handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(stream)
