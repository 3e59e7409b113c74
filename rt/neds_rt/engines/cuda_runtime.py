"""The few CUDA calls that engines make, on one device and one stream, errors as one line each.

On the package `cuda-python`, which loads the driver when a call needs it. Every failure is a
`DeviceError`: exit code 3 before serving, the fail-over path while serving.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.errors import StartError

ALIGNMENT = 256  # of what TensorRT reads and writes
MB = 1 << 20
_OTHERWISE = "--engine native runs on the CPU"


class DeviceError(StartError):
    """The GPU, its driver or its memory is not what a call needs."""


def aligned(n_bytes: int) -> int:
    """Return `n_bytes` rounded up to the alignment of device buffers."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def cuda_bindings() -> Any:
    """Return `cuda.bindings.runtime`; raises `StartError` when cuda-python is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise StartError("GPU engines need the package 'cuda-python': pip install "
                         "'neds[trt-rtx]' (or 'neds[trt]')") from None
    return runtime


def explain(error: str, text: str, driver: int, needs: int) -> str:
    """Return what to do about the CUDA error of that name.

    `driver` and `needs` are the CUDA versions (13040 is 13.4) that the driver has, 0 for no
    driver, and that the installed cuda-python was made for.
    """
    if error == "cudaErrorInsufficientDriver" and not driver:
        return f"found no NVIDIA driver, expected one (nvidia-smi shows it); {_OTHERWISE}"
    if error in ("cudaErrorInsufficientDriver", "cudaErrorSystemDriverMismatch"):
        return (f"the NVIDIA driver is for CUDA {_version(driver)}, expected one for CUDA "
                f"{_version(needs)}: update the driver, or install a cuda-python that is as old; "
                f"{_OTHERWISE}")
    if error == "cudaErrorNoDevice":
        return f"the driver finds no GPU (CUDA_VISIBLE_DEVICES may hide it); {_OTHERWISE}"
    if error in ("cudaErrorDevicesUnavailable", "cudaErrorDeviceAlreadyInUse"):
        return ("another process has the GPU for itself, expected compute mode 'default' "
                f"(nvidia-smi -q -d COMPUTE shows it); {_OTHERWISE}")
    return f"{error}: {text}"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


class Device:
    """A GPU, one stream on it, and what was allocated; `close` frees all of it.

    Pointers are integers. Copies are enqueued, not waited for. Raises `DeviceError`.
    """

    def __init__(self, index: int = 0) -> None:
        self._cuda = cuda_bindings()
        self._freed: list[Callable[[], object]] = []
        (count,) = self._call("cudaGetDeviceCount")
        if index >= count:
            raise DeviceError(f"found {count} GPUs, expected one numbered {index}; {_OTHERWISE}")
        self._call("cudaSetDevice", index)
        self._call("cudaFree", 0)  # the context is made now: exclusive use shows here
        attributes = self._cuda.cudaDeviceAttr
        (major,) = self._call("cudaDeviceGetAttribute",
                              attributes.cudaDevAttrComputeCapabilityMajor, index)
        (minor,) = self._call("cudaDeviceGetAttribute",
                              attributes.cudaDevAttrComputeCapabilityMinor, index)
        self.target = f"sm{major}{minor}"
        (stream,) = self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
        self.stream = int(stream)
        self._stream = stream
        self._freed.append(lambda: self._cuda.cudaStreamDestroy(stream))
        (self._event,) = self._call("cudaEventCreateWithFlags", self._cuda.cudaEventDisableTiming)
        event = self._event
        self._freed.append(lambda: self._cuda.cudaEventDestroy(event))

    def alloc(self, n_bytes: int, what: str) -> int:
        """Return zeroed device memory; `what` is named when there is not enough."""
        try:
            (pointer,) = self._call("cudaMalloc", max(n_bytes, 1))
        except DeviceError as error:
            free = self.free_bytes() // MB
            raise DeviceError(f"{what} needs {-(-n_bytes // MB)} MB of GPU memory, {free} are free "
                              f"({error}); {_OTHERWISE}") from None
        self._freed.append(lambda: self._cuda.cudaFree(pointer))
        self.zero(int(pointer), n_bytes)
        return int(pointer)

    def free_bytes(self) -> int:
        """Return how much device memory is free."""
        free, _ = self._call("cudaMemGetInfo")
        return int(free)

    def pinned(self, n_floats: int) -> NDArray[np.float32]:
        """Return zeroed host memory that the GPU can reach, float32."""
        size = max(n_floats, 1)
        (pointer,) = self._call("cudaHostAlloc", 4 * size, 0)
        self._freed.append(lambda: self._cuda.cudaFreeHost(pointer))
        memory = (ctypes.c_float * size).from_address(int(pointer))
        array: NDArray[np.float32] = np.ctypeslib.as_array(memory)
        array.fill(0.0)
        return array[:n_floats]

    def zero(self, pointer: int, n_bytes: int) -> None:
        """Fill device memory with zeros."""
        if n_bytes:
            self._call("cudaMemsetAsync", pointer, 0, n_bytes, self._stream)

    def copy_in(self, pointer: int, host: NDArray[np.float32]) -> None:
        """Copy pinned host memory to the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", pointer, host.ctypes.data, host.nbytes, kind, self._stream)

    def copy_out(self, host: NDArray[np.float32], pointer: int) -> None:
        """Copy device memory to pinned host memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, pointer, host.nbytes, kind, self._stream)

    def copy_within(self, target: int, source: int, n_bytes: int) -> None:
        """Copy from device memory to device memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target, source, n_bytes, kind, self._stream)

    def strided_copy(
        self, target: int, source: int, *, width: int, rows: int, blocks: int, pitch: int,
        block_rows: int,
    ) -> Callable[[], None]:
        """Return a copy to be made again and again: (blocks, rows, width) bytes, dense in `source`.

        In `target` rows are `pitch` bytes apart and blocks `block_rows` rows.
        """
        cuda = self._cuda
        copy = cuda.cudaMemcpy3DParms()
        copy.srcPtr = _pitched(cuda, source, width, rows)
        copy.dstPtr = _pitched(cuda, target, pitch, block_rows)
        extent = cuda.cudaExtent()
        extent.width, extent.height, extent.depth = width, rows, blocks
        copy.extent = extent
        copy.kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        return lambda: self._check("cudaMemcpy3DAsync", cuda.cudaMemcpy3DAsync(copy, self._stream))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` enqueues as a CUDA graph; returns what launches it."""
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        finally:
            (graph,) = self._call("cudaStreamEndCapture", self._stream)
        (ready,) = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        self._freed.append(lambda: cuda.cudaGraphExecDestroy(ready))
        return lambda: self._check("cudaGraphLaunch", cuda.cudaGraphLaunch(ready, self._stream))

    def mark(self) -> None:
        """Note this point of the stream for `wait`."""
        self._check("cudaEventRecord", self._cuda.cudaEventRecord(self._event, self._stream))

    def wait(self, limit_s: float) -> None:
        """Spin until the stream has passed the mark; raises `DeviceError` after `limit_s`."""
        query, event = self._cuda.cudaEventQuery, self._event
        pending = self._cuda.cudaError_t.cudaErrorNotReady
        deadline = time.monotonic() + limit_s
        while (result := query(event))[0] == pending:
            if time.monotonic() > deadline:
                raise DeviceError(f"the GPU has not answered for {limit_s:g} s")
        self._check("cudaEventQuery", result)

    def settle(self, limit_s: float) -> None:
        """Wait for all that was enqueued."""
        self.mark()
        self.wait(limit_s)

    def close(self) -> None:
        """Free everything; nothing of the device may be used after it."""
        while self._freed:
            self._freed.pop()()

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        result: tuple[Any, ...] = getattr(self._cuda, name)(*arguments)
        self._check(name, result)
        return result[1:]

    def _check(self, name: str, result: tuple[Any, ...]) -> None:
        if result[0]:
            raise DeviceError(self._explained(name, result[0]))

    def _explained(self, name: str, error: Any) -> str:
        cuda = self._cuda
        text = cuda.cudaGetErrorString(error)[1].decode(errors="replace")
        versions = (cuda.cudaDriverGetVersion()[1], cuda.cudaRuntimeGetVersion()[1])
        return explain(error.name, f"{text} ({name})", *map(int, versions))


def _pitched(cuda: Any, pointer: int, pitch: int, rows: int) -> Any:
    place = cuda.cudaPitchedPtr()
    place.ptr, place.pitch, place.xsize, place.ysize = pointer, pitch, pitch, rows
    return place
