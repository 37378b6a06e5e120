"""All scenarios; importing this registers them."""

from oracle.scenarios import (
    control,
    fetching,
    iotlb,
    logging,
    receiving,
    sending,
    signalling,
    starting,
)

__all__ = [
    "control",
    "fetching",
    "iotlb",
    "logging",
    "receiving",
    "sending",
    "signalling",
    "starting",
]
