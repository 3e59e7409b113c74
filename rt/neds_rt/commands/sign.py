"""Sign a bundle, so that `neds-rt serve --trust` knows whose it is.

The signature is over the manifest, which has the hash of everything else. Whoever changes a byte,
or makes a bundle of their own, is refused by a server that was told whom to trust.

    neds-rt keygen --signing --name lab
    neds-rt sign model.neds --key lab.pem
    neds-rt serve ... --model model.neds --trust lab.pub.pem
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt sign`."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle, a .neds file or a directory")
    parser.add_argument("--key", required=True, metavar="FILE",
                        help="secret key to sign with, NAME.pem of neds-rt keygen --signing")


def run(args: argparse.Namespace) -> int:
    """Sign in place; returns 0."""
    from pathlib import Path

    from neds_rt.signature import read_signing_key, sign_bundle

    key = read_signing_key(args.key)
    sign_bundle(Path(args.bundle), key)
    print(f"{args.bundle}: signed by key {key.public_key().public_bytes_raw().hex()[:12]}…")
    return 0
