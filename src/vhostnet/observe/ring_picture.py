"""One ring of a running device as the specification draws it, and what is wrong with it.

It is read as it is: no worker is parked, nothing is written, and the compiled data path has no
part in it.  Driver and device go on meanwhile, so a picture of a ring under traffic may show a
chain that was already taken; nothing is said against such a one.
"""

from __future__ import annotations

from typing import Any

from vhostnet.datapath.codes import RING_ERRORS
from vhostnet.device.vhost_net import VhostNet
from vhostnet.device.vring import VHOST_NET_VQ_TX, Vring

from .chain_picture import not_a_packet
from .guest_bytes import guest_bytes
from .packed_picture import packed_picture
from .split_picture import split_picture

#: Descriptors that are looked at for one picture: what a hostile ring can cost control.
MAX_DESCRIPTORS = 2048


def ring_picture(net: VhostNet, ring: Vring, limit: int) -> dict[str, Any]:
    """Draw a ring, with *limit* waiting chains at most.

    Returns:
        `running`, `format`, `num`, `parts` (the front-end's addresses), what `split_picture` or
        `packed_picture` give, and `problems`: rules that are broken, in words.  A ring that has no
        place in the guest's memory has a `problems` that says so, and no picture.
    """
    error = int(ring.vq["last_error"])
    drawn: dict[str, Any] = {
        "running": net.active(ring.index),
        "format": "packed" if ring.format.is_packed else "split",
        "num": ring.num,
        "last-error": RING_ERRORS.get(error, str(error)) if error else None,
        "parts": [],
        "problems": [],
    }
    if ring.addresses is None:
        return {**drawn, "problems": ["the front-end has not said where the ring is"]}
    parts: dict[str, int] = {}
    for part in ring.format.parts(ring.addresses, ring.num):
        hva, missing = net.space.lookup(part.address, part.size, part.access)
        name = part.field.removesuffix("_hva")
        drawn["parts"].append({"part": name, "uva": f"{part.address:#x}", "size": part.size})
        if hva is None:
            drawn["problems"].append(f"{name}: {missing:#x} is not in the guest's memory")
        else:
            parts[part.field] = hva
    if drawn["problems"]:
        return drawn
    draw = packed_picture if ring.format.is_packed else split_picture
    try:
        memory = guest_bytes(net, ring)
        drawn |= draw(ring.vq, parts, memory, limit, MAX_DESCRIPTORS)
    except OSError as failure:
        return {**drawn, "problems": [f"the guest's memory cannot be read: {failure}"]}
    for chain in drawn["chains"]:
        chain["note"] = not_a_packet(chain, ring.index == VHOST_NET_VQ_TX)
    return drawn
