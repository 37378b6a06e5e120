"""What `--print-capabilities` says; see "Backend program conventions" of vhost-user.rst.

Nothing here may import numba: management layers ask every program that they find.
"""

from __future__ import annotations

import json

from vhostnet import __version__
from vhostnet.backends import BACKEND_SPECS
from vhostnet.protocol.vhost_user_session import (
    IOMMU_PROTOCOL_FEATURES,
    OFFERED_PROTOCOL_FEATURES,
)
from vhostnet.uapi.vhost_user import PROTOCOL_FEATURE_NAMES


def capabilities() -> str:
    """The JSON text, one line."""
    bits = sorted((*OFFERED_PROTOCOL_FEATURES, *IOMMU_PROTOCOL_FEATURES))
    features = [PROTOCOL_FEATURE_NAMES[bit].lower().replace("_", "-") for bit in bits]
    return json.dumps(
        {
            "type": "net",
            "version": __version__,
            "features": features,
            "backends": list(BACKEND_SPECS),
            "front-doors": ["vhost-user", "run", "chardev"],
        }
    )
