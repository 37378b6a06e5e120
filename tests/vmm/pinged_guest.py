"""A guest of a few lines: a card over vhost-user that answers ARP and ping, with any address.

It keeps its rings when the back-end goes away and connects again, as QEMU does with reconnect=1.
Runs where there is nothing but python3: `python3 pinged_guest.py SOCKET`.
"""

from __future__ import annotations

import select
import socket
import sys

from vhostnet_frontend import NetDriver, VhostUserTransport
from vhostnet_frontend.split_ring import SplitRing

MAC = bytes.fromhex("525400123401")
#: A back-end that is started by our connecting says nothing until its data path is loaded.
PATIENCE_S = 240.0
_ARP, _IPV4 = b"\x08\x06", b"\x08\x00"
_ICMP = 1


def answer(frame: bytes) -> bytes | None:
    """What a host says to an ARP request or a ping."""
    sender, kind, body = frame[6:12], frame[12:14], bytearray(frame[14:])
    if kind == _ARP and body[6:8] == b"\0\1":
        asked, asking = bytes(body[24:28]), bytes(body[8:18])
        return sender + MAC + _ARP + bytes(body[:6]) + b"\0\2" + MAC + asked + asking
    if kind == _IPV4 and body[9] == _ICMP and body[20] == 8:
        body[12:16], body[16:20] = body[16:20], body[12:16]
        body[20] = 0
        # RFC 1624: the type's word has become 0x0800 smaller
        checksum = int.from_bytes(body[22:24], "big") + 0x0800
        body[22:24] = ((checksum & 0xFFFF) + (checksum >> 16)).to_bytes(2, "big")
        return sender + MAC + _IPV4 + bytes(body)
    return None


def is_there(transport: VhostUserTransport) -> bool:
    """Whether the back-end still has its end of the socket."""
    readable, _, _ = select.select([transport.sock], [], [], 0)
    return not readable or transport.sock.recv(1, socket.MSG_PEEK) != b""


def go_on(card: NetDriver, transport: VhostUserTransport) -> None:
    """Give the rings, as they are, to a back-end that knows nothing of them."""
    card.transport.close()
    card.transport = transport
    transport.set_owner()
    transport.get_features()
    transport.set_features(card.features)
    transport.set_mem_table(card.memory.regions)
    for queue in card.queues:
        assert isinstance(queue.ring, SplitRing)
        transport.set_vring_num(queue.index, queue.ring.num)
        transport.set_vring_base(queue.index, queue.ring.read_used_idx())
        transport.set_vring_addr(queue.ring.addr(queue.index))
        transport.set_vring_kick(queue.index, queue.kick_fd)
        transport.set_vring_call(queue.index, queue.call_fd)
        transport.set_vring_err(queue.index, queue.err_fd)
    for queue in card.queues:
        transport.set_backend(queue.index, 0)
        queue.kick()


def main(path: str) -> None:
    def connect() -> VhostUserTransport:
        return VhostUserTransport.connect(path, wait=PATIENCE_S, timeout=PATIENCE_S)

    with NetDriver(connect()) as card:
        card.start()
        print("started", flush=True)
        while True:
            frame = card.receive(timeout=0.1)
            if frame is not None:
                reply = answer(frame)
                if reply is not None:
                    card.send(reply)
            elif not is_there(card.transport):
                print("lost", flush=True)
                go_on(card, connect())
                print("back", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
