"""What is left out of a usual test run: more of the same, and larger."""

from __future__ import annotations

import os

import pytest

IS_LONG = os.environ.get("VHOSTNET_TEST_LONG") == "1"
LONG = pytest.mark.skipif(not IS_LONG, reason="takes long: VHOSTNET_TEST_LONG=1")
