"""An .onnx file as a Network: ONNX Runtime runs it, and its initializers are the weights."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from compress.backends.onnx_layers import Role, canonical, file_layout, role_of
from compress.backends.onnx_loading import load
from compress.errors import InputError
from compress.network import Inputs, InputSpec, Weight
from compress.samples import Data


class OnnxNetwork:
    framework = "onnx"

    def __init__(self, model: ir.Model, inputs: tuple[InputSpec, ...], notes: tuple[str, ...]):
        self.model, self.inputs, self.notes = model, inputs, notes

    @cached_property
    def roles(self) -> dict[str, Role]:
        """What every float32 initializer that is read is to the graph, by its name."""
        return {name: role_of(value) for name, value in self.model.graph.initializers.items() if value.dtype == ir.DataType.FLOAT and value.uses()}

    def weights(self) -> dict[str, Weight]:
        constants = self.model.graph.initializers
        return {name: Weight(name, role.kind, canonical(constants[name].const_value.numpy(), role)) for name, role in self.roles.items()}

    def with_weights(self, values: Mapping[str, np.ndarray]) -> "OnnxNetwork":
        model = self.model.clone()
        for name, value in values.items():
            if name not in self.roles:
                raise InputError(f"the file has no float32 tensor {name!r}")
            constant, role = model.graph.initializers[name], self.roles[name]
            old = constant.const_value.numpy()
            if np.shape(value) != canonical(old, role).shape:
                raise InputError(f"{name}: a value of shape {list(np.shape(value))} does not fit, expected {list(canonical(old, role).shape)}")
            constant.const_value = ir.tensor(file_layout(np.asarray(value, np.float32), role, old.shape), name=name)
        return OnnxNetwork(model, self.inputs, self.notes)

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.x64quantprecision", "1")  # signed weights become unsigned where their products would saturate
        return onnxruntime.InferenceSession(ir.to_proto(self.model).SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Inputs) -> list[np.ndarray]:
        found = self.session.run(None, {spec.name: np.ascontiguousarray(inputs[spec.name]) for spec in self.inputs})
        return [np.asarray(output).astype(np.float32, copy=False) for output in found]


def open_model(path: Path | str, inputs: Data | None) -> OnnxNetwork:
    """The model of an .onnx file. InputError where it cannot be read, leaves axes open without data, or does not run."""
    network = OnnxNetwork(*load(Path(path), inputs))
    zeros = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in network.inputs}
    try:
        network.run(zeros)
    except Exception as error:  # ONNX Runtime's classes have no base of their own
        raise InputError(f"{path} does not run in ONNX Runtime: {' '.join(str(error).split())[:300]}") from error
    unknown = [name for name, role in network.roles.items() if role.kind == "parameter" and network.model.graph.initializers[name].const_value.size > 256]
    if unknown:
        network.notes += (f"constants of operators whose weights recipes do not know stay in float: {', '.join(unknown)}",)
    return network
