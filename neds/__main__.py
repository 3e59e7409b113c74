"""`python -m neds`: the command `neds`."""

import sys

from neds.cli import main

sys.exit(main())
