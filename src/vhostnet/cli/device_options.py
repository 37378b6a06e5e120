"""From `vhostnet serve`'s options to devices: either the flat options, or --device as often."""

from __future__ import annotations

import argparse

from vhostnet.backends import BACKEND_SPECS, check_spec
from vhostnet.cli.parser import nearest, number_within
from vhostnet.device.linux_abi import LINUX_ABIS, NEWEST
from vhostnet.errors import UsageError
from vhostnet.frontdoors.vhost_user_daemon import DeviceOptions

# 254 rings: a ring's index has 8 bits, see vhost_user_session.
MAX_QUEUE_PAIRS = 127

# A second of spinning is more than any driver needs, and a typing error otherwise.
MAX_BUSY_POLL_US = 1_000_000

DEVICE_KEYS = (
    "socket",
    "backend",
    "queue-pairs",
    "client",
    "fill-checksums",
    "coalesce",
    "busy-poll-us",
    "busy-poll-adaptive",
    "iommu",
    "linux-abi",
)


def devices_of(args: argparse.Namespace) -> tuple[DeviceOptions, ...]:
    """The devices that the options describe, or UsageError."""
    flat = {
        "--socket-path": args.socket_path,
        "--fd": args.fd,
        "--backend": args.backend,
        "--queue-pairs": args.queue_pairs,
        "--client": args.client or None,
        "--fill-checksums": args.fill_checksums or None,
        "--coalesce": args.coalesce,
        "--busy-poll-us": args.busy_poll_us or None,
        "--busy-poll-adaptive": args.busy_poll_adaptive or None,
        "--iommu": args.iommu or None,
        "--linux-abi": args.linux_abi,
    }
    given = [option for option, value in flat.items() if value is not None]
    if not args.device:
        return (_flat_device(args),)
    if given:
        raise UsageError(f"{given[0]} and --device exclude each other; make it a key of --device")
    devices = tuple(_parse_device(text) for text in args.device)
    paths = [device.socket_path for device in devices if device.socket_path is not None]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"--device: two devices have the socket {path}")
    return devices


def check_backend(option: str, spec: str) -> None:
    """Raise UsageError, naming the option, unless `spec` is a backend."""
    kind = spec.partition(":")[0]
    suggestion = "" if kind in BACKEND_SPECS else nearest(kind, BACKEND_SPECS)
    try:
        check_spec(spec)
    except UsageError as error:
        raise UsageError(f"{option}: {error}{suggestion}") from None


def _flat_device(args: argparse.Namespace) -> DeviceOptions:
    if args.socket_path is None and args.fd is None:
        raise UsageError("one of --socket-path, --fd and --device is needed")
    if args.socket_path is not None and args.fd is not None:
        raise UsageError("--socket-path and --fd exclude each other")
    if args.client and args.fd is not None:
        raise UsageError("--client goes with --socket-path; the socket of --fd is connected")
    if args.backend is None:
        raise UsageError(f"--backend is needed: one of {', '.join(BACKEND_SPECS.values())}")
    check_backend("--backend", args.backend)
    return DeviceOptions(
        option="--fd" if args.socket_path is None else "--socket-path",
        backend=args.backend,
        socket_path=args.socket_path,
        fd=args.fd,
        is_client=args.client,
        queue_pairs=1 if args.queue_pairs is None else args.queue_pairs,
        fill_checksums=args.fill_checksums,
        coalesce=args.coalesce != "off",
        busy_poll_us=args.busy_poll_us,
        busy_poll_adaptive=_adaptive("--", args.busy_poll_us, args.busy_poll_adaptive),
        iommu=args.iommu,
        linux_abi=_linux_abi("--linux-abi", args.linux_abi),
    )


def split_keys(text: str) -> dict[str, str]:
    """Split "key=value,key=value"; a comma within a value is written twice, as in QEMU.

    Raises:
        UsageError: a part has no "=", or a key comes twice.
    """
    parts = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
    keys: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"--device: {part!r} is not KEY=VALUE (a comma in a value is ,,)")
        if key in keys:
            raise UsageError(f"--device: {key} is given twice")
        keys[key] = value
    return keys


def _parse_device(text: str) -> DeviceOptions:
    keys = split_keys(text)
    for key in keys:
        if key not in DEVICE_KEYS:
            suggestion = nearest(key, DEVICE_KEYS) or f"; keys are {', '.join(DEVICE_KEYS)}"
            raise UsageError(f"--device: there is no key {key!r}{suggestion}")
    for key in ("socket", "backend"):
        if key not in keys:
            raise UsageError(f"--device {text}: {key}= is needed")
    check_backend("--device: backend", keys["backend"])
    queue_pairs = _number(keys, "queue-pairs", 1, MAX_QUEUE_PAIRS, "1")
    busy_poll_us = _number(keys, "busy-poll-us", 0, MAX_BUSY_POLL_US, "0")
    return DeviceOptions(
        option=f"--device socket={keys['socket']}",
        backend=keys["backend"],
        socket_path=keys["socket"],
        is_client=_switch(keys, "client"),
        queue_pairs=queue_pairs,
        fill_checksums=_switch(keys, "fill-checksums"),
        coalesce=_switch(keys, "coalesce", "on"),
        busy_poll_us=busy_poll_us,
        busy_poll_adaptive=_adaptive(
            "--device: ", busy_poll_us, _switch(keys, "busy-poll-adaptive")
        ),
        iommu=_switch(keys, "iommu"),
        linux_abi=_linux_abi("--device: linux-abi", keys.get("linux-abi")),
    )


def _number(keys: dict[str, str], key: str, low: int, high: int, default: str) -> int:
    try:
        return number_within(low, high)(keys.get(key, default))
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--device: {key}: {error}") from None


def _linux_abi(option: str, name: str | None) -> str:
    if name is None:
        return NEWEST
    if name not in LINUX_ABIS:
        raise UsageError(f"{option}: {name!r} is not one of {', '.join(LINUX_ABIS)}")
    return name


def _adaptive(prefix: str, busy_poll_us: int, wanted: bool) -> bool:
    if wanted and not busy_poll_us:
        raise UsageError(f"{prefix}busy-poll-adaptive needs busy-poll-us, the most it may reach")
    return wanted


def _switch(keys: dict[str, str], key: str, default: str = "off") -> bool:
    value = keys.get(key, default)
    if value not in ("on", "off"):
        raise UsageError(f"--device: {key}={value}: must be on or off")
    return value == "on"
