"""`python -m neds_rt` is the command `neds-rt`, whatever the search path for scripts."""

import sys

from neds_rt.cli import main

sys.exit(main())
