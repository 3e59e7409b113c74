"""What SpikeGLX's command server says of its probes, asked for a few seconds."""

from __future__ import annotations

import time

from neds_rt.doctor import Check
from neds_rt.doctor.asked import Asked, templates_check
from neds_rt.sources.address import Address
from neds_rt.sources.spikeglx import Options
from neds_rt.sources.spikeglx_wire import Connection, Refused, Trouble

IMEC, ONEBOX = 2, 1
MOST_PROBES = 16
BLOCK_S = 0.005  # the source's own, unless told otherwise
RATE_OFF = 0.01  # by which the count may advance faster or slower than it should


def spikeglx_checks(
    host: str, port: int, seconds: float, asked: Asked | None = None
) -> list[Check]:
    """Return what is right and wrong with a SpikeGLX on a port; [] if it is something else.

    Where a URI was `asked` for, its probe is looked at and no other.
    """
    checks: list[Check] = []
    try:
        with Connection(Address(host, port), min(1.0, seconds)) as connection:
            version = connection.query("GETVERSION")
            checks.append(Check(f"port {port}", "ok", f"SpikeGLX {version[:40]}"))
            checks += _run_checks(connection, port, seconds, asked)
    except (Trouble, OSError) as error:
        if checks:
            checks.append(Check(f"port {port} replies", "fail", f"no more of them: {error}",
                                "look at SpikeGLX's console, and at what else asks it"))
    return checks


def _run_checks(
    connection: Connection, port: int, seconds: float, asked: Asked | None
) -> list[Check]:
    where = f"port {port}"
    if connection.query("ISRUNNING") != "1":
        return [Check(f"{where} run", "fail", "no run", "start a run in SpikeGLX")]
    probes = [(js, ip) for js in (IMEC, ONEBOX) for ip in range(_count(connection, js))]
    if not probes:
        return [Check(f"{where} probes", "fail", "no imec or OneBox stream",
                      "enable a probe in SpikeGLX's configuration")]
    if asked is not None and isinstance(asked.options, Options):
        wanted = (abs(asked.options.js), asked.options.probe)
        if wanted not in probes:
            return [_no_probe(where, wanted, probes)]
        probes = [wanted]
    checks: list[Check] = []
    for js, ip in probes[:MOST_PROBES]:
        try:
            checks += _probe_checks(connection, f"{where} probe {ip}" + (
                "" if js == IMEC else " of the OneBox"), js, ip, seconds / len(probes), asked)
        except Refused as refused:
            checks.append(Check(f"{where} probe {ip}", "fail", f"refused: {refused}",
                                "look at the message in SpikeGLX's console"))
    return checks


def _count(connection: Connection, js: int) -> int:
    try:
        return min(int(connection.query(f"GETSTREAMNP {js}")), MOST_PROBES)
    except (Refused, ValueError):
        return 0


def _probe_checks(
    connection: Connection, where: str, js: int, ip: int, seconds: float, asked: Asked | None
) -> list[Check]:
    """Fetch for so long, as the source would."""
    try:
        channels = int(connection.query(f"GETSTREAMACQCHANS {js} {ip}").split()[0])
        fs = float(connection.query(f"GETSTREAMSAMPLERATE {js} {ip}"))
        first = int(connection.query(f"GETSTREAMSAMPLECOUNT {js} {ip}"))
    except (ValueError, IndexError):
        return [Check(where, "fail", "it does not say what its stream is like",
                      "update SpikeGLX: 20230202 or newer answers")]
    if not channels:
        return [Check(where, "fail", "no AP channels", "choose another probe= in the URI")]
    found = f"{channels} AP channels at {fs:g} Hz"
    if not first or fs <= 0:
        return [Check(where, "fail", f"{found}, not running", "start the run")]
    began, took, at = time.monotonic(), [], first
    names = "".join(f"{c}#" for c in range(channels))
    into = memoryview(bytearray(2 * channels * max(1, round(0.1 * fs))))
    late = 0
    while time.monotonic() - began < seconds:
        start = time.monotonic()
        try:
            n, head = connection.fetch(js, ip, at, names, channels, into)
            at = head + n
        except Refused as refused:
            if refused.kind != "too_late":
                raise
            late += 1
            at = int(connection.query(f"GETSTREAMSAMPLECOUNT {js} {ip}"))
        took.append(time.monotonic() - start)
        time.sleep(BLOCK_S)
    elapsed = time.monotonic() - began
    last = int(connection.query(f"GETSTREAMSAMPLECOUNT {js} {ip}"))
    return [_rate(where, found, (last - first) / (time.monotonic() - began), fs),
            _speed(where, took, late, last - at, elapsed, fs),
            *([] if asked is None else templates_check(where, asked, channels, fs))]


def _no_probe(where: str, wanted: tuple[int, int], probes: list[tuple[int, int]]) -> Check:
    there = ", ".join(f"probe={ip}&js={js}" for js, ip in probes)
    return Check(f"{where} probes", "fail", f"no probe={wanted[1]}&js={wanted[0]}, there are "
                 f"{there}", "one of these in the URI, or enable the probe in SpikeGLX")


def _rate(where: str, found: str, rate: float, fs: float) -> Check:
    if rate == 0:
        return Check(where, "fail", f"{found}, but its count stands still",
                     "look at the probe's cable and SpikeGLX's console")
    if abs(rate / fs - 1) > RATE_OFF + 0.02 * (rate < fs):  # a busy machine is asked late
        return Check(where, "warn", f"{found}, counts at {rate:.0f} Hz",
                     "the run was restarted meanwhile, or the sample rate is mis-configured")
    return Check(where, "ok", found)


def _speed(
    where: str, took: list[float], late: int, behind: int, elapsed: float, fs: float
) -> Check:
    """Judge the fetches: `took` seconds each, `behind` samples left when time was up."""
    name, median = f"{where} fetch", sorted(took)[len(took) // 2] if took else elapsed
    found = f"{len(took)} fetches, {1e3 * median:.1f} ms each, {1e3 * behind / fs:.0f} ms behind"
    if late or behind > 0.5 * fs:
        return Check(name, "fail", f"{found}, {late} too late",
                     "run neds-rt on the machine of SpikeGLX, or fetch fewer probes")
    return Check(name, "ok", found)
