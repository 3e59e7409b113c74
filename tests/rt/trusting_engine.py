"""An engine that says in the log whether it was given leave to load a bundle's plans."""

import logging

from neds_rt.engines.native import NativeEngine


class Trusting(NativeEngine):
    """The native engine."""

    name = "trusting"

    def __init__(self, bundle, precision="float32"):
        logging.getLogger("trusting").warning("plans trusted: %s", bundle.plans_trusted)
        super().__init__(bundle, precision)
