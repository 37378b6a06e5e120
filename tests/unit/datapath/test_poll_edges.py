"""How often a worker with work at hand asks for more."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vhostnet.datapath.layout import (
    EPOLL_BATCH,
    EPOLL_EVENT,
    EVENT_CONTROL,
    NULL,
    SPLIT_VRING,
    VHOST_NET_BATCH,
    WORK_TX_KICK,
    WORKER,
)
from vhostnet.datapath.work import work_queue
from vhostnet.datapath.worker_loop import poll_edges
from vhostnet.device.worker import _EPOLL_CTL_ADD, _epoll_ctl


@pytest.fixture
def worker() -> Iterator[Any]:
    """A worker whose control wants it to stop."""
    record: Any = np.zeros(1, WORKER)
    events = np.zeros(EPOLL_BATCH, EPOLL_EVENT)
    control = os.eventfd(1, os.EFD_NONBLOCK)
    with select.epoll() as epoll:
        _epoll_ctl(epoll.fileno(), _EPOLL_CTL_ADD, control, select.EPOLLIN, EVENT_CONTROL)
        record[0]["epfd"], record[0]["events_hva"] = epoll.fileno(), events.ctypes.data
        yield record[0]
    os.close(control)


def ask(worker: Any) -> int:
    ring: Any = np.zeros(1, SPLIT_VRING)[0]
    backend: Any = np.zeros(1, NULL)[0]
    return poll_edges(worker, ring, ring, backend, backend, 0)


def test_a_worker_without_work_asks_at_once(worker: Any) -> None:
    assert ask(worker) == 1
    assert worker["polls"] == 1


def test_work_at_hand_goes_first_but_not_for_ever(worker: Any) -> None:
    work_queue(worker, WORK_TX_KICK)
    for done in range(VHOST_NET_BATCH):
        worker["unasked"] = done
        assert ask(worker) == 0
    assert worker["polls"] == 0
    worker["unasked"] = VHOST_NET_BATCH
    assert ask(worker) == 1
    assert worker["polls"] == 1
    assert worker["unasked"] == 0
