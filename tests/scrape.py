"""What a scraper sees of a daemon's metrics."""

from __future__ import annotations

import socket

from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """The samples of one scrape over a unix socket."""

    def __init__(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(path)
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: vhostnet\r\n\r\n")
            data = b""
            while piece := client.recv(1 << 20):
                data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        self.samples = [
            sample
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        ]

    def total(self, name: str, **labels: str) -> int:
        """The sum of a metric's samples that have these labels."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == f"vhostnet_{name}" and labels.items() <= sample.labels.items()
        ]
        assert found, f"there is no {name} of {labels}"
        return int(sum(found))
