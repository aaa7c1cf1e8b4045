"""Static int8 through PT2E as XNNPACK's partitioner wants it, with the core's codes, scales and activation ranges."""

from collections.abc import Mapping

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import OP_TO_ANNOTATOR, propagate_annotation
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY
from torchao.quantization.pt2e.quantizer.utils import QuantizationConfig

from compress.formats import StaticActivations
from exporters.executorch_kernels import dequantized
from exporters.torch_graph import Builder, Site, aten
from exporters.torch_pt2e import CoreObserver, decomposed

FUSED = (aten.relu.default, aten.hardtanh.default)  # XNNPACK clamps the sums of a layer to their range
IN_INT8 = (*FUSED, aten.add.Tensor, aten.mul.Tensor, aten.cat.default, aten.adaptive_avg_pool2d.default, aten.max_pool2d.default, aten.mean.dim)
IN_INT8 += (aten.permute.default, aten.transpose.int, aten.reshape.default, aten.flatten.using_ints, aten.dropout.default)
WITHOUT_WEIGHTS = ("add_relu", "add", "mul_relu", "mul", "cat", "adaptive_avg_pool2d")


class PlannedQuantizer(Quantizer):
    """XNNPACK's configuration on exactly the planned layers, and on the operators without weights that lie between them.

    A sum that goes into a layer norm stays in float: XNNPACK computes norms in float only, and rounding it to 8 bits would gain nothing.
    """

    def __init__(self, planned: set[str], activations: StaticActivations):
        super().__init__()
        self.planned = planned
        default = get_symmetric_quantization_config(is_per_channel=True)
        observed = QuantizationSpec(
            dtype=torch.int8,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
            is_dynamic=False,
            observer_or_fake_quant_ctr=CoreObserver.with_args(activations=activations),
        )
        self.config = QuantizationConfig(observed, observed, default.weight, None, False)

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        for node in model.graph.nodes:
            if node.name in self.planned:
                self.annotate_layer(node)
        for pattern in WITHOUT_WEIGHTS:
            OP_TO_ANNOTATOR[pattern](model, self.config, self.reaches_a_layer)
        propagate_annotation(model)
        return model

    def reaches_a_layer(self, node: torch.fx.Node) -> bool:
        """Whether a planned layer reads it, or what operators in int8 make of it."""
        return any(user.name in self.planned or (user.target in IN_INT8 and self.reaches_a_layer(user)) for user in node.users)

    def annotate_layer(self, node: torch.fx.Node) -> None:
        last, users = node, list(node.users)
        if len(users) == 1 and users[0].target in FUSED:
            last = users[0]
        inputs = {node.args[0]: self.config.input_activation, node.args[1]: self.config.weight}
        node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=inputs, _annotated=True)
        if last is not node:
            last.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(_annotated=True)
        last.meta[Q_ANNOTATION_KEY].output_qspec = self.config.output_activation

    def validate(self, model: torch.fx.GraphModule) -> None:
        pass


def place_codes(sites: Mapping[str, Site], builder: Builder, node: torch.fx.Node, name: str) -> bool:
    """Puts the core's codes and scales before a layer; False where its weight or its input was not quantized."""
    x, weight = node.args[:2]
    if x.target is not decomposed.dequantize_per_tensor.default or weight.target is not decomposed.dequantize_per_channel.default:
        return False
    with builder.module.graph.inserting_before(node):
        node.args = (x, dequantized(builder, Site(name, node, weight, sites[node.name].layout)), *node.args[2:])
    return True
