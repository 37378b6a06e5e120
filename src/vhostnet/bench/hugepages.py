"""2 MiB pages for DPDK, reserved for as long as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vhostnet.errors import HostError

_NODE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
#: Two testpmd of 512 MiB each.
WANTED = 544


@contextmanager
def reserved(wanted: int = WANTED, node: Path = _NODE) -> Iterator[None]:
    """Reserve pages, and give back at the end what was not reserved before.

    Raises:
        HostError: not root, or not so much memory in one piece.
    """
    try:
        before = int(node.read_text())
        if before < wanted:
            node.write_text(f"{wanted}\n")
        if int(node.read_text()) < wanted:
            raise HostError(f"--hugepages: no room for {wanted} pages of 2 MiB")
    except OSError as err:
        raise HostError(f"--hugepages: {node}: {err.strerror}", err.errno or 0) from err
    try:
        yield
    finally:
        node.write_text(f"{before}\n")
