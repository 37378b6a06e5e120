"""Commands that change something."""

from __future__ import annotations

import logging
from typing import Any

from vhostnet.log_levels import LEVELS, ROOT
from vhostnet.protocol.qmp_session import QmpError

from .daemon import Daemon, card_of

#: The area that is all of it.
ALL = "all"


def log_set(daemon: Daemon, *, level: str, area: str = ALL) -> dict[str, Any]:  # noqa: ARG001
    """Change how much is logged: error, warning, info or debug; or inherit, for an area.

    Areas are those of --log-level, and `all`.
    """
    logger = _logger(area)
    if level == "inherit" and area != ALL:
        logger.setLevel(logging.NOTSET)
    elif level in LEVELS:
        logger.setLevel(LEVELS[level])
    else:
        inherit = "" if area == ALL else ", inherit"
        raise QmpError(f"log-set: '{level}' is not one of {', '.join(LEVELS)}{inherit}")
    return {"area": area, "level": logging.getLevelName(logger.getEffectiveLevel()).lower()}


def query_log(daemon: Daemon) -> list[dict[str, Any]]:  # noqa: ARG001
    """The level of each area that logs, and whether it is its own."""
    return [
        {
            "area": name,
            "level": logging.getLevelName(_logger(name).getEffectiveLevel()).lower(),
            "own": _logger(name).level != logging.NOTSET,
        }
        for name in areas()
    ]


def device_add(daemon: Daemon, **keys: Any) -> dict[str, Any]:
    """Make a device, as `vhostnet serve --device` would, and serve it; returns its name.

    The keys are those of --device: see `table.commands`.
    """
    return {"device": daemon.add_device({k.replace("_", "-"): v for k, v in keys.items()})}


def device_del(daemon: Daemon, *, device: str) -> None:
    """End a device: its front-end loses its session, its socket and its backend are closed."""
    card_of(daemon, device)
    daemon.delete_device(device)


def areas() -> list[str]:
    """What logs by itself, as --log-level calls it: "all" and the loggers right below ours."""
    known = logging.Logger.manager.loggerDict.items()
    loggers = (name for name, logger in known if isinstance(logger, logging.Logger))
    names = (name.removeprefix(f"{ROOT}.") for name in loggers if name.startswith(f"{ROOT}."))
    return [ALL, *sorted(name for name in names if "." not in name)]


def _logger(area: str) -> logging.Logger:
    if area not in areas():
        raise QmpError(f"there is no area '{area}' (there is: {', '.join(areas())})")
    return logging.getLogger(ROOT if area == ALL else f"{ROOT}.{area}")
