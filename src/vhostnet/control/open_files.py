"""Commands whose devices are open files, as the control socket sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vhostnet.protocol.qmp_session import QmpError

from .daemon import Card

if TYPE_CHECKING:
    from vhostnet.frontdoors.vhost_ioctl import VhostFile


class FilesDaemon:
    """`vhostnet run` or `vhostnet chardev` (`control.daemon.Daemon`).

    Args:
        door: which of them.
        files: the files that are open now.
    """

    def __init__(self, door: str, files: Callable[[], Iterable[VhostFile]]) -> None:
        self.door = door
        self._files = files

    def cards(self) -> Sequence[Card]:
        return [_card(file) for file in self._files()]

    def add_device(self, keys: Mapping[str, Any]) -> str:  # noqa: ARG002
        raise self._refusal()

    def delete_device(self, name: str) -> None:  # noqa: ARG002
        raise self._refusal()

    def _refusal(self) -> QmpError:
        return QmpError(f"the devices of vhostnet {self.door} are the files that programs open")


def _card(file: VhostFile) -> Card:
    net, pid = file.verbs.net, file.verbs.owner_pid
    return Card(net.card, (net,), None, {"connected": bool(pid), "pid": pid or None})
