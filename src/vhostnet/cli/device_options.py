"""From the options of `vhostnet serve` to devices: the flat options, or --device as often.

Here too: what is wrong with values that are right one by one.  The file has its own way of naming
an option (`config_file`) and the same rules.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vhostnet.backends import BACKEND_SPECS, check_spec
from vhostnet.cli.option_kinds import WrongValue
from vhostnet.cli.options import DEVICE_KEYS, DEVICE_OPTIONS, NEEDED_KEYS, given_of
from vhostnet.cli.parser import nearest
from vhostnet.errors import UsageError
from vhostnet.frontdoors.vhost_user_daemon import DeviceOptions

#: A key, and what is wrong with its value beside those of the others.
Conflict = tuple[str, str]


def devices_of(args: argparse.Namespace, is_activated: bool = False) -> tuple[DeviceOptions, ...]:
    """The devices that the options describe, or UsageError.

    Args:
        is_activated: sockets were handed over, so that devices need none of their own.
    """
    given = given_of(args, DEVICE_OPTIONS)
    if not args.device:
        return (_flat_device(given, is_activated, args),)
    refuse_beside("--device", given)
    devices = tuple(
        _parse_device(number, text, is_activated) for number, text in enumerate(args.device)
    )
    for _, key, text in conflicts_between(devices):
        raise UsageError(f"--device: {key}: {text}")
    _refuse_lone_ports("--device: backend", devices, args)
    return devices


def refuse_beside(option: str, given: Mapping[str, object]) -> None:
    """Raise UsageError if an option of a single device is given beside *option*."""
    for entry in DEVICE_OPTIONS:
        if entry.key in given:
            raise UsageError(
                f"{entry.option_string} and {option} exclude each other; make it a key of "
                + ("--device" if option == "--device" else "a [device.NAME] in the file")
            )


def make_device(option: str, number: int, given: Mapping[str, object]) -> DeviceOptions:
    """A device of checked values.

    Args:
        option: the option that describes it, to name it in errors.
        number: names it, unless it has a name.
        given: values by key; the others have their defaults.
    """
    fields: dict[str, Any] = {
        entry.attribute: given.get(entry.key, entry.default) for entry in DEVICE_OPTIONS
    }
    fields["name"] = fields["name"] or f"dev{number}"
    return DeviceOptions(option=option, **fields)


def conflicts_within(given: Mapping[str, object]) -> Iterator[Conflict]:
    """What is wrong with one device's values together."""
    kind = str(given.get("backend", "")).partition(":")[0]
    if given.get("busy-poll-adaptive") and not given.get("busy-poll-us"):
        yield "busy-poll-adaptive", "needs busy-poll-us, the most it may reach"
    if given.get("fill-checksums") and kind and kind not in ("tap", "tap-fd"):
        yield "fill-checksums", f"works with a TAP only, and not with {given['backend']}"
    if given.get("iommu") and kind == "port":
        yield "iommu", f"does not work with {given['backend']}"
    if kind == "tap-fd":
        n_fds = str(given["backend"]).count("+") + 1
        n_pairs = given.get("queue-pairs", 1)
        if n_fds != n_pairs:
            yield "backend", f"{given['backend']} has {n_fds} descriptors for {n_pairs} queue pairs"


def conflicts_between(devices: Sequence[DeviceOptions]) -> Iterator[tuple[int, str, str]]:
    """What is wrong with devices together: the number of one of them, a key, what it is."""
    for key, attribute in (("name", "name"), ("socket", "socket_path")):
        seen: set[str] = set()
        for number, device in enumerate(devices):
            value = getattr(device, attribute)
            if value is not None and value in seen:
                yield number, key, f"two devices have the {key} {value}"
            seen.add(value)
    for backend, numbers in _users(devices, "tap").items():
        for number in numbers[1:]:
            yield number, "backend", f"two devices have {backend}"
    for backend, numbers in _users(devices, "port").items():
        first, *others = (devices[number] for number in numbers)
        for number in numbers[2:]:
            text = f"{backend} joins two devices, {first.name} and {others[0].name} already"
            yield number, "backend", text
        if others and others[0].queue_pairs != first.queue_pairs:
            yield (
                numbers[1],
                "queue-pairs",
                f"the two devices of {backend} have {first.queue_pairs} and "
                f"{others[0].queue_pairs} queue pairs; it takes equally many",
            )


def lone_ports(devices: Sequence[DeviceOptions]) -> Iterator[int]:
    """The devices whose `port:NAME` no other one has, as indices."""
    for numbers in _users(devices, "port").values():
        if len(numbers) == 1:
            yield numbers[0]


def _users(devices: Sequence[DeviceOptions], kind: str) -> dict[str, list[int]]:
    """Backends of this kind, and the devices that have them, as indices."""
    users: dict[str, list[int]] = {}
    for number, device in enumerate(devices):
        if check_spec(device.backend)[0] == kind:
            users.setdefault(device.backend, []).append(number)
    return users


def _refuse_lone_ports(
    option: str, devices: Sequence[DeviceOptions], args: argparse.Namespace
) -> None:
    """Raise UsageError if the partner of a port is not there and cannot come."""
    for number in [] if args.control else lone_ports(devices):
        raise UsageError(
            f"{option}: {devices[number].backend}: one device has it; it joins two, each a "
            "--device (with --control, the other one may come by device-add)"
        )


def _flat_device(
    given: Mapping[str, object], is_activated: bool, args: argparse.Namespace
) -> DeviceOptions:
    if "socket" not in given and "fd" not in given and not is_activated:
        raise UsageError("one of --socket-path, --fd, --device and --config is needed")
    if "socket" in given and "fd" in given:
        raise UsageError("--socket-path and --fd exclude each other")
    if "client" in given and "fd" in given:
        raise UsageError("--client goes with --socket-path; the socket of --fd is connected")
    if "backend" not in given:
        raise UsageError(f"--backend is needed: one of {', '.join(BACKEND_SPECS.values())}")
    for key, text in conflicts_within(given):
        raise UsageError(f"--{key}: {text}")
    device = make_device("--fd" if "fd" in given else "--socket-path", 0, given)
    _refuse_lone_ports("--backend", [device], args)
    return device


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


def _parse_device(number: int, text: str, is_activated: bool) -> DeviceOptions:
    given: dict[str, object] = {}
    for key, value in split_keys(text).items():
        if key not in DEVICE_KEYS:
            suggestion = nearest(key, DEVICE_KEYS) or f"; keys are {', '.join(DEVICE_KEYS)}"
            raise UsageError(f"--device: there is no key {key!r}{suggestion}")
        try:
            given[key] = DEVICE_KEYS[key].kind.from_text(value)
        except WrongValue as error:
            raise UsageError(f"--device: {key}: {error}") from None
    for key in ("backend",) if is_activated else NEEDED_KEYS:
        if key not in given:
            raise UsageError(f"--device {text}: {key}= is needed")
    for key, problem in conflicts_within(given):
        raise UsageError(f"--device: {key}: {problem}")
    return make_device(f"--device socket={given.get('socket', '')}", number, given)
