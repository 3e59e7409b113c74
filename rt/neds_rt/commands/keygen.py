"""Make a key pair, for sockets that other machines can reach or for signing bundles.

Writes NAME.key, which is given to the other side, and NAME.key_secret, which is kept. A pair is
wanted for every machine, or every person: a server lets in the keys on its list and nobody else.
With --signing it is NAME.pub.pem, for `neds-rt serve --trust`, and NAME.pem, for `neds-rt sign`.

    neds-rt keygen --out keys --name server
    neds-rt keygen --out keys --name client
    neds-rt serve ... --out tcp://0.0.0.0:5580 --curve-key keys/server.key_secret \\
        --curve-allow keys/client.key
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt keygen`."""
    parser.add_argument("--out", metavar="DIR", default=".",
                        help="folder to write both files in (default: this one)")
    parser.add_argument("--name", metavar="NAME", default="neds-rt",
                        help="what the files are called (default %(default)s)")
    parser.add_argument("--signing", action="store_true",
                        help="a pair to sign bundles with (needs the extra `sign`)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")


def run(args: argparse.Namespace) -> int:
    """Write the pair and print the public half; returns 0."""
    import json
    from pathlib import Path

    if args.signing:
        from neds_rt.signature import read_trusted, write_signing_pair

        public, secret = write_signing_pair(Path(args.out), args.name)
        key = next(iter(read_trusted(str(public)))).hex()
    else:
        from neds_rt.curve import read_public, write_key_pair

        public, secret = write_key_pair(Path(args.out), args.name)
        key = read_public(str(public)).decode()
    if args.json:
        print(json.dumps({"public": str(public), "secret": str(secret), "key": key}))
    else:
        print(f"{public}: public key {key}\n{secret}: secret key, mode 0600")
    return 0
