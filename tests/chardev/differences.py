"""What scenarios of the oracle show differently through CUSE, beside what our device does.

As `oracle/differences.py`: each reason is a row of docs/differences.md.
"""

from __future__ import annotations

from oracle.differences import Difference

REASONS = {
    "write": "`write` of a message returns 72, even if only 40 bytes were given",
}

CHARDEV_DIFFERENCES = [
    Difference("what_may_be_written", ("0 bytes", "40 bytes", "41 bytes", "71 bytes"), "write"),
]
