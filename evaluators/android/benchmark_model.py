"""LiteRT's own benchmark_model, as the user has it: how it is called, and what its builds print, TensorFlow Lite's and LiteRT's."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from compress.errors import CompressError, Refused

DELEGATES = {"cpu": [], "gpu": ["--use_gpu=true"], "nnapi": ["--use_nnapi=true"]}
WHERE = (
    "benchmark_model for android_arm64, which the page 'LiteRT tools and downloads' at ai.google.dev/edge/litert links, "
    "or //litert/tools:benchmark_model built with Bazel"
)
NUMBER = r"\s*([\d.]+(?:e[+-]?\d+)?)"
INIT_US = ((r"\bInit:", 1), (r"Model initialization:", 1000), (r"Initialized session in", 1000))
FIRST_US = ((r"First inference:", 1), (r"Warmup \(first\):", 1000))
MEAN_US = ((r"timings in us:.*Inference \(avg\):", 1), (r"timings in us:.*(?:Inference|no stats):", 1), (r"Inference \(avg\):", 1000))
MEMORY_MB = ((r"Memory footprint delta.*overall=", 1), (r"Overall footprint:", 1), (r"Peak memory footprint \(MB\):.*overall=", 1))
REPLACED = re.compile(r"Replacing (\d+)(?: out of (\d+))? node\(s\) with delegate \((.*?)\) node, yielding (\d+) partition")
APPLIED = r"{} delegate, and the model graph will be (completely|partially) executed"
DECLINED = r"Though {} delegate is explicitly applied, the model graph will not be executed"


@dataclass(frozen=True)
class Report:
    """One run of the tool. Times are microseconds; None where its build does not print a number."""

    runs: int | None
    mean_us: float
    std_us: float | None
    median_us: float | None
    p5_us: float | None
    p95_us: float | None
    init_us: float
    first_us: float
    warmup_runs: int
    memory_bytes: int | None  # how far the process grew from the tool's start
    replaced: tuple[tuple[str, int, int | None, int], ...]  # delegate, its nodes, all nodes, partitions

    @property
    def middle_us(self) -> float:
        return self.mean_us if self.median_us is None else self.median_us

    def words(self) -> str:
        """ "median 42.4 ms, 5% to 95% 42.1 to 42.7 ms, of 24 runs", or mean and deviation where its build prints no more."""
        runs = f", of {self.runs} runs" if self.runs else ""
        if self.median_us is not None and self.p5_us is not None and self.p95_us is not None:
            return f"median {self.median_us / 1000:.4g} ms, 5% to 95% {self.p5_us / 1000:.4g} to {self.p95_us / 1000:.4g} ms{runs}"
        deviation = f", standard deviation {self.std_us / 1000:.4g} ms" if self.std_us is not None else ""
        return f"mean {self.mean_us / 1000:.4g} ms{deviation}{runs}"

    def coverage(self) -> str:
        """ "TfLiteGpuDelegateV2 took 54 of 559 nodes in 3 partitions"; "" where the output does not name any."""
        return "; ".join(
            f"{name} took {nodes}{f' of {total}' if total is not None else ''} nodes in {parts} partition{'' if parts == 1 else 's'}"
            for name, nodes, total, parts in self.replaced
        )


def arguments(graph: str, threads: int, delegate: str, warmup_seconds: float, runs: int, limit: float) -> list[str]:
    """At least `runs` timed runs after a warm-up. Flags are those that both dialects know; a delegate's may be one that a build ignores (see `parse`)."""
    amount = [f"--num_runs={runs}", "--min_secs=0", f"--max_secs={limit:g}", "--warmup_runs=5", f"--warmup_min_secs={warmup_seconds:g}"]
    return [f"--graph={graph}", f"--num_threads={threads}", *amount, *DELEGATES[delegate]]


def parse(output: str, delegate: str) -> Report:
    """The numbers in what the tool printed. CompressError where they are missing; Refused where the delegate that was asked for did not run the model.

    A build that does not know a delegate, and a delegate that declines a graph, end in an ordinary run on the CPU: its times are no delegate's.
    """
    blocks = [dict(re.findall(r"(\w+)=([\d.]+(?:e[+-]?\d+)?)", line)) for line in re.findall(r"\bcount=.*", output)]
    warmup, timed = (blocks[0] if len(blocks) > 1 else {}), (blocks[-1] if blocks else {})
    mean = float(timed["avg"]) if "avg" in timed else found(output, MEAN_US)
    first = found(output, FIRST_US)
    first = float(warmup.get("first", warmup.get("curr", "nan"))) if first is None else first
    if mean is None:
        raise CompressError(f"benchmark_model printed no times: {' / '.join(output.strip().splitlines()[-4:]) or 'it printed nothing'}")
    named = {f"{name}_us": float(timed[name]) if name in timed else None for name in ("std", "median", "p5", "p95")}
    memory = found(output, MEMORY_MB)
    replaced = tuple((name, int(nodes), int(total) if total else None, int(parts)) for nodes, total, name, parts in REPLACED.findall(output))
    check_delegate(output, delegate, replaced)
    return Report(
        runs=int(timed["count"]) if timed else None,
        mean_us=mean,
        init_us=found(output, INIT_US) or 0.0,
        first_us=first,
        warmup_runs=int(warmup.get("count", 0)),
        memory_bytes=None if memory is None else round(memory * 2**20),
        replaced=replaced,
        **named,
    )


def found(output: str, places: Sequence[tuple[str, int]]) -> float | None:
    """The number behind the first of the patterns that occurs, times its unit."""
    for pattern, unit in places:
        match = re.search(pattern + NUMBER, output)
        if match:
            return float(match[1]) * unit
    return None


def check_delegate(output: str, delegate: str, replaced: Sequence[tuple]) -> None:
    if delegate == "cpu":
        return
    name = delegate.upper()
    if re.search(DECLINED.format(name), output):
        raise Refused(f"the {name} delegate took no node of this model: what benchmark_model timed is the CPU")
    others = [one for one in replaced if "xnnpack" not in one[0].lower() and one[1]]
    if not others and not re.search(APPLIED.format(name), output):
        raise Refused(f"benchmark_model does not say that the {name} delegate took a node, so what it timed may be the CPU: its build may lack the delegate")
