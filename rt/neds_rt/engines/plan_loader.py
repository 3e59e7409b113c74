"""From a bundle's plans to a TensorRT execution context: choosing, rebuilding, loading, binding.

A plan is machine code that runs on the GPU with all that this process may do, and nothing checks it
when it is loaded. So a bundle's plans are loaded only if somebody answers for them
(`Bundle.plans_trusted`); otherwise one is built here from the graph, which is data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from neds_rt.bundle import Bundle
from neds_rt.engines.cuda_runtime import DeviceError
from neds_rt.engines.plan_graph import graph_hash, graph_name
from neds_rt.errors import StartError
from neds_rt.manifest import Plan
from neds_rt.plans import PlanKey, get_plan, make_log, product_module, product_version

VOUCHED = "a bundle signed by a key of --trust, or --trust-plans"
logger = logging.getLogger("neds_rt.plans")


def choose_plan(bundle: Bundle, product: str, form: str, precision: str, target: str) -> bytes:
    """Return the bundle's plan for this device and product, or one built from the bundle's graph.

    The bundle's is returned only if it is trusted; where it is not, one line is logged. Graphs that
    are not in the bundle were not asked for at export or failed parity: they are not made up for
    here. Raises `StartError` naming what would build the plan.
    """
    name = graph_name(form, precision)
    graph = bundle.files.get(name)
    if graph is None:
        raise StartError(f"{bundle.where}: no {name}, which {product} is built from; "
                         f"{_advice(bundle, product, form, precision, target)}")
    key = PlanKey(product, product_version(product), target, form, precision, graph_hash(graph))
    plan = next((plan for plan in bundle.manifest.plans if _serves(plan, key)), None)
    if plan is not None and bundle.plans_trusted:
        return bundle.files[plan.file]
    found = "no plan"
    if plan is not None:
        found = f"{plan.file} is not trusted (expected {VOUCHED}), no other plan"
        logger.warning("%s: %s is code that nobody vouches for, one is built here from %s; to load "
                       "it: %s", bundle.where, plan.file, name, VOUCHED)
    try:
        return get_plan(graph, key).data
    except StartError as error:
        raise StartError(f"{bundle.where}: {found} for {product} {key.version} on {target}, and "
                         f"none can be built here: {error}; "
                         f"{_advice(bundle, product, form, precision, target)}") from None


def _serves(plan: Plan, key: PlanKey) -> bool:
    return all(getattr(plan, field) == getattr(key, field) for field in key.__dataclass_fields__)


def _advice(bundle: Bundle, product: str, form: str, precision: str, target: str) -> str:
    return (f"neds export-trt CKPT --session {bundle.manifest.session} --out X.neds "
            f"--product {product} --form {form} --precision {precision} --target {target} "
            "builds it, --engine native runs on the CPU")


class Execution:
    """A loaded plan, its memory given by `alloc`; `sizes` are its tensors' names and bytes.

    Raises `DeviceError` with the product's own reason when it refuses the plan or fails to run.
    """

    def __init__(self, product: str, plan: bytes, alloc: Callable[[int, str], int]) -> None:
        trt = product_module(product)
        self._name = f"{product} {trt.__version__}"
        self._log = make_log(trt)
        self._runtime = self._made(trt.Runtime, self._log)
        engine = self._made(self._runtime.deserialize_cuda_engine, plan)
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context = self._made(engine.create_execution_context, strategy)
        self._engine = engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.sizes = {
            name: trt.volume(engine.get_tensor_shape(name)) * engine.get_tensor_dtype(name).itemsize
            for name in names
        }
        n_bytes = max(int(engine.device_memory_size_v2),
                      int(self._context.update_device_memory_size_for_shapes()))
        self._context.set_device_memory(alloc(n_bytes, f"{self._name}'s work space"), n_bytes)

    def bind(self, name: str, pointer: int) -> None:
        """Let the tensor `name` live at a device address, for good."""
        if not self._context.set_tensor_address(name, pointer):
            raise DeviceError(self._reason(f"does not take {name}"))

    def enqueue(self, stream: int) -> None:
        """Run once on `stream`."""
        if not self._context.execute_async_v3(stream):
            raise DeviceError(self._reason("does not run"))

    def capturable(self, stream: int) -> bool:
        """Whether a CUDA graph may be made of `enqueue`; to be asked after it ran once."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(stream))

    def close(self) -> None:
        """Let go of the plan, before the device's memory is freed."""
        self._context = self._engine = self._runtime = None

    def _made(self, make: Callable[[Any], Any], argument: Any) -> Any:
        try:
            made = make(argument)
        except (RuntimeError, TypeError) as error:
            self._log.errors.append(str(error))
            made = None
        if made is None:
            raise DeviceError(self._reason("does not load the plan"))
        return made

    def _reason(self, what: str) -> str:
        reason = " ".join((self._log.errors or ["it gives no reason"])[0].split())
        return f"{self._name} {what}: {reason}; --engine native runs on the CPU"
