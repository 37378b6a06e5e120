"""--sandbox: the opener at the start, the seal when all is loaded (see `vhostnet.confinement`).

What imports numba is imported in functions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import os
import pkgutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from vhostnet.backends import check_spec, interface_drops, tap_queue
from vhostnet.capture import sink
from vhostnet.cli import config_file, service_manager
from vhostnet.cli.daemon_setup import load_for_later
from vhostnet.confinement import acts, descriptors, opener, seal
from vhostnet.confinement.policy import Policy
from vhostnet.confinement.stage import Stage
from vhostnet.device import scheduling
from vhostnet.frontdoors import listening_socket, unix_sockets
from vhostnet.frontdoors.event_loop import READABLE, Loop
from vhostnet.frontdoors.vhost_user_daemon import DeviceOptions

log = logging.getLogger("vhostnet")

#: Where the acts are; loaded before the opener is forked.
ACTS_OF = (
    config_file,
    interface_drops,
    listening_socket,
    scheduling,
    sink,
    tap_queue,
    unix_sockets,
)

SYSCALLS = ("wait4",)  # for the opener

#: Libraries that numpy may have begin threads when it is imported; before the seal there is one.
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

#: Rooms whose modules may be imported when they are first needed, which a sealed process cannot.
_ROOMS = ("backends", "capture", "control", "device", "frontdoors", "observe", "protocol")
_LATER = (
    # what writes a traceback, and names of encodings
    *("linecache", "traceback", "tokenize", "encodings.idna", "encodings.latin_1"),
    "numpy.ma",  # numba asks whether an array is one of these
)
_TEMPORARY = ("/tmp", "/var/tmp")
#: Modules of front doors, by how their names begin.
OF_FILES = ("cuse_", "foreign_", "kept_")


class Sandbox:
    """What --sandbox makes of this process.

    Args:
        others: how names of modules begin that are other doors'.
        adds_devices: devices may be added while the daemon runs.
        is_asked: rings may be looked at.
        has_filters: captures may be filtered.
        bounds: what the door cannot give up.
        telling: the level of what is said of stages that this host has not.
    """

    def __init__(
        self,
        mode: str,
        others: tuple[str, ...],
        bounds: seal.Bounds | None = None,
        *,
        adds_devices: bool,
        is_asked: bool,
        has_filters: bool,
        telling: int = logging.WARNING,
    ) -> None:
        self._mode = mode
        self._others = others
        self._bounds = bounds
        self._telling = telling
        self._adds_devices = adds_devices
        self._is_asked = is_asked
        self._has_filters = has_filters
        self._strays = Stage("descriptors", False, "not looked at")
        self._opener: opener.Opener | None = None

    def start(
        self, policy: Policy, reread: Callable[[], Policy], descriptors_wanted: Collection[int]
    ) -> None:
        """Close what is not ours, and fork the opener; before numba is imported."""
        if self._is_wanted():
            self.prepare(descriptors_wanted)
            self._opener = opener.start(policy, reread)

    def start_below(self, policy: Callable[[int], Policy]) -> None:
        """As `start`, but the opener is who calls this, and it returns in a child.  What the child
        has inherited, and its environment, stay until `prepare`.
        """
        if self._is_wanted():
            self._opener = opener.start_above(policy)

    def prepare(self, wanted: Collection[int]) -> None:
        """Close what was inherited, but for these; keep libraries from starting threads."""
        if self._mode != seal.NONE:
            for name in _ONE_THREAD:
                os.environ[name] = "1"
            self._strays = seal.tried("descriptors", lambda: descriptors.close_strays(wanted))

    def _is_wanted(self) -> bool:
        if self._mode == seal.NONE:
            seal.not_sealed("--sandbox none")
        return self._mode != seal.NONE

    def close_doors(self) -> None:
        """Seal this process, and say what holds; HostError if that is required and cannot be."""
        if self._opener is None:
            log.info("sandbox: none (--sandbox none)")
            return
        from vhostnet.backends import client_file
        from vhostnet.capture.filters import load_libpcap
        from vhostnet.observe.guest_bytes import own_memory

        import_all(self._others)
        if self._adds_devices:
            load_for_later()
        if self._is_asked:
            with contextlib.suppress(OSError):  # then `inspect` says so
                own_memory()
        if self._has_filters:
            load_libpcap()
        with contextlib.suppress(OSError):  # then there are no macvtaps
            client_file.device_numbers()
        service_manager.connect()
        acts.ask_from_now_on(self._opener.asked)
        report = seal.seal(self._mode, [self._strays], self._bounds)
        held = [f"{stage.name} ({stage.detail})" for stage in report.stages if stage.holds]
        log.info("sandbox: %s", ", ".join(held))
        for stage in report.lacking:
            log.log(self._telling, "sandbox: without %s: %s", stage.name, stage.detail)

    @contextlib.contextmanager
    def watched(self, loop: Loop) -> Iterator[None]:
        """Tell of the opener's end, for the length of the block."""
        if self._opener is None:
            yield
            return
        gone, pidfd = self._opener, self._opener.pidfd

        def ended(_ready: int) -> None:
            loop.unwatch(pidfd)
            log.error(
                "the opener has ended (status %s): devices go on, new ones, captures and reloads "
                "need a restart of the daemon",
                gone.status(),
            )

        loop.watch(pidfd, READABLE, ended)
        try:
            yield
        finally:
            loop.unwatch(pidfd)

    def end(self) -> None:
        """Let the opener go."""
        if self._opener is not None:
            self._opener.close()


