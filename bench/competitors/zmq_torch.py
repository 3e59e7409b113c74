"""A pyzmq script around eager torch that recomputes the window for every bin."""

from __future__ import annotations

import sys

from bench.competitors.script import Script, arguments, serve
from bench.competitors.window_model import EagerDecoder
from neds_rt.bundle import read_bundle


def main() -> int:
    """Serve until interrupted."""
    args = arguments(__doc__)
    bundle = read_bundle(args.model)
    return serve(args, Script(bundle.manifest, EagerDecoder(bundle), "float32"))


if __name__ == "__main__":
    sys.exit(main())
