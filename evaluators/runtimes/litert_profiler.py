"""LiteRT's own profiler. Its Python has none, so it is reached through the C interface of the wheel's libLiteRt.so, which has no header there.

Signatures and structures are those of litert/c/ (litert_profiler.h, litert_profiler_event.h, litert_compiled_model.h) at version 2.3. Another version may
differ, and a wrong signature can end the process: only a measuring process loads this.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import Artifact
from compress.backends.litert_codes import encoded
from compress.errors import CompressError
from compress.network import Inputs
from evaluators.operators import OperatorTime, Timed, medians, own_times
from evaluators.runtimes.litert import PRODUCTS, LitertSession, graph

CPU = 1  # kLiteRtHwAcceleratorCpu
WRITE = 1  # kLiteRtTensorBufferLockModeWrite
TENSOR_TYPE_BYTES = 72  # of a LiteRtRankedTensorType
BUILTIN, DELEGATED = 1 << 1, 1 << 3  # kinds of events: an operator of the file, and a kernel inside a delegate
DELEGATE = "Delegate"  # in the name of the operator that stands for what a delegate took
FREE = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)  # the options' text is Python's


class Event(ctypes.Structure):
    """ProfiledEventData; times are microseconds."""

    _fields_ = (
        ("tag", c_char_p),
        ("type", c_int),
        ("start", c_uint64),
        ("elapsed", c_uint64),
        ("memory_before", c_int64 * 3),
        ("memory_after", c_int64 * 3),
        ("index", c_uint64),  # of the operator in its graph, or of the kernel in its delegate
        ("graph", c_uint64),
        ("source", c_int),
    )


class Interface:
    """libLiteRt.so; a call that does not return success is a CompressError with its name and status."""

    def __init__(self):
        import ai_edge_litert

        self.library = ctypes.CDLL(str(Path(ai_edge_litert.__file__).with_name("libLiteRt.so")))

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, f"LiteRt{name}")(*arguments)
        if status != 0:
            raise CompressError(f"LiteRT's profiler: LiteRt{name} failed with status {status}")

    def made(self, name: str, *arguments: Any) -> c_void_p:
        """What a call writes to its last argument."""
        found = c_void_p()
        self.call(name, *arguments, byref(found))
        return found


def operator_times(artifact: Artifact, inputs: Sequence[Inputs], runs: int, threads: int) -> list[OperatorTime]:
    """Kernels inside XNNPACK and the operators that it left to LiteRT's own kernels, each with its median over `runs` runs."""
    session, known = LitertSession(artifact, threads), kinds(artifact)
    details = {detail["name"]: (name, detail) for name, detail in session.inputs}
    with compiled(artifact, threads) as (interface, model, buffers):
        profiler = interface.made("CompiledModelGetProfiler", model)
        found = []
        for number in range(runs + 1):
            sample = inputs[number % len(inputs)]
            for tensor, buffer in buffers[0]:
                name, detail = details[tensor]
                fill(interface, buffer, encoded(sample[name], detail))
            found.append(one_run(interface, model, profiler, buffers, known))
    return medians(found[1:])  # the first run packs weights


@contextmanager
def compiled(artifact: Artifact, threads: int) -> Iterator[tuple[Interface, c_void_p, tuple[list, list]]]:
    """The interface, a compiled model with its profiler, and its input and output buffers with the names of their tensors."""
    interface = Interface()
    with ExitStack() as stack:

        def made(name: str, *arguments: Any, end: str) -> c_void_p:
            handle = interface.made(name, *arguments)
            stack.callback(getattr(interface.library, f"LiteRtDestroy{end}"), handle)
            return handle

        environment = made("CreateEnvironment", 0, None, end="Environment")
        model = made("CreateModelFromFile", environment, str(artifact.path).encode(), end="Model")
        options = made("CreateOptions", end="Options")
        interface.call("SetOptionsHardwareAccelerators", options, CPU)
        texts = {b"xnnpack": b"num_threads = %d\n" % threads, b"runtime_options_string": b"enable_profiling = true\n"}
        for name, text in texts.items():
            interface.call("AddOpaqueOptions", options, interface.made("CreateOpaqueOptions", name, text, FREE))
        program = made("CreateCompiledModel", environment, model, options, end="CompiledModel")
        signature = interface.made("GetModelSignature", model, c_size_t(0))
        sides = []
        for side in ("Input", "Output"):
            count = c_size_t()
            interface.call(f"GetNumSignature{side}s", signature, byref(count))
            sides.append([])
            for index in map(c_size_t, range(count.value)):
                tensor = interface.made(f"GetSignature{side}TensorByIndex", signature, index)
                kind, name = ctypes.create_string_buffer(TENSOR_TYPE_BYTES), c_char_p()
                interface.call("GetRankedTensorType", tensor, kind)
                interface.call("GetTensorName", tensor, byref(name))
                wanted = interface.made(f"GetCompiledModel{side}BufferRequirements", program, c_size_t(0), index)
                buffer = made("CreateManagedTensorBufferFromRequirements", environment, kind, wanted, end="TensorBuffer")
                sides[-1].append((name.value.decode(), buffer))
        yield interface, program, tuple(sides)


def fill(interface: Interface, buffer: c_void_p, array: np.ndarray) -> None:
    place = c_void_p()
    interface.call("LockTensorBuffer", buffer, byref(place), WRITE)
    ctypes.memmove(place, array.ctypes.data, array.nbytes)
    interface.call("UnlockTensorBuffer", buffer)


def one_run(interface: Interface, model: c_void_p, profiler: c_void_p, buffers: tuple[list, list], known: Sequence[str]) -> list[OperatorTime]:
    interface.call("StartProfiler", profiler)
    given, made = ((c_void_p * len(side))(*(buffer for _, buffer in side)) for side in buffers)
    interface.call("RunCompiledModel", model, c_size_t(0), c_size_t(len(given)), given, c_size_t(len(made)), made)
    interface.call("StopProfiler", profiler)
    count = c_int()
    interface.call("GetNumProfilerEvents", profiler, byref(count))
    events = (Event * count.value)()
    interface.call("GetProfilerEvents", profiler, count, ctypes.cast(events, POINTER(Event)))
    return read(events, known)


def read(events: Sequence[Event], known: Sequence[str]) -> list[OperatorTime]:
    """XNNPACK's kernels have no start; LiteRT's own operators may call others, those of a loop's body."""
    kernels = [OperatorTime(e.tag.decode(), e.tag.decode(), e.elapsed / 1e6, "XNNPACK") for e in events if e.type == DELEGATED]
    own = [e for e in events if e.type == BUILTIN and DELEGATE not in e.tag.decode()]
    timed = [Timed(OperatorTime(e.tag.decode(), kind(e, known), 0.0, "LiteRT's built-in kernels"), e.start, e.elapsed) for e in own]
    return kernels + own_times(timed, 1e-6)


def kinds(artifact: Artifact) -> list[str]:
    """Names of the file's operators, of those that multiply with the types of what they read."""
    return [f"{name} ({' x '.join(dtype for _, dtype in inputs[:2])})" if name in PRODUCTS else name for name, inputs, _ in graph(artifact)]


def kind(event: Event, known: Sequence[str]) -> str:
    """As `CONV_2D (float32 x int8)`, where the file's graph says what the operator reads."""
    return known[event.index] if event.graph == 0 and event.index < len(known) else event.tag.decode()
