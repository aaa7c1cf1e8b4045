"""What is measured. Each module has the part that runs in a measuring process and the part that derives rows from its raw samples.

size and the facts of a file need no run of their own; latency is measured in groups, alone on the machine; accuracy and memory arm by arm.
"""

from compress.registry import Entry, Registry

METRICS = Registry(
    "metric",
    {
        "accuracy": Entry("evaluators.metrics.accuracy", about="predictions on the test samples, paired with float32"),
        "memory": Entry("evaluators.metrics.memory", about="peak resident memory of a fresh process"),
    },
)
"""Metrics that take one arm at a time, in the order in which they run. A module has `measure(artifact, folder, runtime, threads, data)`, which returns
(facts, arrays) from inside a measuring process."""
