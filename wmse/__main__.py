"""`python -m wmse`."""

import sys

from wmse.cli import main

sys.exit(main())
