"""Fixtures that every room of tests shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from instance import Instance


@pytest.fixture
def instance() -> Iterator[Callable[..., Instance]]:
    """A maker of queue pairs that are closed after the test."""
    made: list[Instance] = []

    def make(*, start: bool = True, **options: Any) -> Instance:
        made.append(Instance(**options))
        return made[-1].start() if start else made[-1]

    yield make
    for one in made:
        one.close()
