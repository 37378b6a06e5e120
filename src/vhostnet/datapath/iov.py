"""Byte ranges over IOVEC arrays: what the kernel's iov_iter does for vhost_net."""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper, hot
from vhostnet.native.libc_raw import copy_bytes
from vhostnet.native.ordering import load_u8


@hot
def iov_to_buffer(iov: Any, at: int, n: int, dst_hva: int, size: int) -> int:
    """Copy up to *size* bytes from iov[at:at + n] to *dst_hva*; returns bytes copied."""
    done = 0
    for i in range(at, at + n):
        if done >= size:
            break
        piece = min(int(iov[i]["iov_len"]), size - done)
        copy_bytes(dst_hva + done, int(iov[i]["iov_base"]), piece)
        done += piece
    return done


@hot
def iov_from_buffer(iov: Any, at: int, n: int, src_hva: int, size: int) -> int:
    """Copy up to *size* bytes from *src_hva* into iov[at:at + n]; returns bytes copied."""
    done = 0
    for i in range(at, at + n):
        if done >= size:
            break
        piece = min(int(iov[i]["iov_len"]), size - done)
        copy_bytes(int(iov[i]["iov_base"]), src_hva + done, piece)
        done += piece
    return done


@hot
def iov_byte(iov: Any, at: int, n: int, offset: int) -> int:
    """The byte at *offset* of iov[at:at + n]; 0 beyond the end."""
    for i in range(at, at + n):
        size = int(iov[i]["iov_len"])
        if offset < size:
            return load_u8(int(iov[i]["iov_base"]) + offset)
        offset -= size
    return 0


@helper
def iov_skip(iov: Any, at: int, n: int, size: int) -> int:
    """Drop the first *size* bytes of iov[at:at + n] in place.

    Returns:
        The index of the first piece with bytes left, at .. at + n.
    """
    i = at
    end = at + n
    left = size
    while i < end:
        piece = int(iov[i]["iov_len"])
        if piece > left:
            if left > 0:
                iov[i]["iov_base"] += left
                iov[i]["iov_len"] -= left
            break
        left -= piece
        i += 1
    return i


@hot
def iov_to_iov(
    src: Any, at: int, n: int, skip: int, dst: Any, to: int, m: int, put: int, size: int
) -> int:
    """Copy up to *size* bytes from src[at:at + n], without its first *skip* bytes, to
    dst[to:to + m] behind its first *put* bytes; returns bytes copied.  No entry is changed.
    """
    i = at
    while i < at + n and skip >= int(src[i]["iov_len"]):
        skip -= int(src[i]["iov_len"])
        i += 1
    j = to
    while j < to + m and put >= int(dst[j]["iov_len"]):
        put -= int(dst[j]["iov_len"])
        j += 1
    done = 0
    while done < size and i < at + n and j < to + m:
        left = int(src[i]["iov_len"]) - skip
        room = int(dst[j]["iov_len"]) - put
        piece = min(left, room, size - done)
        copy_bytes(int(dst[j]["iov_base"]) + put, int(src[i]["iov_base"]) + skip, piece)
        done += piece
        skip += piece
        put += piece
        if piece == left:
            i += 1
            skip = 0
        if piece == room:
            j += 1
            put = 0
    return done
