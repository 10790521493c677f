"""`python -m resrepro` is `resrepro`."""

import sys

from resrepro.cli import main

sys.exit(main())
