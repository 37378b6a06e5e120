"""What comments of packets say: the words of which the data path makes them."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np

from vhostnet.datapath.capture import (
    DROPPED_DISABLED,
    DROPPED_MALFORMED,
    DROPPED_SHORT,
    DROPPED_TOO_SMALL,
    N_TEXTS,
    TEXT_AND,
    TEXT_DROPPED,
    TEXT_ECN,
    TEXT_PARTIAL,
    TEXT_PLUS,
    TEXT_VALID,
)
from vhostnet.datapath.layout import CAPTURE_TEXT_SIZE
from vhostnet.uapi.virtio import (
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)

_WORDS = {
    **dict.fromkeys(range(8), "GSO unknown, size "),
    VIRTIO_NET_HDR_GSO_TCPV4: "GSO tcpv4, size ",
    VIRTIO_NET_HDR_GSO_TCPV6: "GSO tcpv6, size ",
    VIRTIO_NET_HDR_GSO_UDP_L4: "GSO udp, size ",
    TEXT_ECN: ", ECN",
    TEXT_PARTIAL: "checksum partial, start ",
    TEXT_PLUS: " offset ",
    TEXT_VALID: "checksum valid",
    TEXT_AND: "; ",
}
#: By the name of the counter that counts them too.
_DROPS = {
    DROPPED_MALFORMED: "malformed",
    DROPPED_DISABLED: "disabled",
    DROPPED_SHORT: "short",
    DROPPED_TOO_SMALL: "too_small",
    -errno.ENOSPC: "full",
    -errno.ENOTCONN: "no_peer",
    -errno.EINVAL: "bad_header",
    -errno.EMSGSIZE: "too_long",
    -errno.EIO: "down",
    -errno.ENETDOWN: "down",
    -errno.EBADFD: "gone",
}


def text_table() -> Any:
    """u8[N_TEXTS][CAPTURE_TEXT_SIZE]: a length and so many letters each."""
    words = dict(_WORDS)
    for result in range(1, 256):
        name = errno.errorcode.get(result, str(result))
        words[TEXT_DROPPED + result] = f"dropped: drop_refused ({name})"
    for negative, counter in _DROPS.items():
        words[TEXT_DROPPED - negative] = f"dropped: drop_{counter}"
    table = np.zeros((N_TEXTS, CAPTURE_TEXT_SIZE), np.uint8)
    for k, text in words.items():
        data = text.encode()
        table[k, 0] = len(data)
        table[k, 1 : 1 + len(data)] = np.frombuffer(data, np.uint8)
    return table
