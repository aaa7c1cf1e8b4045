"""What a study found: the rows that every report is made of. Raw samples live in study.sqlite; these are derived from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def negative(self) -> "Estimate":
        return Estimate(-self.value, -self.high, -self.low)


@dataclass(frozen=True)
class TensorRow:
    """One constant of the artifact as read back from the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    placement: str  # native, decoded, simulated or float
    reason: str
    size_bytes: int
    planned: str  # the plan's format in words, "" where the plan leaves it in float


@dataclass(frozen=True)
class Size:
    file_bytes: int
    deflated_bytes: int
    payload: int
    scales: int
    zero_points: int
    float_bytes: int
    graph: int
    ratio: float | None  # float32 file of the same runtime / this file; None where that arm failed


@dataclass(frozen=True)
class Latency:
    block_medians_ms: tuple[float, ...]
    count: int  # timed runs in all blocks
    threads: int
    median_ms: Estimate
    percentiles_ms: dict[str, Estimate]  # only those that `count` can carry
    load_ms: float
    first_ms: float
    warmup_runs: int
    speedup: Estimate | None  # float32 time / this arm's time on the same runtime, from paired blocks; None where float32 failed
    verdict: Literal["baseline", "faster", "slower", "no difference shown", "no baseline"]
    noise: Estimate | None  # the A/A arm of the same runtime: the same ratio for float32 against itself
    processes: int = 1  # whose blocks `block_medians_ms` are, one process after the other, each as many


@dataclass(frozen=True)
class Memory:
    """Peak resident memory of a fresh process that loads and runs the artifact, less that of one that only imports the runtime."""

    peak_bytes: int
    baseline_bytes: int

    @property
    def model_bytes(self) -> int:
        return self.peak_bytes - self.baseline_bytes


@dataclass(frozen=True)
class Gpu:
    """What an arm takes of a GPU; None where it could not be read."""

    allocated_bytes: int | None  # peak of PyTorch's allocator while it runs; None for other runtimes
    reserved_bytes: int | None  # what that allocator has of the device for it
    process_bytes: int | None  # the whole process by NVML
    context_bytes: int | None  # of these, before the artifact was loaded
    watts: float | None  # the card's average over a sustained run
    millijoules: float | None  # the card's for one inference of that run


@dataclass(frozen=True)
class Metric:
    """What the scores of a task are; each sample has one.

    kind  right: 1 or 0, the value is the share of right ones
          mean: any number, the value is their mean
          perplexity: nats a token, the value is the exponential of their mean; a difference is float32's share: 0.02 for 2% more
          likeness: how close to float32's outputs, which is perfect for float32 itself; the value is their mean, and there is no difference beside it
    """

    title: str  # inside a sentence: "accuracy", "perplexity", "SQNR"
    kind: Literal["right", "mean", "perplexity", "likeness"] = "mean"
    unit: str = ""  # "%": scores are shares, differences points; else what stands behind the number: "dB", "mm"
    higher_is_better: bool = True
    noun: str = "sample"  # what has a score: "answer", "document"
    least: float | None = None  # of a likeness: an arm counts as without loss where its whole interval reaches this, as the study says


@dataclass(frozen=True)
class Score:
    """What an arm reaches on the test samples, paired with the float32 arm of the same runtime; all None where that has none, or is this arm."""

    metric: Metric
    count: int  # samples with a score
    value: Estimate  # Wilson interval of a share of right answers, else bootstrap over samples
    before: float | None  # float32's value on the same samples
    difference: Estimate | None  # this arm's value less float32's, bootstrap over samples; None for a likeness
    p: float | None  # that float32 and this arm are equally good, two-sided
    worse: int | None  # samples that score worse than in float32
    better: int | None
    flipped: float | None  # share of samples whose answer, or output, is not float32's
    smallest: float | None  # difference for the worse that these samples would have shown with 80% power, positive
    worst: float | None = None  # the worst sample's score; None where a score is right or wrong
    holm_p: float | None = None  # p adjusted over all recipes of the same runtime

    @property
    def test(self) -> str:
        """What p is from."""
        return "" if self.p is None else "exact McNemar" if self.metric.kind == "right" else "sign-flip permutation"

    @property
    def correct(self) -> int | None:
        return round(self.value.value * self.count) if self.metric.kind == "right" else None

    @property
    def drop(self) -> Estimate | None:
        """How much worse than float32, whichever way is better: positive is worse."""
        return self.difference.negative if self.difference and self.metric.higher_is_better else self.difference


