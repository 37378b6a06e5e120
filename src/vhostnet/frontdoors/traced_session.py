"""A vhost-user session that writes down what is said."""

from __future__ import annotations

import time
from collections.abc import Callable

from vhostnet.errors import HostError, PeerError
from vhostnet.frontdoors.trace_file import TraceFile, file_of
from vhostnet.protocol.verbs import VhostUserVerbs
from vhostnet.protocol.vhost_user_codec import Request
from vhostnet.protocol.vhost_user_session import Session
from vhostnet.protocol.vhost_user_trace import Exchange
from vhostnet.uapi.vhost_user import HEADER


class TracedSession(Session):
    """As `Session`.

    Args:
        trace: is told each request when it has been handled.
        who: what it calls the device.
    """

    def __init__(
        self,
        device: VhostUserVerbs,
        report: Callable[[str], None],
        trace: TraceFile,
        who: str,
    ) -> None:
        super().__init__(device, self._hear)
        self._tell_operator = report
        self._trace = trace
        self._who = who
        self._refusal: str | None = None

    def handle(self, request: Request) -> bytes:
        """As `Session.handle`."""
        fds = tuple(request.fds)
        files = tuple(map(file_of, fds))
        self._refusal = None
        is_end = True
        reply = b""
        begin = time.perf_counter()
        try:
            reply = super().handle(request)
            is_end = False
        except (PeerError, HostError) as error:
            self._refusal = str(error)
            raise
        finally:
            seconds = time.perf_counter() - begin
            why = self._refusal
            self._trace.tell(
                self._who,
                Exchange(
                    request.number,
                    request.flags,
                    request.payload,
                    fds,
                    files,
                    reply[HEADER.size :] if reply else None,
                    None if why is None else why.removeprefix(f"{request.name}: "),
                    is_end,
                    seconds,
                ),
            )
        return reply

    def _hear(self, refusal: str) -> None:
        self._refusal = refusal
        self._tell_operator(refusal)
