"""Names in a model: what a pattern means, and copies in which some of it learns."""

import copy
from collections.abc import Collection, Iterable

from torch import nn

from compress.errors import InputError
from compress.finetune.methods import WithBase
from compress.registry import suggest
from compress.steps.selector import Patterns, glob

NORMS = ("LayerNorm", "BatchNorm", "GroupNorm", "RMSNorm", "InstanceNorm")


def each(patterns: Patterns) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else patterns


def inside(name: str, modules: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def matching(model: nn.Module, patterns: Patterns, field: str) -> list[str]:
    """Names of the modules that match, in the model's order. InputError where none does."""
    known = [name for name, _ in model.named_modules() if name]
    found = [name for name in known if glob(patterns, name)]
    if not found:
        said = " or ".join(map(repr, each(patterns)))
        raise InputError(f"{field}: {said} matches no module; {suggest(each(patterns)[0], known)}the model has {', '.join(known[:6])}, ...")
    return found


def modules_of(model: nn.Module, patterns: Patterns, field: str) -> list[str]:
    """Names of the outermost modules that match. InputError for a pattern that matches none."""
    names = {name for pattern in each(patterns) for name in matching(model, pattern, field)}
    return [name for name in names if not inside(name, names - {name})]


def linears(model: nn.Module, also: Collection[str]) -> list[str]:
    """Names of the linear layers that do not learn whole."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not inside(name, also)]


def linear_targets(model: nn.Module, targets: Patterns, also: Collection[str]) -> list[str]:
    """Names of the linear layers that adapters go to; the output layer only where a pattern other than * takes it. InputError where there are none."""
    known, head = linears(model, also), output_head(model)
    wanted = [name for name in known if glob(targets, name) and (name != head or each(targets) != ("*",))]
    if not wanted:
        kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
        has = f"the model has {', '.join(known[:6])}, ..." if known else f"the model has none, but {', '.join(kinds[:6])}"
        raise InputError(f"targets {targets!r} match no linear layer; {suggest(str(targets), known)}{has}")
    return wanted


def to_store(model: nn.Module, method: WithBase, also: Collection[str], targets: Collection[str]) -> tuple[list[str], list[str]]:
    """(names of the frozen linear layers beside the targets that go into the base's format, notes on those that do not)."""
    if method.format is None:
        return [], []
    head, others = output_head(model), [name for name in linears(model, also) if name not in targets]
    notes = [f"{head} stays as it is, not in {method.base}: output layers are stored where a target names them"] if head in others else []
    return [name for name in others if name != head], notes


def output_head(model: nn.Module) -> str | None:
    """The name of a Hugging Face model's output layer."""
    found = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return next((name for name, module in model.named_modules() if module is found), None) if found is not None else None


def learning(model: nn.Module, parameters: Iterable[str] = (), modules: Collection[str] = ()) -> nn.Module:
    """A copy in which these parameters, and all of these modules, learn; others share the caller's storage."""
    names = {*parameters, *(name for name, _ in model.named_parameters() if inside(name, modules))}
    memo = {id(p): nn.Parameter(p.detach().clone() if n in names else p.detach(), requires_grad=n in names) for n, p in model.named_parameters()}
    return copy.deepcopy(model, memo | {id(buffer): buffer.clone() for buffer in model.buffers()})  # deepcopy takes a FakeTensor out of its mode


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """In every place where the module of this name is."""
    old = model.get_submodule(name)
    for place in [place for place, found in model.named_modules(remove_duplicate=False) if found is old]:
        parent, _, last = place.rpartition(".")
        setattr(model.get_submodule(parent), last, module)


def selected(model: nn.Module, train: Patterns) -> list[str]:
    """Names of the parameters that a selective method trains. InputError for a pattern that matches none."""
    names, found = [name for name, _ in model.named_parameters()], []
    for pattern in each(train):
        if pattern == "biases":
            wanted = [n for n in names if n.endswith("bias")]
        elif pattern == "norms":
            norms = [n for n, m in model.named_modules() if any(kind in type(m).__name__ for kind in NORMS)]
            wanted = [n for n in names if n.rpartition(".")[0] in norms]
        elif pattern.startswith("last:"):
            wanted = [n for n in names if inside(n, last_blocks(model, pattern.removeprefix("last:")))]
        else:
            wanted = [n for n in names if glob((pattern, f"{pattern}.*"), n)]
        if not wanted:
            raise InputError(f"train: {pattern!r} matches no parameter; {suggest(pattern, names)}the model has {', '.join(names[:6])}, ...")
        found += wanted
    return found


def last_blocks(model: nn.Module, count: str) -> list[str]:
    """Names of the last modules of the longest ModuleList."""
    if not count.isdigit() or not int(count):
        raise InputError(f"train: 'last:{count}' needs a number of blocks, as last:2")
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise InputError("train: 'last:N' takes the last modules of a ModuleList, and the model has none: name parameters instead")
    name, blocks = max(lists, key=lambda pair: len(pair[1]))
    return [f"{name}.{i}".lstrip(".") for i in range(len(blocks))][-int(count) :]
