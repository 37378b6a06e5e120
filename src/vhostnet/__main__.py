"""`python -m vhostnet`."""

import sys

from vhostnet.cli.main import main

sys.exit(main())
