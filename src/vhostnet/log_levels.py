"""How loggers and their levels are called: on the command line, in files, by control clients."""

from __future__ import annotations

import logging

#: The logger above those of all areas.
ROOT = "vhostnet"
LEVELS = {
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
