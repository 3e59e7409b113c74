"""Bundles inside other programs' decoders: FALCON's class, an ezmsg unit. No dependency of either.

The runtime alone is needed (`neds_rt`): a bundle and its native engine, without torch.
"""
