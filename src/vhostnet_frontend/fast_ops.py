"""What a compiled driver does with a ring; the record's type chooses the format's body.

Every chain is one descriptor.  Bodies: `fast_split`, `fast_packed`.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import family

Record = Any


@family
def driver_add(ring: Record, slot: int, size: int, flags: int) -> None:
    """Write the descriptor of *slot*'s buffer; the device sees it after `driver_publish`."""
    raise NotImplementedError


@family
def driver_publish(ring: Record) -> None:
    """Let the device see all that was added since the last time."""
    raise NotImplementedError


@family
def driver_needs_kick(ring: Record) -> bool:
    """Whether the device wants to hear of what was published since the last call."""
    raise NotImplementedError


@family
def driver_peek_used(ring: Record) -> tuple[int, int]:
    """(id, length) of the next used entry, (-1, 0) if there is none."""
    raise NotImplementedError


@family
def driver_skip_used(ring: Record) -> None:
    """Step over one used chain."""
    raise NotImplementedError


@family
def driver_enable_interrupts(ring: Record, after: int) -> bool:
    """Ask for an interrupt after *after* more; True if something is used already."""
    raise NotImplementedError


@family
def driver_disable_interrupts(ring: Record) -> None:
    """Ask for none."""
    raise NotImplementedError
