"""What is measured. Each module has the part that runs in a measuring process and the part that derives rows from its raw samples.

size and the facts of a file need no run of their own; latency is measured in groups, alone on the machine; accuracy and memory arm by arm.
"""

from compress.registry import Entry, Registry

METRICS = Registry(
    "metric",
    {
        "accuracy": Entry("evaluators.metrics.accuracy", about="predictions on the test samples, paired with float32"),
        "memory": Entry("evaluators.metrics.memory", about="peak resident memory of a fresh process"),
        "gpu": Entry("evaluators.metrics.gpu", about="memory on a GPU, and how an arm computes there"),
        "outputs": Entry("evaluators.metrics.outputs", about="all outputs on this machine's CPU, which other targets are compared with"),
        "emulated": Entry("evaluators.metrics.emulated", about="outputs, memory and instructions on an emulated machine"),
        "android": Entry("evaluators.metrics.android", "adb", "memory, delegates and outputs on a phone"),
    },
)
"""Metrics that take one arm at a time; a target says which of them are measured there. A module has
`measure(artifact, folder, runtime, threads, data, samples)`, which returns (facts, arrays) from inside a measuring process."""

SCORED = ("accuracy", "emulated", "android")
"""Metrics that keep what the study's task scores."""

AT_HOME = ("outputs",)
"""Metrics that are measured on this machine's CPU for whichever target asks for them."""
