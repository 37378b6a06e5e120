"""The backend that is another guest: what a card offers, and memory for its workers.

There is nothing to open.  Which two cards belong together says the operator's NAME
(`cli/served_devices.py`), and who moves what `device/port_net.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vhostnet.datapath.layout import HOLD_SIZE, PORT, PORT_HDR_SIZE, PORT_TEMPLATE_SIZE

from .backend import Backend, BackendQueue
from .tap import BASE_FEATURES, USO_FEATURES


class PortBackend(Backend):
    """One end of a cable between two cards.

    What the other guest cannot take is done in software, so all is offered that a TAP offers.
    """

    kind = "port"
    features = BASE_FEATURES | USO_FEATURES

    def __init__(self, queue_pairs: int) -> None:
        super().__init__([_queue() for _ in range(queue_pairs)])


def _queue() -> BackendQueue:
    record: Any = np.zeros(1, PORT)
    header = np.zeros(PORT_HDR_SIZE, np.uint8)
    bounce = np.zeros(HOLD_SIZE, np.uint8)
    template = np.zeros(PORT_TEMPLATE_SIZE, np.uint8)
    record[0]["back_epfd"] = -1
    record[0]["port_hdr_hva"] = header.ctypes.data
    record[0]["frame_bounce_hva"] = bounce.ctypes.data
    record[0]["template_hva"] = template.ctypes.data
    return BackendQueue(record, keep=[header, bounce, template])
