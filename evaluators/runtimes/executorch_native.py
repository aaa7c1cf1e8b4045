"""ExecuTorch's own libraries without torch, through the C interface of evaluators/emulation/executorch.cpp: the runtime of the emulated machine."""

import ctypes
from importlib.metadata import version

import numpy as np

from compress.artifact import Artifact
from compress.errors import InputError
from compress.network import Inputs

EXPORTER = "executorch"
SUFFIX = ".pte"
INTERFACE = "/opt/executorch.so"
FOLDER = "/opt/site/executorch/lib"
LIBRARIES = ("libexecutorch_threadpool", "libexecutorch", "libexecutorch_kernels_optimized", "libexecutorch_kernels_quantized", "libexecutorch_backend_xnnpack")
TYPES = {"uint8": 0, "int8": 1, "int16": 2, "int32": 3, "int64": 4, "float16": 5, "float32": 6, "float64": 7, "bool": 11}  # torch's ScalarType
MOST_DIMENSIONS = 16  # ExecuTorch's own limit


class NativeSession:
    """A .pte file with its method loaded."""

    def __init__(self, artifact: Artifact):
        self.library, error = interface(), ctypes.c_int()
        self.program = ctypes.c_void_p(self.library.program_open(str(artifact.path).encode(), ctypes.byref(error)))
        if not self.program:
            raise InputError(f"{artifact.path.name}: ExecuTorch does not load it, error {error.value:#x}")
        self.inputs = [(spec.name, np.dtype(spec.dtype)) for spec in artifact.contents.inputs]

    def run(self, inputs: Inputs) -> list[np.ndarray]:
        given = [np.ascontiguousarray(inputs[name], dtype) for name, dtype in self.inputs]
        for array in given:
            sizes = (ctypes.c_int * array.ndim)(*array.shape)
            self.library.program_input(self.program, array.ctypes.data_as(ctypes.c_void_p), TYPES[array.dtype.name], array.ndim, sizes)
        found = self.library.program_run(self.program)
        if found > 0:
            raise InputError(f"ExecuTorch failed with error {found:#x}")
        return [self.output(index) for index in range(-found)]

    def output(self, index: int) -> np.ndarray:
        kind, rank, sizes = ctypes.c_int(), ctypes.c_int(), (ctypes.c_int * MOST_DIMENSIONS)()
        data = self.library.program_output(self.program, index, ctypes.byref(kind), ctypes.byref(rank), sizes)
        dtype = np.dtype(next(name for name, code in TYPES.items() if code == kind.value))
        shape = tuple(sizes[: rank.value])
        return np.frombuffer(ctypes.string_at(data, int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def interface() -> ctypes.CDLL:
    for name in LIBRARIES:
        ctypes.CDLL(f"{FOLDER}/{name}.so", ctypes.RTLD_GLOBAL)  # kernels and backends register themselves
    library = ctypes.CDLL(INTERFACE)
    library.program_open.restype = library.program_output.restype = ctypes.c_void_p
    return library


def load(artifact: Artifact, threads: int) -> NativeSession:
    """A session on one thread, since the emulated machine has one processor."""
    return NativeSession(artifact)


def versions() -> dict[str, str]:
    return {"executorch": version("executorch"), "kernels": "XNNPACK; portable kernels for what it does not take"}
