"""The command that draws a ring."""

from __future__ import annotations

import re
from typing import Any

from vhostnet.observe.ring_picture import ring_picture
from vhostnet.protocol.qmp_session import QmpError

from .daemon import Daemon, card_of

MAX_CHAINS = 256
_QUEUE = re.compile(r"(rx|tx)([0-9]{0,3})")


def inspect(daemon: Daemon, *, device: str, queue: str, chains: int = 16) -> dict[str, Any]:
    """Draw one ring (rx0, tx1, ...) as the specification does, and say what is wrong with it."""
    card = card_of(daemon, device)
    match = _QUEUE.fullmatch(queue)
    pair = int(match[2] or 0) if match else 0
    if match is None or pair >= len(card.nets):
        raise QmpError(f"there is no queue '{queue}': rx0 to tx{len(card.nets) - 1}")
    if not 1 <= chains <= MAX_CHAINS:
        raise QmpError(f"'chains' is not a number from 1 to {MAX_CHAINS}")
    net = card.nets[pair]
    ring = net.rx if match[1] == "rx" else net.tx
    return {"device": device, "queue": f"{match[1]}{pair}", **ring_picture(net, ring, chains)}