@dataclass(frozen=True)
class Instructions:
    """Executed instructions of one inference on an emulated machine by class; those of the Python interpreter are left out."""

    total: int
    dot: int  # SDOT, UDOT and their mixed forms
    mmla: int  # SMMLA and its like
    int_mla: int  # integer multiply-add of vectors: SMLAL, MLA, SMULL
    fmla: int
    ldst: int  # loads and stores
    branch: int
    runs: int
    spread: float  # relative, between the runs' totals
    fewer: float | None  # float32's total on the same runtime and target / this arm's; None where float32 failed
    kernels: str  # what multiplies and adds: "SDOT", "SMMLA", "SMLAL", "FMLA"


@dataclass(frozen=True)
class Estimated:
    """What a real device would take, by a fit to arms that ran on it (`compresskit targets calibrate`)."""

    ms: float
    error_ms: float  # as far as models that the fit had not seen were off, root mean square
    device: str


@dataclass(frozen=True)
class Agreement:
    """Outputs of the same file on a target against this machine's, element by element."""

    samples: int
    elements: int  # of all outputs of all samples
    max_error: float
    largest: float  # absolute value of this machine's outputs, which puts the error into proportion
    bit_equal: bool


BREAKS_DB = 10.0
"""A layer breaks where its output has less: noise above a tenth of the signal. A 4-bit weight alone costs 18 to 20 dB, which models bear."""


@dataclass(frozen=True)
class Layer:
    """How far a layer's numbers are from float32's, in dB of signal to quantization noise; None where it was not measured."""

    name: str
    weight_db: float | None  # its weight, as the file's consumer decodes it
    output_db: float | None  # its output, with everything before it compressed too
    alone_db: float | None  # the model's output, with this layer alone compressed


def first_break(layers: Sequence[Layer]) -> Layer | None:
    """The first in the order of computation whose output has less than BREAKS_DB."""
    return next((layer for layer in layers if layer.output_db is not None and layer.output_db < BREAKS_DB), None)


@dataclass(frozen=True)
class OperatorRow:
    """Operators of one kind in one library, in this arm and in float32's."""

    kind: str
    library: str
    count: int
    ms: float
    float32_count: int
    float32_ms: float


@dataclass(frozen=True)
class Arm:
    """A model, recipe, exporter, runtime and target with its result, or its failure and cause."""

    id: str  # "minilm/int8-static/litert/cpu"
    model: str
    recipe: str
    recipe_id: str
    exporter: str
    runtime: str
    target: str
    status: Literal["done", "refused", "failed", "pending"]
    cause: str = ""  # why it was refused or failed, in words
    trace: str = ""  # the traceback of a failure
    size: Size | None = None
    latency: Latency | None = None
    memory: Memory | None = None
    accuracy: Score | None = None  # of the study's task, whatever that is
    beside: tuple[Score, ...] = ()  # other scores of the same samples, by which nothing is judged
    gpu: Gpu | None = None
    instructions: Instructions | None = None
    estimated: Estimated | None = None
    agreement: Agreement | None = None
    untimed: str = ""  # why no latency is measured on its target, "" where it is
    artifact: str = ""  # file name relative to the study's folder
    sha256: str = ""
    tensors: tuple[TensorRow, ...] = ()
    operators: dict[str, int] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()  # in the order of computation, where `explain` has measured them
    operator_times: tuple[OperatorRow, ...] = ()  # the longest first, where `explain` has measured them
    causes: tuple[str, ...] = ()  # why it is as fast, as large and as exact as it is
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)  # own time: export, latency, memory, accuracy

    @property
    def placements(self) -> dict[str, int]:
        """Bytes by placement."""
        found: dict[str, int] = {}
        for tensor in self.tensors:
            found[tensor.placement] = found.get(tensor.placement, 0) + tensor.size_bytes
        return found


@dataclass(frozen=True)
class Results:
    study: str
    created: str  # ISO 8601, UTC
    command: str  # what to type to get this again
    environment: dict[str, str]  # CPU, flags that matter, governor, cores, affinity, quota, load, versions, thread variables
    protocol: dict[str, str]  # how latency, memory and accuracy were measured, in words with their numbers
    arms: tuple[Arm, ...]
    wall_seconds: float
