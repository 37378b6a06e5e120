"""Which devices `backend=port:NAME` joins, and what an operator can get wrong about it."""

from __future__ import annotations

from collections.abc import Sequence

from vhostnet.backends import check_spec
from vhostnet.errors import UsageError
from vhostnet.frontdoors.vhost_user_daemon import DeviceOptions


def port_pairs(devices: Sequence[DeviceOptions]) -> list[tuple[int, int]]:
    """The devices that belong together, as indices; UsageError if a port is not one of two."""
    users: dict[str, list[int]] = {}
    for number, device in enumerate(devices):
        kind, name = check_spec(device.backend)
        if kind == "port":
            users.setdefault(name, []).append(number)
            _check_alone(device)
    pairs = []
    for name, numbers in users.items():
        if len(numbers) != 2:
            found = "one device has" if len(numbers) == 1 else f"{len(numbers)} devices have"
            raise UsageError(f"backend port:{name}: {found} it; it joins two, each a --device")
        first, second = (devices[number] for number in numbers)
        if first.queue_pairs != second.queue_pairs:
            raise UsageError(
                f"backend port:{name}: its two devices have {first.queue_pairs} and "
                f"{second.queue_pairs} queue pairs; it takes equally many"
            )
        pairs.append((numbers[0], numbers[1]))
    return pairs


def _check_alone(device: DeviceOptions) -> None:
    if device.iommu:
        raise UsageError(f"{device.option}: iommu does not work with {device.backend}")
