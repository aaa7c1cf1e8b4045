"""ONNX Runtime's CUDA provider: inputs and outputs bound in the device's memory, work on a stream that PyTorch's events can time."""

from collections import Counter
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from compress.artifact import Artifact
from compress.errors import CompressError
from compress.network import Inputs
from evaluators.runtimes import cuda

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
RECORD = "session.record_ep_graph_assignment_info"


def load(artifact: Artifact, options: ort.SessionOptions, device: str) -> cuda.CudaSession:
    """CompressError where the provider is installed and does not load, which ONNX Runtime itself passes over."""
    context, index = cuda.use(device), torch.device(device).index
    stream = torch.cuda.Stream(device)
    settings = {"device_id": str(index), "user_compute_stream": str(stream.cuda_stream), "use_tf32": "0"}
    options.add_session_config_entry(RECORD, "1")
    session = ort.InferenceSession(str(artifact.path), options, providers=[(CUDA, settings), CPU])
    session.disable_fallback()
    if CUDA not in session.get_providers():
        raise CompressError("ONNX Runtime's CUDA provider does not load: its CUDA and cuDNN must be those that PyTorch brings (its log says what is missing)")
    outputs = [output.name for output in session.get_outputs()]

    def place(batch: Inputs) -> tuple[Any, list[torch.Tensor]]:
        binding, held = session.io_binding(), []
        for spec in artifact.contents.inputs:
            array = np.ascontiguousarray(batch[spec.name], spec.dtype)
            held.append(torch.from_numpy(array).to(device))
            binding.bind_input(spec.file_name, "cuda", index, array.dtype.type, array.shape, held[-1].data_ptr())
        for name in outputs:
            binding.bind_output(name, "cuda", index)
        return binding, held

    def compute(placed: tuple[Any, list[torch.Tensor]]) -> Any:
        session.run_with_iobinding(placed[0])
        return placed[0]

    notes = on_the_cpu(session)
    return cuda.CudaSession(device, place, compute, lambda binding: binding.copy_outputs_to_cpu(), context=context, stream=stream, notes=notes)


def on_the_cpu(session: ort.InferenceSession) -> list[str]:
    """What stayed on the CPU of a session that recorded it, in words; nothing where all nodes run on the device."""
    nodes = [(part.ep_name, node.op_type) for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()]
    left = Counter(kind for provider, kind in nodes if provider == CPU)
    if not left:
        return []
    return [f"{left.total()} of {len(nodes)} nodes run on the CPU, with copies between: {', '.join(f'{n} {kind}' for kind, n in left.most_common())}"]
