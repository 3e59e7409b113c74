"""After its start a server takes no memory: counted at the heap and in Python, over 10,000 bins."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neds_rt.engines.native import NativeEngine
from tests.rt.allocating import BINS, FIRST, frames
from tests.rt.serving import Publisher, small_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def counter(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C++ compiler, or no glibc to preload before")
    path = tmp_path_factory.mktemp("heap") / "counter.so"
    source = Path(__file__).with_name("count_allocations.cpp")
    subprocess.run([compiler, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC",
                    "-shared", str(source), "-o", str(path)], check=True, timeout=100)
    return path


def start(counter, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.rt.allocating", *map(str, words)], cwd=ROOT, text=True,
        env=os.environ | {"LD_PRELOAD": str(counter)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)


def finish(process):
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["control"] >= 1  # the counter sees what is there to be seen
    return found


@pytest.mark.parametrize("precision", NativeEngine.precisions)
def test_from_frame_to_message_nothing_is_allocated(counter, precision):
    found = finish(start(counter, "steps", f"native:{precision}"))
    assert found["allocations"] == 0


def test_recording_all_of_it_allocates_nothing_either(counter, tmp_path):
    found = finish(start(counter, "steps", "native:int8", tmp_path))
    assert found["allocations"] == 0


def serve(counter, folder, how):
    uri = f"zmq+ipc://{folder}/probe"
    model = small_bundle(folder / "x.neds")
    with Publisher(uri) as probe:
        server = start(counter, how, "native:int8", model, uri)
        probe.wait()
        for frame in frames(FIRST + BINS + 2):
            probe.send(frame)
        return finish(server)


def test_the_server_loop_allocates_what_its_sockets_do(counter, tmp_path):
    """Two a bin: pyzmq's list of what to poll, and libzmq's copy of the message to send."""
    assert serve(counter, tmp_path, "server")["allocations"] <= 2 * BINS


def test_the_server_loop_holds_no_more_python_memory(counter, tmp_path):
    assert serve(counter, tmp_path, "traced")["python_bytes"] <= 4096  # one object a bin is more
