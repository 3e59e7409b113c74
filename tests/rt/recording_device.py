"""Stands in for a GPU where there is none: memory of the host, work done in order, all noted.

`late` work is done as late as a GPU may do it, when somebody waits; otherwise at once, as early as
it may. The plan is the graph itself, in ONNX Runtime.
"""

import ctypes

import numpy as np
import onnxruntime

from neds_rt.engines.cuda_runtime import ALIGNMENT


def memory(pointer, n_bytes):
    return np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(pointer))


class RecordingDevice:
    """What `cuda_runtime.Device` does, without CUDA."""

    target = "sm89"
    stream = 7

    def __init__(self, late=False):
        self.late = late
        self.log = []  # what the host called
        self.graphs = []  # what each captured graph holds
        self._blocks, self._queue, self._recording = [], [], None

    def submit(self, name, work):
        if self._recording is not None:
            self._recording.append((name, work))
            return
        self.log.append(name)
        self._queue.append(work)
        if not self.late:
            self._drain()

    def alloc(self, n_bytes, what):
        block = np.full(n_bytes + ALIGNMENT, 0xFF, np.uint8)
        pointer = -(-block.ctypes.data // ALIGNMENT) * ALIGNMENT
        memory(pointer, n_bytes)[:] = 0
        self._blocks.append(block)
        return pointer

    def pinned(self, n_floats):
        return np.zeros(n_floats, np.float32)

    def zero(self, pointer, n_bytes):
        self.submit("zero", lambda: memory(pointer, n_bytes).fill(0))

    def copy_in(self, pointer, host):
        def work():
            memory(pointer, host.nbytes)[:] = host.view(np.uint8)
        self.submit("copy_in", work)

    def copy_out(self, host, pointer):
        def work():
            host.view(np.uint8)[:] = memory(pointer, host.nbytes)
        self.submit("copy_out", work)

    def copy_within(self, target, source, n_bytes):
        def work():
            memory(target, n_bytes)[:] = memory(source, n_bytes)
        self.submit("copy_within", work)

    def strided_copy(self, target, source, *, width, rows, blocks, pitch, block_rows):
        def work():
            for block in range(blocks):
                for row in range(rows):
                    at = target + (block * block_rows + row) * pitch
                    memory(at, width)[:] = memory(source + (block * rows + row) * width, width)
        return lambda: self.submit("strided_copy", work)

    def capture(self, work):
        self._recording = []
        work()
        graph, self._recording = self._recording, None
        self.graphs.append([name for name, _ in graph])
        return lambda: self.submit("launch", lambda: [part() for _, part in graph])

    def mark(self):
        self.log.append("mark")
        self._queue.append(None)

    def wait(self, limit_s):
        self.log.append("wait")
        self._drain(to_mark=True)

    def settle(self, limit_s):
        self.log.append("settle")
        self._drain()

    def close(self):
        self.log.append("close")

    def _drain(self, to_mark=False):
        while self._queue:
            work = self._queue.pop(0)
            if work is not None:
                work()
            elif to_mark:
                return


class GraphExecution:
    """What `plan_loader.Execution` does, with the graph in place of a plan."""

    captures = True

    def __init__(self, device, graph):
        self.device = device
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"])
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self._inputs, self._outputs = (
            {v.name: (tuple(v.shape), np.dtype(types[v.type])) for v in values}
            for values in (self._session.get_inputs(), self._session.get_outputs())
        )
        self.sizes = {name: int(np.prod(shape)) * dtype.itemsize
                      for name, (shape, dtype) in (self._inputs | self._outputs).items()}
        self.bound = {}

    def bind(self, name, pointer):
        assert pointer % ALIGNMENT == 0
        self.bound[name] = pointer

    def enqueue(self, stream):
        assert stream == self.device.stream
        self.device.submit("plan", self._run)

    def _run(self):
        feeds = {name: memory(self.bound[name], self.sizes[name]).view(dtype).reshape(shape).copy()
                 for name, (shape, dtype) in self._inputs.items()}
        results = self._session.run(list(self._outputs), feeds)
        for name, values in zip(self._outputs, results, strict=True):
            raw = np.ascontiguousarray(values).view(np.uint8).ravel()
            memory(self.bound[name], self.sizes[name])[:] = raw

    def capturable(self, stream):
        return self.captures

    def close(self):
        self.device.log.append("close plan")
