"""Latency: all arms of one runtime held alive in processes of their own, timed in interleaved blocks with nothing else at work."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from evaluators import timing
from evaluators.results import Estimate, Latency
from evaluators.worker import Outcome, Worker

INPUTS = 32  # test samples that every arm cycles through
MOST_RUNS = 1000  # in one block
AGAIN = "again"  # float32 a second time: the A/A arm
SEED = 20260101  # of the orders in which arms load and take turns


@dataclass
class Loaded:
    """What a measuring process holds between calls."""

    session: Any = None
    inputs: Sequence[Mapping[str, np.ndarray]] = ()


HELD = Loaded()


def load(facts: dict[str, Any], folder: str, runtime: str, threads: int, data: str) -> dict[str, Any]:
    """In the measuring process: the session loaded and its process pinned. `load_ms` includes importing the runtime."""
    from evaluators.dataset import stored_samples
    from evaluators.metrics import session

    started = time.perf_counter()
    artifact, HELD.session = session.load(facts, folder, runtime, threads)
    load_ms = 1000 * (time.perf_counter() - started)
    HELD.inputs = list(islice(stored_samples(Path(data), artifact.contents.inputs), INPUTS))
    return {"load_ms": load_ms, "cores": timing.pin(threads)}


def once() -> timing.Once:
    """A session on a device times itself by the device's clock."""
    return getattr(HELD.session, "timed", None) or timing.clocked(HELD.session.run)


def warm_up(seconds: float) -> dict[str, Any]:
    found = timing.warm_up(once(), HELD.inputs, seconds)
    return {"first_ms": found.first_ns / 1e6, "warmup_runs": found.runs, "estimate_ns": found.estimate_ns, "steady": found.steady}


def block(runs: int) -> np.ndarray:
    return timing.timed_block(once(), HELD.inputs, runs)


def energy() -> dict[str, Any]:
    """What a sustained run takes, of a session that can read it; {} of others."""
    read = getattr(HELD.session, "energy", None)
    return read(HELD.inputs) if read else {}


@dataclass(eq=False)
class Member:
    """One arm of a group while it is measured."""

    name: str
    timing: str  # the module that times it
    limit: float
    worker: Worker | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    blocks: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0
    failure: Outcome | None = None

    def learn(self, facts: dict[str, Any] | None) -> None:
        """What is known of it already stays: the first process's facts."""
        self.facts = (facts or {}) | self.facts

    def ask(self, function: str, *arguments: Any) -> None:
        if self.failure is None:
            self.worker.ask(f"{self.timing}:{function}", *arguments)

    def answer(self) -> Any:
        """The value, or None once the arm has failed; a failed arm is left out from then on."""
        if self.failure is not None:
            return None
        outcome = self.worker.answer(self.limit)
        self.seconds += outcome.seconds
        if outcome.status != "done":
            self.failure = outcome
            self.worker.close()
        return outcome.value

    def call(self, function: str, *arguments: Any) -> Any:
        self.ask(function, *arguments)
        return self.answer()


def measure_group(
    arms: Mapping[str, tuple], start: Callable[[], Worker], timing: str, settings: Any, side_by_side: int, limit: float, tell: Callable[[str, str], None]
) -> dict[str, Member]:
    """Every arm by name, measured or failed. `arms` holds the arguments of `load` in the module `timing`; `tell` hears of each stage.

    Everything is done anew in `settings.processes` processes of each arm, one after the other; facts are those of the first. They load in orders that are
    reversed every second time: what is loaded last was measured 1 to 3% faster than what is loaded first, for as long as it lives.
    """
    orders = rounds(len(arms), settings.processes, 0)
    members = {name: Member(name, timing, limit, facts={"processes": settings.processes}) for name in arms}
    every = list(members.values())
    for number in range(settings.processes):
        said = partial(tell_which, tell, f", process {number + 1} of {settings.processes}" if settings.processes > 1 else "")
        with ExitStack() as stack:
            alive = [every[index] for index in orders[number] if every[index].failure is None]
            for wave in batched(alive, side_by_side):  # processes load side by side; from then on one works at a time
                for member in wave:
                    member.worker = start()
                    stack.callback(member.worker.close)
                    said(member.name, "loading")
                    member.ask("load", *arms[member.name])
                for member in wave:
                    member.learn(member.answer())
            for member in alive:
                said(member.name, "warming up")
                member.learn(member.call("warm_up", settings.warmup_seconds))
            time_blocks(alive, settings, number + 1, said)
            if number + 1 == settings.processes:
                for member in alive:
                    member.learn(member.call("energy"))
    return members


