"""Where our device's outcomes differ from Linux's, and why.

Each reason is a row of docs/differences.md.  A difference that is not here fails the oracle,
and so does one that is here and does not occur.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Difference:
    """Fields of one scenario's outcome.

    Attributes:
        scenario: its name.
        fields: paths, such as "broken.flags"; "*" stands for any part of one.
        reason: a key of REASONS.
        linux: the versions that differ; empty: all.
    """

    scenario: str
    fields: tuple[str, ...]
    reason: str
    linux: tuple[str, ...] = ()


#: Name -> the first words of the row of docs/differences.md that explains it.
REASONS: dict[str, str] = {
    "tx writable": "A TX chain with a writable part is taken and never returned",
    "tx empty": "A TX chain without a byte is taken and never returned",
    "rx": "An RX chain with a readable part or without bytes is taken and never returned",
    "wedge": "With batching, a header that the TAP would refuse wedges the queue",
    "large": "With batching, a frame larger than a page is sent and signalled alone",
    "bytes 10 and 11": "Before 6.14, VERSION_1 without MRG_RXBUF leaves bytes 10 and 11",
    "overflow": "A signal can bring an eventfd to its maximum",
    "one miss": "A kick to a ring that is not in the IOTLB asks for it again",
    "used ring read-only": "Behind an IOMMU, a start writes to a used ring that may only be read",
    "hdr_len": "A packet longer than the header's `hdr_len` hint allows",
    "used ring alias": "Behind an IOMMU, a used ring's pages are marked under every guest physical",
    "unread miss": "An IOTLB update wakes only rings whose miss was read",
}

_BACK_TX = ("first.calls", "first.flags", "first.used", "first.used_idx", "kicked.used_idx")
_BACK_RX = ("first.calls", "first.used", "first.used_idx", "kicked.used_idx")

DIFFERENCES: list[Difference] = [
    Difference("a_tx_chain_with_a_writable_part", _BACK_TX, "tx writable"),
    Difference("a_tx_chain_without_bytes", _BACK_TX, "tx empty"),
    Difference("an_rx_chain_with_a_readable_part", _BACK_RX, "rx"),
    Difference("an_rx_chain_without_room", _BACK_RX, "rx"),
    Difference(
        "a_bad_chain_after_good_ones_of_the_same_packet",
        (
            "first.base",
            "first.calls",
            "first.flags",
            "first.used",
            "first.used_idx",
            "kicked.base",
            "kicked.errs",
            "kicked.flags",
            "kicked.used_idx",
        ),
        "rx",
    ),
    Difference(
        "less_than_a_header",
        (
            "base",
            "sent",
            "first.base",
            "first.calls",
            "first.flags",
            "first.used",
            "first.used_idx",
        ),
        "wedge",
    ),
    Difference("needs_csum_beyond_the_frame", ("sent", "used_idx"), "wedge"),
    Difference("sending_logs_no_data", ("tx.calls",), "large"),
    Difference("a_megabyte_of_large_packets", ("tx.calls",), "large"),
    Difference("large_and_small_frames_keep_their_order", ("tx.calls",), "large"),
    Difference("version_1_without_mergeable_buffers", ("received.*.header",), "bytes 10 and 11"),
    Difference("a_buffer_too_small_without_mergeable", ("received.*.header",), "bytes 10 and 11"),
    Difference("no_buffer_without_mergeable", ("received.*.header",), "bytes 10 and 11"),
    Difference("hundreds_of_oversize_packets", ("received.*.header",), "bytes 10 and 11"),
    Difference("a_used_ring_that_is_read_only", ("start", "misses"), "used ring read-only"),
    Difference("refused_packets_one_by_one", ("hdr_len.sent",), "hdr_len"),
    Difference("a_kick_at_its_maximum", ("overflowed",), "overflow"),
    Difference("logging_memory_that_the_guest_has_twice", ("used ring", "all"), "used ring alias"),
    Difference("miss_after_miss_until_the_packet_is_out", ("kicked",), "one miss"),
    Difference(
        "a_miss_that_was_not_read_is_not_matched",
        (
            "after the update.base",
            "after the update.calls",
            "after the update.flags",
            "after the update.used",
            "after the update.used_idx",
            "kicked.calls",
            "kicked.used",
        ),
        "unread miss",
    ),
]