def import_all(others: tuple[str, ...] = ()) -> None:
    """Import whatever a daemon may need, but for modules whose names begin like *others*: what is
    not loaded asks for no system calls.
    """
    for room in _ROOMS:
        package = importlib.import_module(f"vhostnet.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            if not module.ispkg and not module.name.startswith(others):
                importlib.import_module(f"{package.__name__}.{module.name}")
    for name in _LATER:
        importlib.import_module(name)


def policy_of(
    settings: Mapping[str, Any], devices: Iterable[DeviceOptions], config: str | None
) -> Policy:
    """What the opener may do for a daemon of this configuration."""
    sockets: set[str] = set()
    peers: set[str] = set()
    schedulings: set[tuple[str, int]] = set()
    taps: set[str] = set()
    for device in devices:
        if device.socket_path is not None:
            (peers if device.is_client else sockets).add(device.socket_path)
        if device.worker_scheduling is not None:
            how = device.worker_scheduling
            schedulings.add((how.policy, how.number))
        kind, argument = check_spec(device.backend)
        if kind == "tap":
            taps.add(argument)
    for path in (settings["control"], getattr(settings["metrics"], "path", "")):
        if path:
            sockets.add(path)
    captures = {settings["pcap"]} - {None}
    has_control = settings["control"] is not None
    directories = settings["sandbox-dirs"] or (
        *(os.path.dirname(os.path.abspath(path)) for path in sockets | peers | captures),
        *_TEMPORARY,
    )
    return Policy(
        frozenset(sockets),
        frozenset(peers),
        frozenset(taps),
        frozenset(captures),
        config,
        frozenset(schedulings),
        has_control,
        frozenset(directories if has_control else ()),
        frozenset((settings["sandbox-dirs"] or ()) if has_control else ()),
    )


def policy_of_files(
    settings: Mapping[str, Any], processes: Callable[[int], bool], *, has_node: bool
) -> Policy:
    """What the opener may do for a daemon whose devices are files that programs open.

    Args:
        processes: whether a thread is one of those programs'.
    """
    return dataclasses.replace(
        policy_of(settings, (), None), processes=processes, has_node=has_node
    )


def sandbox_of(
    settings: Mapping[str, Any],
    others: tuple[str, ...],
    bounds: seal.Bounds | None = None,
    *,
    adds_devices: bool = False,
    telling: int = logging.WARNING,
) -> Sandbox:
    """That of a daemon of this configuration; the rest as `Sandbox`."""
    is_asked = settings["control"] is not None
    return Sandbox(
        settings["sandbox"],
        others,
        bounds,
        adds_devices=adds_devices,
        is_asked=is_asked,
        has_filters=is_asked or bool(settings["pcap-filter"]),
        telling=telling,
    )


@contextlib.contextmanager
def sandboxed(
    settings: Mapping[str, Any],
    policy: Policy,
    reread: Callable[[], Policy],
    descriptors_wanted: Collection[int],
    *,
    others: tuple[str, ...],
    adds_devices: bool = False,
) -> Iterator[Sandbox]:
    """The sandbox of a daemon, from before its kernels are loaded to its end.

    Args:
        others, adds_devices: as `Sandbox`.
    """
    sandbox = sandbox_of(settings, others, adds_devices=adds_devices)
    sandbox.start(policy, reread, descriptors_wanted)
    try:
        yield sandbox
    finally:
        sandbox.end()
