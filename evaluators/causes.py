"""Why an arm is as fast, as large and as exact as it is: sentences, each from something that was measured or read from the file."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from evaluators import kinds
from evaluators.operators import OperatorTime
from evaluators.report import words
from evaluators.results import Arm, Size, TensorRow

SMALL = 0.03  # of float32's time or of the file's bytes: what is less is not named
OUTSIDE = {"LiteRT's built-in kernels": "XNNPACK", "ExecuTorch's portable kernels": "XNNPACK"}  # and who did not take what they compute
SAYS_NO = re.compile(r"^no |computed in float")  # in what a runtime says of its kernels on this CPU
CONCERNS = {"static int8": "static", "dynamic int8": "dynamic", "4-bit": "nf4|fp4", "int8 kernels": "static|dynamic"}
"""In the name of such a fact, and in the plan's words for the weights that it is about."""
INSTRUCTIONS = {"x86_64": ("VNNI", ("avx_vnni", "avx512_vnni")), "aarch64": ("dot-product instructions (SDOT)", ("asimddp",))}
"""What int8 products are fast by, and the CPU's names for it."""


@dataclass(frozen=True)
class Cause:
    about: Literal["speed", "size", "accuracy"]
    effect: float  # seconds of a run, bytes of the file, share of answers: what those about the same are sorted by
    said: str


@dataclass(frozen=True)
class Profile:
    """Both arms' operators, and what this machine reaches at best."""

    float32: Sequence[OperatorTime]
    own: Sequence[OperatorTime]
    copied_bytes: float  # a second, read and written
    peak: float  # float32 multiply-adds a second
    multiply_adds: int | None  # of one run of either arm
    flags: frozenset[str] = frozenset()  # of this CPU
    machine: str = "x86_64"
    versions: Mapping[str, str] = field(default_factory=dict)  # what the runtime says of itself


def causes(arm: Arm, baseline: Arm, profile: Profile | None, errors: Mapping[str, float]) -> list[Cause]:
    """All that are known: where time went and what stands behind that, then size, then accuracy, in each the largest first."""
    spent, behind = [*by_instructions(arm, baseline)], []
    if profile is not None:
        spent += [*by_kernels(profile, arm), *outside(profile), *by_group(profile), *added(profile)]
        behind += [*by_rate(profile), *by_cpu(profile, arm), *by_bound(profile, arm, baseline), *stored_only(profile, arm)]
    parts = spent, behind, [*by_size(arm), *left_in_float(arm)], [*by_accuracy(arm, errors)]
    return [cause for part in parts for cause in sorted(part, key=lambda cause: -abs(cause.effect))]


# time by operator


def total(operators: Iterable[OperatorTime]) -> float:
    return sum(operator.seconds for operator in operators)


def ms(seconds: float) -> str:
    return words.milliseconds(1000 * seconds)


def in_group(operators: Iterable[OperatorTime], group: str) -> list[OperatorTime]:
    return [operator for operator in operators if kinds.group(operator.kind) == group]


def products(operators: Iterable[OperatorTime]) -> list[OperatorTime]:
    return [operator for operator in operators if kinds.is_product(operator.kind)]


def in_products(profile: Profile) -> float:
    """Seconds by which products differ: what facts about their kernels are sorted by."""
    return total(products(profile.own)) - total(products(profile.float32))


def kernels(operators: Sequence[OperatorTime], most: int = 2) -> str:
    """ "33 CONV_2D (float32 x int8) of LiteRT's built-in kernels", those that take most time first."""
    spent, counts = Counter(), Counter((operator.kind, operator.library) for operator in operators)
    for operator in operators:
        spent[operator.kind, operator.library] += operator.seconds
    named = [f"{counts[key]} {key[0]}{f' in {key[1]}' if key[1] else ''}" for key, _ in spent.most_common(most)]
    return words.listed(named) + (f" and {len(spent) - most} other kinds" if len(spent) > most else "")


def by_group(profile: Profile) -> Iterator[Cause]:
    """Groups of operators whose time changed, with the kernels on either side."""
    for group in (*kinds.GROUPS, kinds.REST):
        before, now = in_group(profile.float32, group), in_group(profile.own, group)
        change = total(now) - total(before)
        if group in kinds.CARRYING or abs(change) < SMALL * total(profile.float32):
            continue
        other = kernels(now or before) + (f" instead of {kernels(before)}" if now and before and kernels(now) != kernels(before) else "")
        spent = f"{ms(total(now))} instead of {ms(total(before))}, {ms(abs(change))} {'more' if change > 0 else 'less'}"
        yield Cause("speed", change, f"{group[0].upper()}{group[1:]}: {spent}: {other}.")


