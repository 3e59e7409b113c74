"""What a Trodes network's directory leads to: its sorted spikes, listened to for a few seconds."""

from __future__ import annotations

import time
from collections import Counter

import msgspec

from neds_rt.doctor import Check, refused_check
from neds_rt.sources.heartbeat import open_subscriber
from neds_rt.sources.trodes import MAX_PART_BYTES, MESSAGES, RECEIVE_QUEUE, decode_spike
from neds_rt.sources.trodes_directory import Directory
from neds_rt.wire import MAX_SAMPLE

NAME = "source.spikes"
STEP_S = 0.01


class TrodesHeard:
    """The spikes of a network, and how they were found."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.state = ""  # why there is no endpoint
        self.spikes = 0
        self.refused: Counter[str] = Counter()  # by the source's name for it
        self.names: Counter[tuple[str, str, int]] = Counter()


def listen_to_network(
    endpoint: str, seconds: float, *, name: str = NAME, insecure: bool = False
) -> TrodesHeard:
    """Ask the directory for the spikes and subscribe to them for some seconds."""
    heard = TrodesHeard()
    directory = Directory(endpoint, name, insecure=insecure)
    end = time.monotonic() + seconds
    while not heard.endpoint and time.monotonic() < end:
        heard.endpoint = directory.step() or ""
        time.sleep(STEP_S)
    heard.state = directory.state
    directory.close()
    if not heard.endpoint:
        return heard
    socket = open_subscriber(heard.endpoint, RECEIVE_QUEUE, MAX_PART_BYTES)
    socket.connect(heard.endpoint)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if not socket.poll(int(left * 1000) + 1):
            continue
        try:
            spike = decode_spike(socket.recv())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            heard.refused["bad_message"] += 1
            continue
        if not 0 <= spike.localTimestamp <= MAX_SAMPLE:
            heard.refused["bad_range"] += 1
            continue
        heard.spikes += 1
        heard.names[("trodes", str(spike.nTrodeId), spike.cluster)] += 1
    socket.close()
    return heard


def trodes_checks(port: int, heard: TrodesHeard) -> list[Check]:
    """Return what is right and wrong with a network."""
    where = f"port {port}"
    checks = [Check(where, "ok", "directory of a Trodes network, which tells no version")]
    if not heard.endpoint:
        return [*checks, Check(f"{where} spikes", "fail", heard.state or f"no {NAME} was named",
                               f"open a workspace in Trodes that offers {NAME}, and stream")]
    checks += refused_check(where, heard.refused, MESSAGES,
                            "update Trodes: spikes are maps of nTrodeId, cluster, localTimestamp")
    found = f"{heard.spikes} spikes of {len(heard.names)} units at {heard.endpoint}"
    if not heard.spikes:
        checks.append(Check(f"{where} spikes", "fail", f"none at {heard.endpoint}",
                            "start streaming, and lower the nTrodes' spike thresholds"))
    elif all(cluster == 0 for _, _, cluster in heard.names):
        checks.append(Check(f"{where} spikes", "warn", f"{found}, all unsorted",
                            "draw clusters in Trodes, or use a model of multi-units"))
    else:
        checks.append(Check(f"{where} spikes", "ok", found))
    checks.append(Check(f"{where} losses", "warn", "spikes are not numbered: losses cannot be "
                        "noticed", "keep neds-rt on the machine of Trodes"))
    return checks
