"""Which arms are timed together: all recipes of a model on one runtime, with float32 a second time as the noise floor."""

from typing import Any
from uuid import uuid4

import numpy as np

from evaluators.metrics.latency import AGAIN, Member, measure_group
from evaluators.store import Piece, identity


def latency_groups(run: Any) -> None:
    """Times every arm that is ready and has no times yet, group by group, with nothing else at work."""
    groups: dict[tuple, list] = {}
    for arm in run.arms:
        if arm.id in run.ready:
            groups.setdefault((arm.model, arm.label.name, arm.target), []).append(run.ready[arm.id])
    for group in groups.values():
        time_group(run, group)


def time_group(run: Any, group: list) -> None:
    """Times what a group lacks. Where only some arms lack times, float32 is timed again beside them: a ratio needs both in one run."""
    baseline = next((ready for ready in group if not ready.arm.recipe.steps), None)
    keys = {ready.arm.id: latency_key(run, ready, baseline) for ready in group}
    missing = [ready for ready in group if not is_timed(run, keys[ready.arm.id], baseline)]
    for ready in group:
        run.store.link(ready.arm.id, "latency", keys[ready.arm.id])
        if ready not in missing:
            run.progress.stage(ready.arm.id, "done")
    if not missing:
        return
    run.begin_work()
    beside = [baseline] if baseline and baseline not in missing else []
    if beside:
        run.progress.say(f"{baseline.arm.id} is timed again beside {len(missing)} arm(s) that have no times yet")
    arms = {ready.arm.id: run.arguments(ready) for ready in [*missing, *beside]}
    if baseline:
        arms[AGAIN] = run.arguments(baseline)
    target = run.targets[missing[0].arm.target]
    threads, study = run.threads(missing[0].arm), run.study
    again_of = baseline.arm.id if baseline else ""

    def tell(name: str, stage: str) -> None:
        run.progress.stage(again_of if name == AGAIN else name, f"{stage} (A/A)" if name == AGAIN else stage)

    start, beside = (lambda: target.start(threads)), target.side_by_side(threads)
    members = measure_group(arms, start, target.timing, target.latency(study.latency), beside, study.limit_seconds, tell)
    keep_group(run, missing, keys, members, baseline)


def latency_key(run: Any, ready: Any, baseline: Any) -> str:
    partner = baseline.export.facts["artifact"]["sha256"] if baseline else None
    return identity("latency", *run.setting(ready, run.targets[ready.arm.target]), partner, run.study.latency.model_dump())


def is_timed(run: Any, key: str, baseline: Any) -> bool:
    """Whether an arm has times, and beside float32 where there is a float32."""
    piece = run.store.settled(key)
    return piece is not None and (piece.status != "done" or baseline is None or bool(piece.facts["pair"]))


def keep_group(run: Any, missing: list, keys: dict[str, str], members: dict[str, Member], baseline: Any) -> None:
    """All pieces of a group at once: ratios need blocks of one run, so a group is there whole or not at all."""
    float32 = members.get(baseline.arm.id) if baseline else None
    pieces, pair = [], ""
    if float32 is not None and float32.failure is None:
        again = members[AGAIN]
        blocks = {"float32": np.stack(float32.blocks)} | ({AGAIN: np.stack(again.blocks)} if again.failure is None else {})
        pair = uuid4().hex
        pieces.append(Piece(pair, "latency-pair", baseline.arm.id, "done", seconds=again.seconds, arrays=blocks))
        float32.seconds += again.seconds
    for ready in missing:
        pieces.append(latency_piece(keys[ready.arm.id], members[ready.arm.id], pair))
    run.store.keep(*pieces)
    for ready in missing:
        failure = members[ready.arm.id].failure
        run.progress.stage(ready.arm.id, failure.status if failure else "done", failure.cause if failure else "")


def latency_piece(key: str, member: Member, pair: str) -> Piece:
    if member.failure is not None:
        return Piece(key, "latency", member.name, member.failure.status, member.failure.cause, member.failure.trace, member.seconds)
    return Piece(key, "latency", member.name, "done", seconds=member.seconds, facts=member.facts | {"pair": pair}, arrays={"blocks": np.stack(member.blocks)})
