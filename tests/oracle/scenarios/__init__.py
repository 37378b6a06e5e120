"""All scenarios; importing this registers them."""

from oracle.scenarios import (
    backends,
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
    "backends",
    "control",
    "fetching",
    "iotlb",
    "logging",
    "receiving",
    "sending",
    "signalling",
    "starting",
]
