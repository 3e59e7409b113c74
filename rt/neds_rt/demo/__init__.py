"""The demo: a synthetic probe, the server and a client on one machine, with the truth beside it.

The packaged bundle `demo.neds` was trained on other sessions of the same animal
(`tools/make_demo_bundle.py`); the demo plays a session it has not seen.
"""

from pathlib import Path

BUNDLE = Path(__file__).parent / "demo.neds"
ANIMAL = 7  # seed of the synthetic animal
UNITS = 150
SESSION = 1001  # seed of the session played; training used others
