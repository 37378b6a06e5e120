"""The records of the data path: one numpy dtype a C struct, in one file.

Private fields are all i8 (signed 64-bit): Numba and the interpreter then compute alike.
Free-running ring indices are kept masked to 16 bits.  "w:" says who writes a field:
`control` only while the worker is parked (see `device/worker.py`), `worker` at any time.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

#: Linux vhost_net: most packets, and most bytes, that one run of a handler may take.
VHOST_NET_PKT_WEIGHT = 256
VHOST_NET_WEIGHT = 0x80000
#: Linux vhost_net: completions that are published together.
VHOST_NET_BATCH = 64
#: Most pieces of one chain, or of one mergeable packet (Linux UIO_MAXIOV).
UIO_MAXIOV = 1024
#: How often a ring whose driver has no kick descriptor is looked at, milliseconds.
POLL_MS = 1
#: A frame with its header as a TAP can deliver it: 64 KiB of GSO payload, headers, slack.
HOLD_SIZE = 72 * 1024

#: struct iovec (uapi/linux/uio.h), as writev takes it.
IOVEC = np.dtype([("iov_base", "<i8"), ("iov_len", "<i8")])
IOVEC_SIZE = IOVEC.itemsize

#: One receive chain taken: its head, the bytes it holds, the descriptors it takes.
RX_HEAD = np.dtype([("id", "<i8"), ("room", "<i8"), ("descs", "<i8")])

#: struct epoll_event: packed on x86-64 only (uapi/linux/eventpoll.h).
EPOLL_EVENT = np.dtype(
    [("events", "<u4"), ("data", "<i8")], align=platform.machine() not in ("x86_64", "AMD64")
)
EPOLL_BATCH = 8


def _record(*names: str) -> np.dtype[Any]:
    return np.dtype([(name, "<i8") for name in names])


#: One region of guest memory that is mapped into our process.
MAPPED_REGION = np.dtype(
    [
        # guest physical address of the first byte
        ("gpa", "<i8"),
        # bytes
        ("size", "<i8"),
        # our address of the first byte (for remote rings: the owner's)
        ("hva", "<i8"),
    ]
)

#: One range of I/O virtual addresses that a virtual IOMMU lets the device use.
IOTLB_ENTRY = np.dtype(
    [
        # I/O virtual address of the first byte, and bytes
        ("iova", "<i8"),
        ("iova_size", "<i8"),
        # our address of the first byte (for remote rings: the owner's)
        ("iova_hva", "<i8"),
        # VHOST_ACCESS_RO | VHOST_ACCESS_WO
        ("perm", "<i8"),
    ]
)
#: What a buffer is wanted for; the bits of an IOTLB entry's permission.
VHOST_ACCESS_RO = 1
VHOST_ACCESS_WO = 2
VHOST_ACCESS_RW = 3

#: Packets that a backend refused for good, by the errno that it gave; see counting.py.
DROPS_BY_ERRNO = {
    "drop_full": "no room in a backend that never waits (loop; port: no buffers there)",
    "drop_no_peer": "tx to a port: nobody is at the other end, or its ring is broken",
    "drop_bad_header": "tx: a header that does not fit its frame, or a frame of less than 14 bytes",
    "drop_too_long": "tx: longer than any frame can be, or than the receiver's buffer",
    "drop_down": "tx: the interface is down",
    "drop_gone": "tx: the backend was deleted",
    "drop_refused": "tx: the backend refused the frame for another reason",
}

#: Counters that every ring has, and what they count; all w: worker.
COUNTERS = {
    "packets": "packets moved to or from the backend",
    "bytes": "bytes of these packets, vnet header included",
    "gso_packets": "those of them that are to be segmented later (TSO, USO)",
    "chains": "descriptor chains handed back to the driver",
    "kicks": "wake-ups by the kick descriptor",
    "kicks_avoided": "chains that were found without a kick of their own",
    "calls": "signals on the call descriptor",
    "calls_suppressed": "completions that the driver asked not to hear about",
    "waits_no_buffers": "rx: times that a packet had to wait for the driver to post buffers",
    "waits_backend_full": "tx: times that a packet had to wait for room in the backend",
    "drop_short": "tx: nothing behind the header",
    "drop_malformed": "a chain with parts of the wrong direction, handed back with length 0",
    "drop_too_small": "rx: the one buffer was too small, the packet was thrown away",
    "drop_disabled": "tx: the ring was disabled, the packet was discarded",
    **DROPS_BY_ERRNO,
    "ring_errors": "times that the ring was found broken",
    "iotlb_misses": "times that an address was not in the IOTLB, and the front-end was asked",
}

#: Histograms, see counting.py.  Packets moved in one run of a handler: 1, 2, 4, … 256;
BATCH_SHIFT = 0
BATCH_BUCKETS = 9
#: nanoseconds from a kick's arrival to the first used entry that it brings: 1.024 µs, … 1.07 s.
LATENCY_SHIFT = 10
LATENCY_BUCKETS = 21

#: What control sets on a ring of any format, while the worker is parked.
_VRING_CONTROL = (
    # has a backend: handlers touch the ring only then
    "active",
    # tx of a disabled ring: take everything and throw it away
    "discard",
    # bytes of virtio_net_hdr in front of every frame
    "hdr_len",
    # booleans from the acked features
    "mergeable",
    "set_num_buffers",
    "event_idx",
    "notify_on_empty",
    "in_order",
    # with IN_ORDER: one used entry stands for all completions that are published together
    "one_used_a_batch",
    # how long to look at the ring before sleeping, nanoseconds
    "busyloop_ns",
    # dirty log (live migration): our address of the bitmap and its bytes; are the data of
    # received packets logged, are our writes to the ring, and where what we write lies (gpa)
    "log_hva",
    "log_size",
    "log_all",
    "log_used",
    "log_used_gpa",
    "log_fd",
    # descriptors; -1 = none
    "kick_fd",
    "call_fd",
    "err_fd",
    # the kick is a pipe: it has to be read
    "kick_is_pipe",
    # there is no kick at all: look at the ring every POLL_MS
    "polled",
    # addresses of private memory: a u64 of value 1, u8[16] for a torn descriptor, a struct timespec
    "one_hva",
    "desc_copy_hva",
    "timespec_hva",
    # CAPTURE[1], or 0: nobody captures (see capture.py)
    "capture_hva",
    # what is counted beside COUNTERS: i8[len(codes.RING_ERROR_RULES)] by rule broken; the
    # histograms of batch sizes and of latencies
    "errors_hva",
    "batch_hva",
    "latency_hva",
)

#: What the worker keeps on a ring of any format.
_VRING_WORKER = (
    # used entries written, not yet published
    "done_idx",
    # something was published and the driver not yet signalled
    "signal_due",
    # where the ring was at the last signal test, and whether that means anything
    "signalled_used",
    "signalled_used_valid",
    # descriptors of the ring that the last chain took
    "chain_descs",
    # the handler found the ring empty: it waits for the driver, not for the backend
    "wants_kick",
    # kicks are not wanted: our copy of used->flags, or of the device event's
    "used_flags",
    # index of the region that served the last translation
    "last_region",
    # the I/O virtual address that the IOTLB did not have, and the access wanted
    "miss_iova",
    "miss_perm",
    # last ring error found (codes.RING_*), 0 = none since the ring started
    "last_error",
    # a kick came since the last run, and when; 0: it has brought something, or nothing
    "kicked",
    "kick_ns",
    # chains that the last run took which took any; 0: the driver has been waited for since
    "run_chains",
)

_SPLIT = (
    # entries, a power of two; w: control
    "split_num",
    # our addresses of the three parts; w: control
    "desc_hva",
    "avail_hva",
    "used_hva",
    *_VRING_CONTROL,
    # next avail entry to take
    "last_avail_idx",
    # newest avail->idx seen
    "avail_idx",
    # avail entries before this one have had their buffers asked for (look_ahead.py)
    "fetch_idx",
    # next used entry to write, not counting done_idx
    "last_used_idx",
    *_VRING_WORKER,
)
#: VIRTIO 1.2 section 2.7.
SPLIT_VRING = _record(*_SPLIT, *COUNTERS)

#: What a ring has besides, whose parts are copies of the owner's memory, and so is what its buffers
#: hold; see owner_memory_raw.py.
_REMOTE = (
    # --- w: control
    # the owner's process, its /proc/PID/mem, and whether the pid is certainly still that process
    "owner_pid",
    "owner_mem_fd",
    "owner_batched",
    # u8[STAGE_SIZE]: copies of tables and buffers, and of what is to be written
    "stage_hva",
    # PIECE[STAGE_PIECES]: which of the owner's bytes are in the stage
    "pieces_hva",
    # IOVEC[STAGE_IOVECS] twice: the two sides of one system call
    "local_hva",
    "remote_hva",
    # --- w: worker
    "stage_pos",
    "n_pieces",
    # where to look first for a buffer, and for an entry of a table
    "buffer_at",
    "table_at",
    # how much of what is available next is in the stage: chains (packed: descriptors)
    "n_staged",
    # bytes of this chain's buffers that were not in the stage
    "chain_bytes",
    # pairs of the two sides that wait to be written
    "n_writes",
    # system calls on the owner's memory, and how many of them failed
    "owner_calls",
    "owner_faults",
)
#: A split ring in memory of the owner that we cannot map; see remote_split_ring.py.
REMOTE_VRING = _record(
    *_SPLIT,
    *_REMOTE,
    # the owner's addresses of the three parts; w: control
    "desc_uva",
    "avail_uva",
    "used_uva",
    # chains before avail_idx may have changed since they were fetched
    "stale",
    *COUNTERS,
)
#: Bytes of a stage, and what of it staging ahead leaves free for a chain that comes by itself.
STAGE_SIZE = 4 << 20
STAGE_RESERVE = (1 << 20) + (256 << 10)
#: Chains that are staged together, and the pieces that these may have.
STAGE_CHAINS = 64
STAGE_IOVECS = UIO_MAXIOV
STAGE_PIECES = 4 * UIO_MAXIOV
#: The owner's bytes [piece_uva, + piece_size) are at piece_hva.
PIECE = _record("piece_uva", "piece_size", "piece_hva")
#: No frame is longer: a longer chain is refused (EMSGSIZE) before its bytes are looked at.
MAX_FRAME = 1 << 20

#: Descriptors of a remote packed ring that one fetch finds available at most.
KNOWN_DESCS = 256
_PACKED = (
    # descriptors in the ring; w: control
    "packed_num",
    # our addresses of the ring, of the driver's and of the device's event area; w: control
    "ring_hva",
    "driver_hva",
    "device_hva",
    *_VRING_CONTROL,
    # next descriptor to take
    "avail_pos",
    "avail_wrap",
    # the first descriptor that was seen not to be available: what enable_notify waits for
    "seen_pos",
    "seen_wrap",
    # next used descriptor to write
    "used_pos",
    "used_wrap",
    # the first used descriptor of the batch: where, and the flags that publish it
    "first_pos",
    "first_flags",
    # where the device event area lies in the guest, for the dirty log
    "log_event_gpa",
    *_VRING_WORKER,
)
#: VIRTIO 1.2 section 2.8.  Positions are 0 .. num - 1, each with its wrap counter (0 or 1).
PACKED_VRING = _record(*_PACKED, *COUNTERS)

#: A packed ring in memory of the owner that we cannot map; see remote_packed_ring.py.
REMOTE_PACKED_VRING = _record(
    *_PACKED,
    *_REMOTE,
    # the owner's addresses of the three parts; w: control
    "ring_uva",
    "driver_uva",
    "device_uva",
    # u8[16 * KNOWN_DESCS]: the first of two looks at the ring
    "look_hva",
    # descriptors from avail_pos on that were available at that look; w: worker
    "n_known",
    # of the pairs that wait to be written, the last one of used descriptors; w: worker
    "used_pair",
    *COUNTERS,
)

#: Counters of a worker, and what they count.
WORKER_COUNTERS = {
    "polls": "looks at the epoll set without waiting",
    "wakeups": "times that waiting in it ended",
    "runs": "handlers run",
    "spins": "times that busy polling began",
    "spin_hits": "times that busy polling found something",
}

#: One worker: its epoll set and its work list.
WORKER = _record(
    "epfd",
    # which work items are queued, one bit each
    "queued",
    # their order, four bits an item, next one lowest
    "work_list",
    # turns and packets since epoll was asked
    "unasked",
    # a port that serves both ways: the other guest's epoll set has something to say
    "back_ready",
    "n_work",
    # address of EPOLL_EVENT[EPOLL_BATCH]
    "events_hva",
    # address of a struct timespec
    "timespec_hva",
    # busy polling adapts: how long it is worth to spin now, nanoseconds
    "adaptive",
    "spin_ns",
    *WORKER_COUNTERS,
)

# Work items, also the `data` of the worker's epoll events.
WORK_RX_KICK = 0
WORK_TX_KICK = 1
WORK_RX_NET = 2
WORK_TX_NET = 3
EVENT_BACKEND = 4
EVENT_CONTROL = 5
EVENT_BACK = 6
#: A port that serves both ways: the other guest's TX ring takes the place of a RX ring.
WORK_BACK_KICK = WORK_RX_KICK

# How frames go in and out of a descriptor; see frame_io.py.
#: it is ours, and non-blocking
IO_OWN = 0
#: a client's TUN/TAP or macvtap
IO_NOWAIT = 1
#: the same, of a Linux that does not know RWF_NOWAIT there
IO_POLLED = 2
#: a client's packet socket
IO_PACKET_SOCKET = 3

#: Room for private copies of a header, at TAP's hdr_hva; behind it scratch for system calls: a
#: struct pollfd or a struct msghdr, one struct iovec, control messages.
HDR_ROOM = 32
IO_SCRATCH = HDR_ROOM
IO_SCRATCH_MSGHDR = 0
IO_SCRATCH_IOVEC = 64
IO_SCRATCH_CONTROL = 80
IO_SCRATCH_CONTROL_SIZE = 256
TAP_HDR_SIZE = IO_SCRATCH + IO_SCRATCH_CONTROL + IO_SCRATCH_CONTROL_SIZE

#: Counters that a queue of a backend may have, and what they count.
BACKEND_COUNTERS = {
    "thrown_away": "frames from the host that mean nothing: short of their header, with another "
    "header than negotiated, too long, or robbed of their VLAN tag",
    "read_errors": "reads that failed",
    "write_errors": "writes that failed, but for want of room",
    "merged_frames": "frames that were written for several TCP segments",
    "merged_segments": "the segments in them",
    "stashed_segments": "segments that were copied to wait for room",
}
_TAP_COUNTERS = ("thrown_away", "read_errors", "write_errors")

_TAP = (
    "tap_fd",
    # IO_*; w: control, but for the worker's step from IO_NOWAIT to IO_POLLED
    "io",
    # false after EAGAIN, true after EPOLLIN; w: worker
    "readable",
    # the device behind the descriptor was deleted
    "gone",
    # towards guests: complete partial checksums in software; w: control
    "fill_checksums",
    # the guest may be told DATA_VALID (it acked GUEST_CSUM)
    "guest_csum",
    # bytes of virtio_net_hdr that the descriptor speaks
    "tap_hdr_len",
    # bytes of virtio_net_hdr that we make and take off ourselves, in front of the descriptor's
    # own (VHOST_NET_F_VIRTIO_NET_HDR); else 0
    "made_hdr_len",
    # the descriptor speaks another header than was negotiated: what comes in means nothing
    "hdr_mismatch",
    # one packet read and not yet delivered: u8[HOLD_SIZE], and its length (0 = none)
    "hold_hva",
    "hold_len",
    # u8[TAP_HDR_SIZE], a private copy of a transmitted packet's header and scratch behind it; and
    # room for a whole rare packet
    "hdr_hva",
    "bounce_hva",
    # the errno of the last read and of the last write that failed; w: worker
    "read_errno",
    "write_errno",
    *_TAP_COUNTERS,
)
#: A queue of a TUN/TAP device, or whatever else one descriptor reads and writes frames of.
TAP = _record(*_TAP)

#: TCP segments that are held to be merged: all that a run of handle_tx can take.
COALESCE_SEGMENTS = VHOST_NET_PKT_WEIGHT
#: Slots of the flow table, a power of two; never more than half of them are taken.
COALESCE_SLOTS = 2 * COALESCE_SEGMENTS
#: Most pieces of memory that the payload of a held segment may lie in.
COALESCE_PIECES = 4
#: Longest headers that are looked at: Ethernet, IPv6, TCP with options.
COALESCE_HEADERS = 14 + 40 + 60
#: Room for a private copy of a segment's headers, virtio_net_hdr first; with slack, since they are
#: compared in words of eight bytes.
COALESCE_ROOM = 144
#: Completions that are published together when segments are held: at least, and for each flow.
COALESCE_BATCH = 128
COALESCE_BATCH_PER_FLOW = 4
#: Bytes of frames that the TAP had no room for when they were held: all that a run can take.
STASH_SIZE = VHOST_NET_WEIGHT + (128 << 10)

#: One slot of the flow table.
FLOW = _record(
    # the slot is taken, by the flow of this hash
    "flow_known",
    "flow_hash",
    # segments held: how many, the first and the last of them; the first stays when all are
    # written, since its headers tell the flow
    "flow_n",
    "flow_first",
    "flow_last",
    # what they are together: sequence number that goes on, payload of the first (the MSS) and of
    # all, bytes of Ethernet, IP and TCP headers, is the last one pushed
    "flow_next_seq",
    "flow_mss",
    "flow_payload",
    "flow_headers",
    "flow_push",
)
#: One held segment; its headers are at held_hdr_hva, its payload's pieces at held_pieces_hva.
SEGMENT = _record(
    # the next one of the flow, or -1
    "segment_next",
    # pieces of payload
    "segment_n",
    # bytes of header and frame
    "segment_total",
)

#: A TAP to which consecutive TCP segments go as one frame; see via_coalescing_tap.py.
COALESCING_TAP = _record(
    *_TAP,
    # --- w: control
    # u8[]: FLOW[COALESCE_SLOTS]; i8[COALESCE_SEGMENTS], slots in the order in which they were taken
    "flows_hva",
    "flow_order_hva",
    # SEGMENT[COALESCE_SEGMENTS], and of each u8[COALESCE_ROOM] and IOVEC[COALESCE_PIECES]
    "segments_hva",
    "held_hdr_hva",
    "held_pieces_hva",
    # u8[COALESCE_ROOM], the headers of a merged frame; IOVEC[UIO_MAXIOV + 1] to write it
    "merged_hdr_hva",
    "out_hva",
    # u8[STASH_SIZE]: i8 length, header and frame, padded to 8 bytes; and so on
    "stash_hva",
    # --- w: worker
    # bytes of virtio_net_hdr in front of what is held
    "held_hdr_len",
    # flows and segments since all was written; segments of these not yet written
    "n_flows",
    "n_segments",
    "n_held",
    # the frames of the stash that are still to be written
    "stash_at",
    "stash_end",
    # what became of held segments, for the ring's counters
    "held_packets",
    "held_bytes",
    "held_drops",
    *DROPS_BY_ERRNO,
    # --- BACKEND_COUNTERS
    "merged_frames",
    "merged_segments",
    "stashed_segments",
)

#: Takes every packet into memory of its own, gives none.
NULL = _record(
    # u8[size], and where the next packet goes
    "sink_hva",
    "sink_size",
    "sink_pos",
    # for a proof that all is copied: is the copy of each packet summed up, and the sum so far
    "sums",
    "sink_sum",
)

#: Gives the same frame for ever (or beginnings of it, in turn); takes and drops.
GEN = _record(
    # u8[len]: header and frame
    "frame_hva",
    "frame_len",
    # bytes of header in front
    "gen_hdr_len",
    "gen_sink_hva",
    "gen_sink_size",
    # several sizes in turn: i8[n_lens], each a beginning of the frame, and which one is next
    "lens_hva",
    "n_lens",
    "len_pos",
)

#: What is sent comes back: a byte ring of (i8 length, frame) records.
LOOP = _record(
    "fifo_hva",
    "fifo_size",
    # free-running byte positions
    "head",
    "tail",
)

#: One direction between two guests: what the sender's worker knows of the receiver, and scratch.
PORT = _record(
    # what the receiver acked: partial checksums, and a bit for each VIRTIO_NET_HDR_GSO_* type that
    # it takes whole, and those with ECN's flag; w: worker, each time that it enters its kernel
    "peer_csum",
    "peer_gso",
    "peer_ecn",
    # a word that says who is at the receiver's ring, if other workers serve it too; else 0
    "lock_hva",
    # the epoll set of the way back, if one worker serves both
    "back_epfd",
    # u8[PORT_HDR_SIZE]: a private copy of a packet's header, and behind it the receiver's
    "port_hdr_hva",
    # u8[HOLD_SIZE]: a packet whose frame has to be changed, and u8[PORT_TEMPLATE_SIZE]: the
    # headers of one that has to be cut
    "frame_bounce_hva",
    "template_hva",
)
#: What a ring's packets are captured with; see capture.py.
CAPTURE = _record(
    # --- w: control
    # addresses of the machine code of `capture_begin` and `capture_end`
    "begin_code",
    "end_code",
    # u8[], a power of two: pcapng blocks, and how long one may become
    "blocks_hva",
    "blocks_size",
    # the block's interface, and its flags: 1 towards the guest, 2 from it
    "interface_id",
    "packet_flags",
    # bytes of a frame that are kept
    "snaplen",
    # struct sock_filter[filter_len], 0 of them: all packets; i8[16] for its memory
    "filter_hva",
    "filter_len",
    "filter_memory_hva",
    # u8[][CAPTURE_TEXT_SIZE]: a length, and so many letters
    "texts_hva",
    # scratch: a struct timespec, one struct iovec, a private copy of a packet's header
    "capture_scratch_hva",
    # --- w: the thread that writes
    # false: enough was captured
    "wanted",
    # free-running byte positions, multiples of 8: written up to here,
    "blocks_tail",
    # --- w: worker
    # and visible up to here
    "blocks_head",
    # the block that is not visible yet: where, its bytes of frame (-1: there is none)
    "open_at",
    "open_len",
    # packets that were lost for want of room since the last that was not
    "lost_since",
    # --- counters: packets seen, those that the filter let through, those that were lost
    "seen",
    "accepted",
    "lost",
)
CAPTURE_TEXT_SIZE = 64
CAPTURE_SCRATCH_IOVEC = 16
CAPTURE_SCRATCH_HDR = 32
CAPTURE_SCRATCH_SIZE = 64

#: Where the receiver's header is, behind the copy of the sender's.
PORT_OUT_HDR = 16
PORT_HDR_SIZE = 32
#: Most bytes of headers that a packet to be cut may have.
PORT_TEMPLATE_SIZE = 512


def field_offset(dtype: np.dtype[Any], name: str) -> int:
    """Byte offset of *name* in *dtype*."""
    fields = dtype.fields
    assert fields is not None
    return int(fields[name][1])


EPOLL_EVENT_SIZE = EPOLL_EVENT.itemsize
EPOLL_EVENT_DATA = field_offset(EPOLL_EVENT, "data")
