"""The rules of Linux's vhost_net that a scenario has to show, by id.

The first number is the subject: 1.2 order of checks, 1.3 what each ioctl does, 1.4 IOTLB
messages, 3.4 starting and stopping, 3.5 flushes, 4.1 headers, 4.2 fetching a chain, 4.3 after an
error, 4.4 sending, 4.5 receiving, 4.6 publishing and signalling, 4.7 weights, 4.8 busy polling,
4.9 zerocopy, 4.10 dirty logging, 4.11 the IOTLB in the data path, 7 bugs of the past.

A rule is shown by the scenarios that name it, or is not applicable with a reason, or is still
to be shown; `test_oracle` fails when a rule is none of the three.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        text: what Linux does.
        not_applicable: why no scenario can show it; empty: one must.
        to_do: why none shows it yet; empty: one does.
    """

    text: str
    not_applicable: str = ""
    to_do: str = ""


RULES: dict[str, Rule] = {}


def _rules(prefix: str, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        RULES[f"{prefix}.{name}" if name else prefix] = Rule(text)


def _to_do(id_: str, text: str, why: str) -> None:
    RULES[id_] = Rule(text, to_do=why)


def _not_applicable(id_: str, text: str, reason: str) -> None:
    RULES[id_] = Rule(text, not_applicable=reason)


_rules(
    "1.2",
    {
        "1": "feature, owner and backend ioctls are handled first and copy their argument first",
        "2": "every other number meets the owner check (EPERM) before anything else",
        "3": "what is left is a ring ioctl: EFAULT, then ENOBUFS for index 2 and up, then ENOTTY",
        "4": "the owner is an address space: a forked child is not the owner",
    },
)
_rules(
    "1.3",
    {
        "get_features": "needs no owner; answers the offered set",
        "set_features": "needs no owner; a bit that is not offered is EOPNOTSUPP, nothing changes",
        "set_features.log": "LOG_ALL is refused (EFAULT) while an active ring cannot be logged",
        "set_features.active": "the set may change while rings run; header lengths follow at once",
        "set_features.iotlb": "ACCESS_PLATFORM makes a new, empty IOTLB; clearing it keeps the old",
        "features_array": "the features in 64-bit words, since 6.17; unknown before",
        "backend_features": "one bit (IOTLB_MSG_V2), no owner; other bits are EOPNOTSUPP",
        "set_owner": "a device has one owner: the second SET_OWNER is EBUSY",
        "reset_owner": "EPERM unless the owner; everything is as after open, with an empty table",
        "mem_table.padding": "padding that is not zero is EOPNOTSUPP",
        "mem_table.count": "64 regions are the most (E2BIG); none is legal",
        "mem_table.wrap": "a region that wraps, or is empty above 0, is EFAULT",
        "mem_table.overlap": "regions may overlap; the lowest start wins",
        "mem_table.inactive": "user addresses are not looked at while no ring runs",
        "mem_table.active": "with a running ring every region must be a user range, else EFAULT",
        "mem_table.running": "a table may be replaced while rings run",
        "mem_table.stuck": "a ring that met an unmapped buffer waits for a kick, not a table",
        "log_base": "any address while no ring runs; EFAULT if a running ring cannot log there",
        "log_fd": "-1 removes; EBADF for no descriptor, EINVAL for one that is no eventfd",
        "vring_num": "a power of two up to 32768, else EINVAL; EBUSY while the ring runs",
        "vring_addr.flags": "only the log flag is known, else EOPNOTSUPP",
        "vring_addr.align": "avail by 2, used and log by 4, else EINVAL; descriptors do not matter",
        "vring_addr.inactive": "ranges are not looked at while the ring is stopped",
        "vring_addr.active": "a running ring may move, but only to legal addresses (EINVAL)",
        "vring_base.set": "EBUSY while the ring runs, EINVAL above 0xffff",
        "vring_base.get": "legal at any time, also while the ring runs",
        "vring_endian": "ENOTTY on kernels without the cross-endian option",
        "kick": "-1 removes; EBADF, EINVAL; one that is signalled already counts",
        "kick.same": "setting the same eventfd again changes nothing",
        "kick.max": "an eventfd at its maximum is EINVAL",
        "call_err": "-1 removes, EBADF, EINVAL; takes effect at once, nothing is signalled late",
        "busyloop": "any 32-bit number, read back as set",
        "backend.order": "EPERM, ENOBUFS, EFAULT for table and rings, then the descriptor",
        "backend.detach": "-1 too is EFAULT without a memory table",
        "backend.packet": "a raw AF_PACKET socket is a backend too",
        "backend.enotsock": "a descriptor that is neither a TAP nor a packet socket is ENOTSOCK",
        "backend.einval": "a TUN descriptor without an interface is EINVAL, so is a socket with "
        "an error pending",
        "backend.efault": "a used ring that cannot be written is EFAULT",
        "ranges": "every verb with a ring index refuses 2 and up with ENOBUFS",
    },
)
_not_applicable(
    "1.3.fork_from_owner",
    "SET_/GET_FORK_FROM_OWNER choose what kind of thread the worker is",
    "a kernel matter; a user-space door only remembers the value, in its ioctl layer",
)
_rules(
    "1.4",
    {
        "write.short": "less than 40 bytes is EINVAL",
        "write.type": "the outer type is 1 or 2, else EINVAL; 2 needs no acknowledgement",
        "write.empty": "an update of size 0 is EINVAL",
        "write.refused": "what the IOTLB refuses is EFAULT: no IOTLB, a wrap, an unknown body type",
        "write.length": "success answers 72, even for 40 bytes",
        "update": "an update adds a range and wakes the rings whose misses were read",
        "update.overlap": "an older overlapping entry with a start not above still wins",
        "invalidate": "whole entries that overlap are dropped; (0, 0) is everything",
        "update.max": "beyond 2048 entries the oldest goes",
        "update.whole": "the whole address space in one update is legal",
        "read.short": "a buffer of less than 72 bytes reads 0",
        "read.miss": "a miss is 72 bytes: first missing byte, access wanted, all else zero",
        "read.none": "nothing to read is EAGAIN on a non-blocking descriptor",
        "read.twice": "misses are not merged: two kicks, two misses",
        "poll": "readable when a miss is queued, never writable",
    },
)
_not_applicable(
    "1.4.write.owner",
    "write needs no ownership: a forked child may write",
    "who calls is known to a character-device door only",
)
_not_applicable(
    "1.4.read.block",
    "a blocking read without an IOTLB is EBADFD, else it sleeps until RESET_OWNER or close",
    "blocking is a character-device door's business",
)
_rules(
    "3.4",
    {
        "2": "the device keeps the TAP's file: the client may close its own descriptor",
        "3": "the same backend again is a no-op",
        "4b": "used->flags is ours and written at the start",
        "4c": "the first signal after a start is unconditional",
        "4d": "used->idx is taken from memory at the start",
        "4e": "a start that fails leaves the old state",
        "5.tx": "TX runs once at the start: what is available goes out without a kick",
        "5.down": "with the interface down nothing goes out until a kick",
        "5.rx": "packets that wait in the TAP are delivered at the start",
        "6": "a stop publishes what was taken; the base is final; waiting packets survive",
        "free": "the order of set-up is free, except: owner first, table and rings before backend",
    },
)
_not_applicable(
    "3.4.4a",
    "the byte order is fixed at the start",
    "always little on what we run on",
)
_rules(
    "3.5",
    {
        "control": "SET_MEM_TABLE, SET_LOG_BASE, SET_LOG_FD return after what was queued has run",
        "kick": "replacing a kick returns after what was queued has run",
        "backend": "detaching returns after what was queued has run",
        "reset": "RESET_OWNER stops and forgets everything; the device can be used again",
        "close": "close stops the rings and lets go of the TAP",
    },
)
_not_applicable(
    "3.5.none",
    "SET_FEATURES and the other ring ioctls do not flush",
    "ours park the worker at every verb, which is stronger and cannot be seen",
)
_rules(
    "4.1",
    {
        "10": "without MRG_RXBUF and VERSION_1 the header has 10 bytes",
        "12": "with either it has 12",
        "none": "a device whose features were never set uses no header",
        "27": "with bit 27 vhost takes the header off and makes one itself",
        "mismatch": "a TAP with another header length loses every received packet, silently",
    },
)
_rules(
    "4.2",
    {
        "a": "an avail index that jumps by more than num is refused; an unchanged one is empty",
        "b": "a head of num and up is refused",
        "c": "next of num and up, and a chain longer than num, are refused",
        "d.unnegotiated": "indirect tables work even if not negotiated; WRITE on them is ignored",
        "d.next": "NEXT on an indirect descriptor goes on in the main table",
        "d.length": "a table's length must be a multiple of 16",
        "d.order": "table entries are taken in order, whatever their next says",
        "d.overrun": "a chain that wants more entries than the table has is refused, also length 0",
        "d.nested": "an indirect entry in a table is refused",
        "d.unmapped": "a table that cannot be read is refused",
        "d.big": "a table of more than 65536 entries is refused",
        "e.regions": "a buffer may span adjoining regions",
        "e.zero": "a descriptor of length 0 is legal and adds nothing",
        "e.unmapped": "a buffer outside the table is refused",
        "e.iovecs": "more than 1024 pieces in a chain are refused",
        "f": "a readable descriptor after a writable one is refused",
        "g": "a refused head is not consumed: the position stays",
    },
)
_rules(
    "4.3",
    {
        "dead": "after an error notifications stay off: used->flags is 1, avail_event stays old",
        "retry": "a kick runs the handler again: it errs again, or goes on if the ring is sane",
        "published": "what was completed before the error is published and signalled",
        "err1": "a bad ring signals the error eventfd once",
        "err2": "a bad indirect table signals it twice",
        "tx_writable": "a TX chain with a writable part is consumed and not given back",
        "tx_empty": "a TX chain with nothing behind the header is consumed and not given back",
        "rx_readable": "an RX chain with a readable part is consumed and not given back",
        "rx_mrg": "with MRG, a bad chain after k good ones rewinds by k only",
        "rx_empty": "an RX chain without room is consumed and not given back",
        "setbackend": "a new SET_BACKEND runs the handler again",
        "used_ro": "a used ring that cannot be written is an error, no miss",
    },
)
_not_applicable(
    "4.3.unmapped",
    "memory that is in the table and not mapped faults at the copy",
    "ours maps what is in the table, or leaves it out; a page that vanishes later is a SIGBUS",
)
_rules(
    "4.4",
    {
        "used": "every TX completion has length 0, in the order of availability",
        "batch": "10 packets and a kick are one signal; 200 are four",
        "chain": "header and frame may lie in any number of descriptors",
        "single": "a frame larger than a page goes out alone",
        "small": "a frame below 14 bytes is dropped by the TAP and completed",
        "gso": "an unknown gso_type is dropped and completed",
        "wedge": "a header that the TAP refuses wedges the batched path",
        "hdr_len": "hdr_len beyond the frame is no obstacle in the batched path",
        "down": "with the interface down packets vanish and are completed",
        "packet.emsgsize": "what a packet socket refuses (EMSGSIZE, EINVAL) is dropped, completed",
        "packet.enetdown": "with a packet socket of an interface that is down: dropped, completed",
        "unbatched": "with a limited send buffer packets go one by one, a refused one is dropped",
        "csum": "NEEDS_CSUM is completed by whoever needs it; hdr_len is raised for it",
    },
)
_not_applicable(
    "4.4.in_order", "with IN_ORDER one entry for all", "6.1 and 6.12 do not offer IN_ORDER"
)
_not_applicable(
    "4.4.eagain",
    "EAGAIN keeps the head and waits for the socket",
    "needs a backend with a finite send buffer that fills up: shown with a socket in tests/unit",
)
_not_applicable(
    "4.4.gone",
    "a deleted TAP: error signal, frames and completions lost",
    "deleting an interface under the recording guest is a race; ours is in tests/unit",
)
_rules(
    "4.5",
    {
        "1": "a packet in the TAP is delivered as soon as there are buffers",
        "1.vlan": "a frame with a VLAN tag beside it is four bytes longer",
        "packet.vlan": "a packet socket of all protocols loses it: four bytes less come than its "
        "peek says",
        "2.small": "not mergeable, buffer too small: the packet is thrown away, the buffer kept",
        "2.rewind": "too few buffers: those taken are given back",
        "2.block": "a mergeable packet that never fits blocks those behind it",
        "3": "waiting for buffers: notifications are on, avail_event is the newest index seen",
        "4": "a packet that cannot be received into the chain is gone, the buffers are kept",
        "5.header": "the header is the TAP's; num_buffers is written for mergeable",
        "5.num_buffers": "num_buffers for VERSION_1 without MRG_RXBUF: since 6.14",
        "5.straddle": "header and num_buffers may straddle descriptors",
        "5.legacy": "without MRG_RXBUF and VERSION_1 nothing is written at offset 10",
        "6": "each used entry has its part of the packet, the last the rest",
        "6.in_order": "with IN_ORDER one entry a packet",
        "7": "more than 64 completions are published at once: 100 packets, two signals",
        "exit": "waiting for packets leaves used->flags at 1",
        "tiny": "a packet goes into as many tiny mergeable buffers as it takes",
    },
)
_not_applicable(
    "4.5.5.fault",
    "header or num_buffers that cannot be written: heads leaked or rewound, packet lost",
    "buffers always have room for the header; a fault in mapped memory is a SIGBUS",
)
_rules(
    "4.6",
    {
        "publish": "entries go round the ring's end",
        "no_call": "without a call eventfd nothing is signalled and all goes on",
        "no_interrupt": "avail flag 1 suppresses the signal",
        "on_empty": "NOTIFY_ON_EMPTY signals an emptied ring whatever the driver said",
        "event_idx": "with EVENT_IDX a signal comes when used_event is passed",
        "event_wrap": "indices are free-running: used_event is compared modulo 2^16",
        "first": "the first signal after a start needs no event",
        "flags": "without EVENT_IDX used->flags tells whether to kick",
        "avail_event": "with EVENT_IDX avail_event is the newest index seen; flags are not written",
        "kick_sum": "the kick eventfd is never read",
        "private": "our position is ours: what the driver writes to used->idx is not read back",
    },
)
_not_applicable(
    "4.6.unreadable",
    "what cannot be read of the driver's wishes counts as yes",
    "the rings are mapped while they run",
)
_rules("4.7", {"": "a handler leaves after 256 packets or 512 KiB and runs again later"})
_rules("4.8", {"": "busy polling changes nothing but time"})
_not_applicable(
    "4.9", "zerocopy transmission", "a module parameter, off by default; user space has none"
)
_rules(
    "4.10",
    {
        "used": "with the log flag, writes to the used ring mark its pages, at the start too",
        "data": "with LOG_ALL received bytes mark their pages, no more than were written",
        "tx": "TX logs no data",
        "fd": "the log eventfd is signalled",
        "switch": "logging may be switched on and off while rings run",
        "iotlb": "behind an IOTLB the guest physical pages are marked",
        "alias": "behind an IOTLB every guest physical alias of a page is marked",
    },
)
_rules(
    "4.11",
    {
        "start": "the used ring must be readable through the IOTLB before SET_BACKEND",
        "flow": "kick, miss, update, retried by itself, until the packet is out",
        "ring_miss": "rings that are not in the IOTLB are asked for at the handler's entry",
        "permission": "a wrong permission is an error, not a miss",
        "unread": "a miss that was not read is not matched by an update",
        "rx": "receiving goes through the IOTLB too",
        "no_err": "a miss does not signal the error eventfd",
    },
)
_rules(
    "7",
    {
        "cve-2019-14835": "zero-length writable descriptors while logging",
        "cve-2019-3900": "oversize packets that are thrown away count against the weight",
        "cve-2018-16880": "a packet over hundreds of tiny buffers after a batch of others",
        "cve-2014-0077": "a packet longer than the buffer, not mergeable",
        "cve-2014-0055": "a fetch error inside the mergeable loop",
        "cve-2018-1118": "a miss that is read has no stray bytes",
        "cve-2020-10942": "AF_INET and other sockets are no backends",
        "cve-2013-4127": "a failing SET_BACKEND, many times, then one that works",
        "cve-2015-6252": "no descriptor is leaked by SET_LOG_FD, KICK, CALL, ERR, SET_BACKEND",
        "livelock": "a mergeable ring that is too small for the packet sleeps",
        "wrap": "sizes and addresses at the ends of the address space",
        "reset_races": "RESET_OWNER and close with packets under way",
        "signalled_used": "more than 2^16 completions without a signal, then one is due",
        "recover": "every kind of broken ring works again once it is repaired and kicked",
        "flush_before_notify": "completions are published before kicks are asked for",
        "features_array": "asking for more feature words than there are keeps the first two",
    },
)
_not_applicable(
    "7.cve-2023-1838",
    "SET_BACKEND looks its descriptor up once",
    "a race; our resolver duplicates the descriptor first and looks only at the copy",
)
_not_applicable("7.batch", "a TAP deleted while a batch is pending", "see 4.4.gone")
_not_applicable(
    "7.stuck", "a permanent send error drops and completes", "see 4.4.wedge and 4.4.gso"
)
_not_applicable("7.zerocopy", "completions after close", "see 4.9")
_not_applicable("7.busy_poll", "faults with preemption off", "a kernel matter")
_not_applicable(
    "7.in_order", "an IN_ORDER rewind counts descriptors", "6.1 and 6.12 do not offer IN_ORDER"
)
_not_applicable(
    "7.double_fetch",
    "a descriptor changed between check and use",
    "a race; tests/hostile has it, with a second thread",
)
