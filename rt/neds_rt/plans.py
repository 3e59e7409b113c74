"""Plans: what TensorRT compiles from an ONNX graph for one kind of GPU, built and kept on disk.

`tensorrt-rtx` builds for the targets of `RTX_TARGETS` on a machine without any GPU; `tensorrt`
builds for the GPU that is there. A plan serves only the product, version and target it was built
for. The cache is `$NEDS_CACHE/plans` (`~/.cache/neds/plans`); deleting it costs the time to build.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from neds_rt.errors import BadInput, StartError
from neds_rt.manifest import Plan

PRODUCTS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # name -> Python module
EXTRAS = {"tensorrt": "trt", "tensorrt-rtx": "trt-rtx"}
RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
USUAL_TARGETS = ("sm86", "sm89", "sm120")  # of the workstations that rigs have
NO_BFLOAT16 = ("sm75",)
CACHE_VARIABLE = "NEDS_CACHE"
MAX_PLAN_BYTES = 2_000_000_000  # what a bundle may have in all
_HEADER_LIMIT = 4096


@dataclass(frozen=True)
class PlanKey:
    """What a plan depends on; two plans of one key are interchangeable."""

    product: str
    version: str
    target: str  # such as "sm89": compute capability 8.9
    form: str
    precision: str
    graph_sha256: str

    @property
    def digest(self) -> str:
        """The name of the plan in the cache."""
        parts = (self.product, self.version, self.target, self.precision, self.graph_sha256)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def file(self) -> str:
        """The name of the plan among a bundle's files."""
        return f"plans/{self.form}-{self.precision}-{self.product}-{self.target}.plan"


@dataclass(frozen=True)
class BuiltPlan:
    """A plan's bytes and what building it took."""

    data: bytes
    build_s: float
    cached: bool  # taken from the cache; `build_s` is what it took then


class _CacheHeader(msgspec.Struct, frozen=True):
    sha256: str
    build_s: float


def installed_products() -> list[str]:
    """Return the products whose Python module can be found, without importing it."""
    return [name for name, module in PRODUCTS.items() if importlib.util.find_spec(module)]


def product_module(product: str) -> Any:
    """Import the bindings of `product`.

    Raises `BadInput` for an unknown product, `StartError` for one that is not installed or broken.
    """
    if product not in PRODUCTS:
        raise BadInput("--product", "name", repr(product), f"one of {', '.join(PRODUCTS)}")
    try:
        return importlib.import_module(PRODUCTS[product])
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
        raise StartError(f"{product} is not installed{reason}: "
                         f"pip install 'neds[{EXTRAS[product]}]'") from None
    except Exception as error:  # what its libraries' absence raises differs between releases
        raise StartError(f"{product} cannot be loaded: {' '.join(str(error).split())}") from None


def product_version(product: str) -> str:
    """Return the installed version of `product`; raises as `product_module` does."""
    return str(product_module(product).__version__)


def get_plan(graph: bytes, key: PlanKey) -> BuiltPlan:
    """Return the plan of `key` from the cache, or build it and put it there.

    Raises `StartError` when the product refuses, with the reason it gives.
    """
    path = cache_folder() / f"{key.digest}.plan"
    found = _read_cached(path)
    if found is not None:
        return found
    begin = time.perf_counter()
    data = build_plan(graph, key.product, key.target)
    build_s = round(time.perf_counter() - begin, 3)
    _write_cached(path, data, build_s)
    return BuiltPlan(data, build_s, cached=False)


def describe(key: PlanKey, plan: BuiltPlan, graph: str) -> Plan:
    """Return the manifest's entry of a plan; `graph` is the graph's name in the bundle."""
    return Plan(
        file=key.file, product=key.product, version=key.version, target=key.target, form=key.form,
        precision=key.precision, graph=graph, graph_sha256=key.graph_sha256,
        sha256=hashlib.sha256(plan.data).hexdigest(), bytes=len(plan.data), build_s=plan.build_s,
    )


def check_target(product: str, target: str) -> None:
    """Raise `BadInput` for what is no target, or none that `product` builds without its GPU."""
    if not (target.startswith("sm") and target[2:].isdecimal()):
        raise BadInput("--target", "name", repr(target), "names such as sm86,sm89")
    if product == "tensorrt-rtx" and target not in RTX_TARGETS:
        raise BadInput("--target", "tensorrt-rtx", target, f"some of {', '.join(RTX_TARGETS)}")


def build_plan(graph: bytes, product: str, target: str) -> bytes:
    """Compile `graph` for `target`; raises `StartError` with the product's own reason."""
    trt = product_module(product)
    log = make_log(trt)
    try:
        builder = trt.Builder(log)
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)
        parser = trt.OnnxParser(network, log)
        parsed = parser.parse(graph)
        if parsed:
            config = _configured(trt, builder, target)
            plan = builder.build_serialized_network(network, config)
            if plan is not None:
                return bytes(plan)
        else:
            log.errors += [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
    except (RuntimeError, TypeError) as error:  # a builder that it could not make is a TypeError
        log.errors.append(str(error))
    reason = " ".join((log.errors or ["it gives no reason"])[0].split())
    raise StartError(f"{product} {trt.__version__} builds no plan for {target}: {reason}")


def _configured(trt: Any, builder: Any, target: str) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is to mean float32
    config.max_aux_streams = 0
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # Without it the engine allocates while it runs, which cannot be captured.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if hasattr(trt, "ComputeCapability"):
        config.num_compute_capabilities = 1
        known = getattr(trt.ComputeCapability, target.upper(), trt.ComputeCapability.CURRENT)
        config.set_compute_capability(known, 0)
    return config


def make_log(trt: Any) -> Any:
    """Return a logger for the bindings `trt` that prints nothing and keeps `errors`."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)

    return Log()


def cache_folder() -> Path:
    """Return the folder of cached plans, which may not exist."""
    named = os.environ.get(CACHE_VARIABLE)
    return (Path(named) if named else Path.home() / ".cache" / "neds") / "plans"


def _read_cached(path: Path) -> BuiltPlan | None:
    """The cached plan, None when there is none, it is damaged, or others may have written it."""
    try:
        with path.open("rb") as file:
            if not _is_own(os.fstat(file.fileno())):
                return None
            header, _, data = file.read(_HEADER_LIMIT + MAX_PLAN_BYTES).partition(b"\n")
        said = msgspec.json.decode(header[:_HEADER_LIMIT], type=_CacheHeader)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    if hashlib.sha256(data).hexdigest() != said.sha256:
        return None
    return BuiltPlan(data, said.build_s, cached=True)


def _is_own(found: os.stat_result) -> bool:
    """Whether only this user, or root, can have written a file: a plan is machine code."""
    if os.name != "posix":
        return True
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & 0o022


def _write_cached(path: Path, data: bytes, build_s: float) -> None:
    header = msgspec.json.encode(_CacheHeader(hashlib.sha256(data).hexdigest(), build_s))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(header + b"\n" + data)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BadInput(path.parent, "plan cache", error,
                       f"a writable folder (${CACHE_VARIABLE} names another)") from None
