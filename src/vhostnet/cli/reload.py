"""SIGHUP: read the file of --config again, apply what can be applied, and name what cannot.

Sessions go on, whatever the file says: a device that is in the old file and in the new one keeps
its front-end, and what would need another one is named instead.  A wrong file changes nothing.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from vhostnet.cli import logs
from vhostnet.cli.options import DAEMON_OPTIONS, DEVICE_OPTIONS
from vhostnet.cli.served_devices import ServeDaemon
from vhostnet.cli.service_manager import notify, reloading
from vhostnet.errors import ConfigError, VhostnetError
from vhostnet.frontdoors.vhost_user_daemon import DeviceOptions, ServedCard, ServedCards

if TYPE_CHECKING:
    from vhostnet.frontdoors.vhost_user_device import VhostUserDevice

log = logging.getLogger("vhostnet")

#: What holds for the daemon, by key, and its devices.
Read = Callable[[], tuple[Mapping[str, Any], Sequence[DeviceOptions]]]

RESTART = "needs a restart of the daemon"
ANOTHER_DEVICE = "needs another device: rename it, or restart the daemon"


class Reload:
    """What a running daemon took from its file, and how it follows a new one.

    Args:
        read: reads the file, or raises ConfigError.
        settings: what holds for the daemon now.
    """

    def __init__(
        self, read: Read, settings: Mapping[str, Any], daemon: ServeDaemon, cards: ServedCards
    ) -> None:
        self._read = read
        self._settings = dict(settings)
        self._daemon = daemon
        self._cards = cards
        #: Devices that the control socket has made are not the file's to take away.
        self._of_file = {card.name for card in cards}

    def __call__(self) -> None:
        """Follow the file as it is now; what is wrong or cannot be is logged."""
        reloading()
        self._reload()
        notify("READY=1")

    def _reload(self) -> None:
        try:
            settings, devices = self._read()
        except ConfigError as error:
            for problem in error.problems:
                log.error("%s", problem)
            log.error("the configuration is not reloaded: nothing has changed")
            return
        left = [*self._apply_settings(settings), *self._apply_devices(devices)]
        for line in left:
            log.warning("not applied: %s", line)
        log.info(
            "the configuration is reloaded: %d devices%s",
            len(tuple(self._cards)),
            f", {len(left)} changes not applied" if left else "",
        )

    def _apply_settings(self, settings: Mapping[str, Any]) -> Iterator[str]:
        for option in DAEMON_OPTIONS:
            new = settings[option.key]
            if new == self._settings[option.key]:
                continue
            if option.live:
                self._settings[option.key] = new
            else:
                yield f"{option.key}: {RESTART}"
        logs.set_up(self._settings["log-level"], self._settings["log-format"])

    def _apply_devices(self, devices: Sequence[DeviceOptions]) -> Iterator[str]:
        wanted = {device.name: device for device in devices}
        for name in sorted(self._of_file - set(wanted)):
            self._of_file.discard(name)
            if name in self._cards:
                self._daemon.delete_device(name)
                log.info("%s: removed", name)
        for card in self._cards:
            if card.name in wanted:
                yield from self._change(card, wanted.pop(card.name))
        for device in wanted.values():
            try:
                self._add(device)
            except VhostnetError as error:
                yield str(error)

    def _add(self, device: DeviceOptions) -> None:
        try:
            self._daemon.add(device)
        except VhostnetError as error:
            text = str(error).removeprefix(f"{device.option}: ")
            raise VhostnetError(f"{device.option} {text}") from error
        self._of_file.add(device.name)

    def _change(self, card: ServedCard, new: DeviceOptions) -> Iterator[str]:
        old = card.wanted
        live = {}
        for option in DEVICE_OPTIONS:
            value = getattr(new, option.attribute)
            if value == getattr(old, option.attribute):
                continue
            if option.live:
                live[option.attribute] = value
            else:
                yield f"{new.option} {option.key}: {ANOTHER_DEVICE}"
        if live:
            card.wanted = dataclasses.replace(old, **live)
            device = cast("VhostUserDevice", card.device)
            device.set_busy_poll(card.wanted.busy_poll_us, card.wanted.busy_poll_adaptive)
            log.info("%s: %s", card.name, ", ".join(f"{k}={v}" for k, v in live.items()))
