"""Operators of two arms timed side by side, each in a process of its own, and what this machine reaches at best."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from evaluators.operators import OperatorTime, from_json, medians, to_json
from evaluators.worker import Worker

ROUNDS = 2  # float32, arm, arm, float32
SECONDS = 0.4  # about, of one arm in one round
FEWEST_RUNS, MOST_RUNS = 3, 30


class Unmeasured(Exception):
    """Why something was not measured, in words; `final` where trying again would not help."""

    def __init__(self, why: str, final: bool = False):
        super().__init__(why)
        self.final = final


def call(worker: Worker, function: str, *arguments: Any, limit: float) -> Any:
    outcome = worker.call(function, *arguments, limit=limit)
    if outcome.status != "done":
        final = outcome.status == "refused"
        raise Unmeasured(outcome.cause if final else f"{function.rpartition(':')[2]} failed: {outcome.cause}", final)
    return outcome.value


def profiles(arms: Mapping[str, tuple], run_ms: Mapping[str, float], threads: int, limit: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """JSON: the operators of each arm, medians over interleaved rounds. Unmeasured where the runtime has no profiler or a process fails.

    arms    arguments of `evaluators.operators:profile` by name, without the number of runs
    run_ms  about how long a run of each takes
    """
    rounds: dict[str, list[list[OperatorTime]]] = {name: [] for name in arms}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(threads)) for name in arms}
        for number in range(ROUNDS):
            for name in list(arms)[:: -1 if number % 2 else 1]:
                tell(f"operators of {name}, round {number + 1} of {ROUNDS}")
                runs = min(max(round(1000 * SECONDS / run_ms[name]), FEWEST_RUNS), MOST_RUNS)
                rounds[name].append(from_json(call(workers[name], "evaluators.operators:profile", *arms[name], runs, limit=limit)))
    return {name: to_json(medians(found)) for name, found in rounds.items()}


def machine(threads: int, limit: float) -> dict[str, float]:
    """This machine's rates: see evaluators.operators.machine."""
    with Worker(threads) as worker:
        return call(worker, "evaluators.operators:machine", threads, limit=limit)


def multiply_adds(baseline: tuple, threads: int, limit: float) -> dict[str, Any]:
    """JSON: multiply-adds of a run of float32 (`count`), or why they are not known (`uncounted`)."""
    with Worker(threads) as worker:
        try:
            return {"count": call(worker, "evaluators.operators:multiply_adds", *baseline, limit=limit), "uncounted": ""}
        except Unmeasured as error:
            return {"count": None, "uncounted": str(error)}