def tell_which(tell: Callable[[str, str], None], which: str, name: str, stage: str) -> None:
    tell(name, stage + which)


def batched(members: list[Member], size: int) -> Iterator[list[Member]]:
    return (members[at : at + size] for at in range(0, len(members), size))


def time_blocks(members: list[Member], settings: Any, process: int, tell: Callable[[str, str], None]) -> None:
    for number, order in enumerate(rounds(len(members), settings.blocks, process)):
        for index in order:
            member = members[index]
            if member.failure is None:
                tell(member.name, f"timing {number + 1} of {settings.blocks}")
                runs = runs_per_block(member.facts["estimate_ns"], settings)
                times = member.call("block", runs)
                if times is not None:
                    member.blocks.append(times)
                    member.facts["timed_runs"] = member.facts.get("timed_runs", 0) + runs


def rounds(arms: int, count: int, seed: int) -> list[list[int]]:
    """The order of every round: a random permutation, then its reverse, and so on, so that no arm keeps an earlier place (ABBA)."""
    generator = np.random.default_rng([SEED, seed])
    found: list[list[int]] = []
    while len(found) < count:
        order = generator.permutation(arms).tolist()
        found += [order, order[::-1]]
    return found[:count]


def runs_per_block(estimate_ns: int, settings: Any) -> int:
    return min(max(settings.runs, math.ceil(settings.seconds * 1e9 / max(estimate_ns, 1))), MOST_RUNS)


def derive(facts: dict[str, Any], blocks: np.ndarray, pair: Mapping[str, np.ndarray] | None, is_baseline: bool, threads: int) -> Latency:
    """The row of one arm. `blocks` is int64 ns [blocks, runs], or [blocks, 1] of what a program tells of all its runs; `pair` holds float32's beside it.

    Of several processes blocks follow one another. Ratios then are one a process, the median of its blocks' ratios, as blocks of a process share how its
    memory lies.
    """
    from evaluators import statistics  # SciPy takes a second to import, which a measuring process need not spend

    medians = np.median(blocks, axis=1) / 1e6
    base = np.median(pair["float32"], axis=1) / 1e6 if pair else None
    processes = facts.get("processes", 1)
    speedup = statistics.ratio(base, medians, processes) if pair and not is_baseline else None
    again = pair.get(AGAIN) if pair else None
    noise = statistics.ratio(base, np.median(again, axis=1) / 1e6, processes) if again is not None else None
    verdict = "baseline" if is_baseline else statistics.verdict(speedup, noise) if speedup else "no baseline"
    return Latency(
        block_medians_ms=tuple(medians.tolist()),
        count=facts.get("timed_runs", int(blocks.size)),
        threads=threads,
        median_ms=statistics.geometric_mean(statistics.independent(medians, processes)),
        percentiles_ms=statistics.percentiles(blocks.ravel() / 1e6),
        load_ms=facts["load_ms"],
        first_ms=facts["first_ms"],
        warmup_runs=facts["warmup_runs"],
        speedup=speedup if speedup else Estimate(1.0, 1.0, 1.0) if is_baseline else None,
        verdict=verdict,
        noise=noise,
        processes=processes,
    )