def added(profile: Profile) -> Iterator[Cause]:
    """Operators that only carry numbers from one form to another, where there are more of them than in float32."""
    sides = [[o for o in side if kinds.group(o.kind) in kinds.CARRYING] for side in (profile.float32, profile.own)]
    more, change = len(sides[1]) - len(sides[0]), total(sides[1]) - total(sides[0])
    if more > 0:
        named = [f"{group} {ms(total(found))} ({len(found)})" for group in kinds.CARRYING if (found := in_group(sides[1], group))]
        share = words.percent(total(sides[1]) / total(profile.own), 0)
        said = f"{words.count(more, 'operator')} more than in float32 only carry numbers from one form to another: {words.listed(named)}; {share} of the whole."
        yield Cause("speed", change, said)


def outside(profile: Profile) -> Iterator[Cause]:
    """Operators that the fast library of a runtime left to its plain kernels."""
    for library, fast in OUTSIDE.items():
        before, now = ([o for o in side if o.library == library] for side in (profile.float32, profile.own))
        change = total(now) - total(before)
        if change > SMALL * total(profile.float32):
            share = words.percent(total(now) / total(profile.own), 0)
            rest = f"in float32 {len(before)} such operators take {ms(total(before))}" if before else "float32 has none"
            said = f"{fast} does not take {words.count(len(now), 'operator')}, which run in {library} and take {ms(total(now))}, {share} of the whole; {rest}."
            yield Cause("speed", change, said)


def by_rate(profile: Profile) -> Iterator[Cause]:
    """How fast both arms multiply."""
    before, now = total(products(profile.float32)), total(products(profile.own))
    if not profile.multiply_adds or not before or not now or abs(now - before) < SMALL * total(profile.float32):
        return
    own, float32, peak = (f"{rate / 1e9:.1f}" for rate in (profile.multiply_adds / now, profile.multiply_adds / before, profile.peak))
    said = f"Its products do {own} billion multiply-adds a second, those of float32 {float32}; NumPy's float32 product does {peak} on this machine."
    yield Cause("speed", in_products(profile), said)


def weight_bytes(arm: Arm) -> int:
    """Bytes of weights that a run reads: as stored, or expanded to float32."""
    return sum(4 * prod(t.shape) if t.placement == "decoded" else t.size_bytes for t in arm.tensors)


def by_bound(profile: Profile, arm: Arm, baseline: Arm) -> Iterator[Cause]:
    """A roofline of two measured rates: copying, and the float32 product."""
    if not profile.multiply_adds:
        return
    before, now = weight_bytes(baseline), weight_bytes(arm)
    intensity, balance = profile.multiply_adds / before, profile.peak / profile.copied_bytes
    saved = (before - now) / profile.copied_bytes
    facts = (
        f"{profile.multiply_adds / 1e6:,.1f} million multiply-adds for {words.megabytes(before)} of float32 weights are {intensity:.1f} a byte, "
        f"and this machine does {balance:.1f} in the time in which it copies one"
    )
    least = f"its weights, {words.megabytes(now)} in memory, take {ms(now / profile.copied_bytes)} to read once, float32's {ms(before / profile.copied_bytes)}"
    yield Cause("speed", abs(saved), f"{'Compute' if intensity > balance else 'Memory'}-bound: {facts}; {least}.")


# kernels


def integer_weights(arm: Arm) -> list[TensorRow]:
    """Weights that a kernel multiplies as the file stores them."""
    return [tensor for tensor in arm.tensors if tensor.placement == "native" and re.match(r"u?int", tensor.dtype)]


def by_kernels(profile: Profile, arm: Arm) -> Iterator[Cause]:
    """Weights that could be multiplied as integers, where no kernel that ran does so, and what the runtime says of that."""
    wanted, every = integer_weights(arm), products(profile.own)
    if not wanted or not every or any(kinds.in_integers(o.kind) for o in every):
        return
    told = [f"{name}: {value}" for name, value in profile.versions.items() if is_no(name, value, wanted)]
    says = f"; the runtime says of {words.listed(told)}" if told else ""
    could = words.count(len(wanted), "weight")
    said = f"No kernel that ran multiplies integers, though {could} could be: {kernels(every)} take {ms(total(every))}{says}."
    yield Cause("speed", total(profile.own) - total(profile.float32), said)


