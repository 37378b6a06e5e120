"""The machine code: a finite list, cached for the next process, no references in its loops."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from vhostnet.datapath import catalogue
from vhostnet.datapath.layout import IOVEC, MAPPED_REGION
from vhostnet.native._jit import JIT_ENABLED

needs_jit = pytest.mark.skipif(not JIT_ENABLED, reason="the interpreted lane compiles nothing")

WARM = """
import json, sys
from vhostnet.datapath import catalogue
from vhostnet.datapath.port_worker import port_worker
from vhostnet.datapath.worker_loop import vhost_worker
report = catalogue.warm(None)
both = (vhost_worker, port_worker)
misses = sum(sum(kernel.stats.cache_misses.values()) for kernel in both)
signatures = sum(len(kernel.signatures) for kernel in both)
print(json.dumps([report.compiled, report.loaded, misses, signatures]))
"""


def warm_in_a_new_process() -> list[int]:
    done = subprocess.run([sys.executable, "-c", WARM], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@needs_jit
def test_a_second_process_compiles_nothing():
    n = len(catalogue.list_kernels())
    compiled, loaded, misses, signatures = warm_in_a_new_process()
    assert (compiled + loaded, misses, signatures) == (n, compiled, n)
    assert warm_in_a_new_process() == [0, n, 0, n]


def test_every_backend_has_its_kernels_on_the_list():
    names = [spec.name for spec in catalogue.list_kernels()]
    assert len(set(names)) == len(names)
    for kind in ("tap", "coalescing-tap", "null", "gen", "loop"):
        assert catalogue.kernels_for(kind) == [
            f"vhost_worker/{ring}/mapped/{kind}" for ring in ("split", "packed")
        ]
    assert catalogue.kernels_for("port") == [
        f"port_worker/{ring}-{out}/mapped/port"
        for ring in ("split", "packed")
        for out in ("split", "packed")
    ]


@needs_jit
def test_serving_uses_the_signature_that_was_warmed(instance):
    from vhostnet.datapath.worker_loop import vhost_worker

    catalogue.warm(catalogue.kernels_for("tap"))
    before = len(vhost_worker.signatures)
    instance().kick(1)
    assert len(vhost_worker.signatures) == before


def test_records_have_the_sizes_of_the_kernels_structs():
    assert IOVEC.itemsize == 16
    assert MAPPED_REGION.itemsize == 24


@pytest.mark.skipif(not JIT_ENABLED, reason="the interpreter needs no cache")
def test_a_cache_that_cannot_be_written_is_one_line_that_says_what_to_do():
    ended = subprocess.run(
        [sys.executable, "-m", "vhostnet", "warm"],
        env={**os.environ, "XDG_CACHE_HOME": "/proc/nowhere", "CACHE_DIRECTORY": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 4
    assert ended.stderr.startswith("vhostnet: the kernels' cache /proc/nowhere/vhostnet/kernels/")
    assert "set XDG_CACHE_HOME" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
