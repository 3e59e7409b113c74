"""Writing ONNX nodes and constants one after the other, and in which precision products are taken.

Precision is in the graph, as strongly typed networks want it: the operands of a matrix product are
cast to the graph's type and its result back to float32. All else is float32: layer norms, softmax,
rotary phases, biases, the residual stream.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.errors import StartError

OPSET = 20  # the first with Gelu
IR_VERSION = 9
PRECISIONS = ("fp32", "fp16", "bf16")


def onnx_package() -> Any:
    """Return the module `onnx`; raises `StartError` when it is not installed."""
    try:
        import onnx
    except ImportError:
        raise StartError(
            "building an ONNX graph needs the package 'onnx': pip install 'neds[train]'"
        ) from None
    return onnx


class Nodes:
    """A graph under construction; every method that adds nodes returns the name of its result.

    With `emulated` nothing but casts is of the graph's precision: what would be of it is rounded to
    it and taken in float32, which ONNX Runtime can do on a CPU for every type. With float32
    accumulation that is what a GPU computes, but for the order of sums.
    """

    def __init__(self, precision: str = "fp32", emulated: bool = False) -> None:
        onnx = onnx_package()
        self.helper = onnx.helper
        types = onnx.TensorProto
        self.float, self.bool = int(types.FLOAT), int(types.BOOL)
        self.product = {"fp32": self.float, "fp16": int(types.FLOAT16),
                        "bf16": int(types.BFLOAT16)}[precision]
        self.emulated = emulated
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.names: set[str] = set()

    @property
    def ring(self) -> int:
        """The type in which products take keys and values."""
        return self.float if self.emulated else self.product

    def serialised(self, name: str) -> bytes:
        """Return the model of all that was added so far."""
        helper = self.helper
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        model.producer_name = "neds"
        return bytes(model.SerializeToString())

    def operand(self, x: str) -> str:
        """Float32 `x` as products take it."""
        if self.product == self.float:
            return x
        rounded = self.op("Cast", x, to=self.product)
        return self.op("Cast", rounded, to=self.float) if self.emulated else rounded

    def matmul(self, a: str, b: str) -> str:
        """The product of two operands, in float32."""
        product = self.op("MatMul", a, b)
        if self.product == self.float:
            return product
        if self.emulated:
            return self.operand(product)
        return self.op("Cast", product, to=self.float)

    def linear(
        self, name: str, x: str, weight: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> str:
        """`x` (rows, in) float32 by `weight` (out, in), in the graph's precision, plus `bias`."""
        if self.product == self.float:
            return self.float_linear(name, x, weight, bias)
        matrix = self.rounded(f"{name}.weight", weight.T)
        return self.op("Add", self.matmul(self.operand(x), matrix),
                       self.constant(f"{name}.bias", bias))

    def float_linear(
        self, name: str, x: str, weight: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> str:
        """The same in float32, whatever the graph's precision."""
        # Stored transposed: ONNX Runtime then packs it once for its matrix product.
        matrix = self.constant(f"{name}.weight", weight.T)
        return self.op("Gemm", x, matrix, self.constant(f"{name}.bias", bias))

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Add a node of one output."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant of the array's own type, once per name."""
        data_type = self.helper.np_dtype_to_tensor_dtype(values.dtype)
        return self._constant(name, data_type, values)

    def rounded(self, name: str, values: NDArray[np.float32]) -> str:
        """Add a float32 constant as an operand of products."""
        if self.product == self.helper.np_dtype_to_tensor_dtype(np.dtype(np.float16)):
            half = values.astype(np.float16)
            return self.constant(name, half.astype(np.float32) if self.emulated else half)
        bits = bfloat16_bits(values)
        if self.emulated:
            return self.constant(name, (bits.astype(np.uint32) << 16).view(np.float32))
        return self._constant(name, self.product, bits)

    def _constant(self, name: str, data_type: int, values: NDArray[Any]) -> str:
        if name not in self.names:
            self.names.add(name)
            raw = np.ascontiguousarray(values).tobytes()
            self.constants.append(
                self.helper.make_tensor(name, data_type, values.shape, raw, raw=True)
            )
        return name

    def ints(self, *values: int) -> str:
        """A constant list of integers: a shape, axes, a border."""
        name = "ints_" + "_".join(map(str, values))
        return self.constant(name, np.array(values, np.int64))

    def slice(self, x: str, begin: int, end: int, axis: int) -> str:
        """`x[begin:end]` along `axis`."""
        return self.op("Slice", x, self.ints(begin), self.ints(end), self.ints(axis))

    def input(self, name: str, *shape: int, data_type: int = 0) -> str:
        """Declare an input, float32 unless told."""
        self.inputs.append(
            self.helper.make_tensor_value_info(name, data_type or self.float, shape))
        return name

    def output(self, name: str, result: str, *shape: int, data_type: int = 0) -> None:
        """Declare `result` as an output, float32 unless told."""
        self.nodes.append(self.helper.make_node("Identity", [result], [name], f"to_{name}"))
        self.outputs.append(
            self.helper.make_tensor_value_info(name, data_type or self.float, shape))


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of finite float32 numbers, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)
