"""Take the picture of the dashboard, live: the demo's rig, a browser without a window.

    apt-get install chromium && pip install -e '.[dashboard,browser]'
    python tools/make_screenshot.py [--out docs/images/dashboard.png] [--freeze 1.2]

The synthetic probe plays, the server decodes, `neds-rt dashboard` serves the page, and Chromium
opens it. With --freeze the probe's process is stopped for so many seconds, as a hung acquisition
would be, so that the picture shows what the page makes of that.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from neds_rt.children import Child
from neds_rt.demo import ANIMAL, BUNDLE, SESSION
from neds_rt.errors import NedsError, StartError
from neds_rt.manifest import Manifest

START_S = 60.0
ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    """Take the picture; 3 if something does not start."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "dashboard.png")
    parser.add_argument("--seconds", type=float, default=22.0, help="played before the picture")
    parser.add_argument("--freeze", type=float, default=1.2, help="of the probe, in seconds")
    parser.add_argument("--before", type=float, default=4.0,
                        help="how long before the picture the freeze ends")
    parser.add_argument("--size", default="1440x960", help="of the window (1440x960)")
    args = parser.parse_args(argv)
    try:
        take(args)
    except NedsError as error:
        print(f"make_screenshot: {error}", file=sys.stderr)
        return error.exit_code
    print(args.out)
    return 0


def take(args: argparse.Namespace) -> None:
    """Run the rig and take the picture at its end."""
    from neds_rt.bundle import read_bundle

    manifest = read_bundle(BUNDLE).manifest
    name = manifest.units[0].probe
    probe = start_probe(name, manifest, args.seconds + args.freeze + 10)
    with probe, Child(
        "server", "neds_rt", "serve", "--probe", f"{name}={probe.json(START_S)['uri']}",
        "--model", str(BUNDLE), "--out", "tcp://127.0.0.1:*",
    ) as server:
        endpoint, *facts = server.ready_words(START_S)
        status = dict(fact.split("=", 1) for fact in facts)["status"]
        with Child("dashboard", "neds_rt", "dashboard", "--decodes", endpoint, "--status", status,
                   "--port", "0", "--no-open") as dashboard:
            address = dashboard.ready(START_S)
            photograph(address, probe, args)


def start_probe(name: str, manifest: Manifest, seconds: float) -> Child:
    """Return the demo's synthetic probe, waiting."""
    return Child("probe", "neds_rt.sources.synthetic", "--stream", name, "--animal", str(ANIMAL),
                 "--session", str(SESSION), "--units", str(len(manifest.units)),
                 "--seconds", str(seconds))


def photograph(address: str, probe: Child, args: argparse.Namespace) -> None:
    """Open the page, play, freeze, wait, and write the picture whole or not at all."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise StartError("needs playwright: pip install 'neds[browser]'") from error
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise StartError("needs a chromium: apt-get install chromium")
    width, _, height = args.size.partition("x")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": int(width), "height": int(height)})
        page.goto(address)
        probe.tell({"go": True})
        time.sleep(max(0.0, args.seconds - args.freeze - args.before))
        if args.freeze > 0:
            os.kill(probe.pid, signal.SIGSTOP)
            time.sleep(args.freeze)
            os.kill(probe.pid, signal.SIGCONT)
        time.sleep(args.before)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        staged = args.out.with_name(f".{args.out.stem}.part.png")
        page.screenshot(path=staged)
        staged.replace(args.out)
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