def is_no(name: str, value: str, weights: Sequence[TensorRow]) -> bool:
    """Whether a fact of the runtime says that this CPU lacks kernels which some of the weights would use."""
    pattern = next((pattern for key, pattern in CONCERNS.items() if key in name), None)
    return bool(pattern and SAYS_NO.search(value) and any(re.search(pattern, tensor.planned) for tensor in weights))


def by_cpu(profile: Profile, arm: Arm) -> Iterator[Cause]:
    """Instructions that this CPU lacks, and what the runtime says that it does instead."""
    weights = integer_weights(arm)
    spent = [o for o in products(profile.own) if kinds.in_integers(o.kind)]
    title, flags = INSTRUCTIONS.get(profile.machine, ("", ()))
    if spent and title and any(re.search("static|dynamic", tensor.planned) for tensor in weights) and not profile.flags.intersection(flags):
        share, count = words.percent(total(spent) / total(profile.own), 0), words.count(len(spent), "integer product")
        told = [f"{name}: {value}" for name, value in profile.versions.items() if is_no(name, value, weights)]
        says = f"; the runtime says of {words.listed(told)}" if told else ""
        yield Cause("speed", in_products(profile), f"This CPU has no {title}: {count} ({ms(total(spent))}, {share} of the whole) run without{says}.")


def stored_only(profile: Profile, arm: Arm) -> Iterator[Cause]:
    """Weights that are small in the file and float when they are used."""
    for reason, tensors in reasons(t for t in arm.tensors if t.placement in ("decoded", "simulated")).items():
        size = sum(4 * prod(t.shape) for t in tensors)
        said = f"{words.count(len(tensors), 'weight')} ({words.megabytes(size)} as float32) are computed with in float32: {reason}."
        yield Cause("speed", in_products(profile), said)


def left_in_float(arm: Arm) -> Iterator[Cause]:
    """Weights that a step wanted and that stayed in float."""
    told = dict(note.split(" stayed in float: ", 1) for note in arm.notes if " stayed in float: " in note)
    for reason, names in grouped_notes(told).items():
        size = sum(t.size_bytes for t in arm.tensors if t.name in names)
        yield Cause("size", size, f"{words.count(len(names), 'weight')} ({words.megabytes(size)}) stayed in float: {reason}.")


def reasons(tensors: Iterable[TensorRow]) -> dict[str, list[TensorRow]]:
    found: dict[str, list[TensorRow]] = {}
    for tensor in tensors:
        found.setdefault(tensor.reason or "the file does not say why", []).append(tensor)
    return found


def grouped_notes(told: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in told.items():
        found.setdefault(reason, []).append(name)
    return found


# emulated cores, size, accuracy


def by_instructions(arm: Arm, baseline: Arm) -> Iterator[Cause]:
    own, before = arm.instructions, baseline.instructions
    if own is None or before is None:
        return
    change = f"{words.instructions(own.total)} instead of {words.instructions(before.total)}"
    yield Cause(
        "speed", abs(own.total - before.total), f"It takes {change}; products run as {own.kernels or 'none'}, those of float32 as {before.kernels or 'none'}."
    )


def by_size(arm: Arm) -> Iterator[Cause]:
    """What the file holds besides the codes of weights."""
    size: Size | None = arm.size
    if size is None:
        return
    parts = {"float32 tensors": size.float_bytes, "graph, names and metadata": size.graph, "scales": size.scales, "zero points": size.zero_points}
    rest = sum(parts.values())
    if rest >= SMALL * size.file_bytes:
        named = [f"{name} {words.megabytes(part)}" for name, part in sorted(parts.items(), key=lambda item: -item[1]) if part]
        said = f"{words.percent(rest / size.file_bytes, 0)} of its {words.megabytes(size.file_bytes)} are not codes of weights: {words.listed(named)}."
        yield Cause("size", rest, said)


def by_accuracy(arm: Arm, errors: Mapping[str, float]) -> Iterator[Cause]:
    """Answers that changed for the worse, and the weights that lost most."""
    if arm.accuracy is None or not arm.accuracy.worse:
        return
    worst = sorted(errors.items(), key=lambda item: item[1])[:1]
    where = f"; the least exact weight is {worst[0][0]}, {worst[0][1]:.1f} dB above its rounding error" if worst else ""
    score = arm.accuracy
    said = f"{score.worse} of {words.count(score.count, score.metric.noun)} changed for the worse and {score.better} for the better{where}."
    yield Cause("accuracy", arm.accuracy.worse / arm.accuracy.count, said)
