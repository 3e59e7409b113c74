"""Make a key pair, for sockets that other machines can reach.

Writes NAME.key, which is given to the other side, and NAME.key_secret, which is kept. A pair is
wanted for every machine, or every person: a server lets in the keys on its list and nobody else.

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
    parser.add_argument("--json", action="store_true", help="end with one JSON object")


def run(args: argparse.Namespace) -> int:
    """Write the pair and print the public half; returns 0."""
    import json
    from pathlib import Path

    from neds_rt.curve import read_public, write_key_pair

    public, secret = write_key_pair(Path(args.out), args.name)
    key = read_public(str(public)).decode()
    if args.json:
        print(json.dumps({"public": str(public), "secret": str(secret), "key": key}))
    else:
        print(f"{public}: public key {key}\n{secret}: secret key, mode 0600")
    return 0
