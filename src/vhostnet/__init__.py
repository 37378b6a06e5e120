"""Linux's vhost_net driver as a Python program.

This module imports nothing: `vhostnet --print-capabilities` must not pay for numba.
"""

__version__ = "0.1.0"
