"""The faults by name: what is done, to which rig, and whether decodes have to say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tools import fault_frames as frames
from tools import fault_process as process
from tools import fault_senders as senders
from tools.fault_process import RECORD, DiskRig
from tools.fault_rig import Episode, Rig
from tools.fault_senders import PluginRig, ProducerRig

FAULTY = "tools.faulty_engine:FaultyEngine"


class Fault(NamedTuple):
    """One kind of fault; `alarm` is False where decodes stay valid, or nobody is there to warn."""

    do: Callable[[Rig], Episode]
    alarm: bool = True
    engine: str = "native"
    options: tuple[str, ...] = ()
    rig: type[Rig] = Rig


FAULTS: dict[str, Fault] = {
    "one frame lost": Fault(frames.one_frame_lost),
    "frames lost": Fault(frames.frames_lost),
    "frames twice": Fault(frames.frames_twice, alarm=False),
    "frames swapped": Fault(frames.frames_swapped),
    "header garbled": Fault(frames.header_garbled),
    "payload cut": Fault(frames.payload_cut),
    "other wire version": Fault(frames.other_version),
    "unknown stream name": Fault(frames.other_stream),
    "message of one part": Fault(frames.one_part),
    "oversized frame": Fault(frames.oversize),
    "sampling rate changes": Fault(frames.other_rate),
    "samples go backwards": Fault(frames.samples_backwards),
    "samples leap ahead": Fault(frames.samples_leap),
    "samples step back": Fault(frames.samples_step_back),
    "wall clock forward": Fault(frames.wall_clock_forward, alarm=False),
    "wall clock back": Fault(frames.wall_clock_back, alarm=False),
    "acquisition restarts": Fault(frames.acquisition_restarts),
    "one probe unplugged": Fault(frames.probe_unplugged),
    "one probe late": Fault(frames.probe_late),
    "all input stops": Fault(frames.input_stops),
    "publisher restarts": Fault(frames.publisher_rebinds),
    "wire cut in a frame": Fault(frames.wire_cut, rig=frames.WireRig),
    "flood of garbage": Fault(frames.flood, alarm=False),
    "spikes far ahead": Fault(frames.far_ahead, alarm=False),
    "producer frozen": Fault(senders.producer_frozen, rig=ProducerRig),
    "plugin: messages lost": Fault(senders.messages_lost, rig=PluginRig),
    "plugin: messages twice": Fault(senders.messages_twice, alarm=False, rig=PluginRig),
    "plugin: messages swapped": Fault(senders.messages_swapped, rig=PluginRig),
    "plugin: half messages": Fault(senders.messages_halved, rig=PluginRig),
    "plugin: garbage between": Fault(senders.messages_of_garbage, rig=PluginRig),
    "plugin: bursts": Fault(senders.messages_in_bursts, rig=PluginRig),
    "plugin: port flaps": Fault(senders.port_flaps, rig=PluginRig),
    "server held up": Fault(process.server_held_up),
    "server killed": Fault(process.server_killed, alarm=False, options=(RECORD,)),
    "server terminated": Fault(process.server_terminated, alarm=False, options=(RECORD,)),
    "disk full": Fault(process.disk_full, alarm=False, options=(RECORD,), rig=DiskRig),
    "disk stands still": Fault(process.disk_stands_still, alarm=False, options=(RECORD,),
                               rig=DiskRig),
    "machine overrun": Fault(process.machine_overrun, alarm=False),
    "memory pressure": Fault(process.memory_pressure, alarm=False),
    "subscriber never reads": Fault(process.slow_subscriber, alarm=False),
    "subscriber dies": Fault(process.subscriber_dies, alarm=False),
    "engine not a number": Fault(process.engine_nan, engine=FAULTY),
    "engine too slow": Fault(process.engine_slow, engine=FAULTY),
}
