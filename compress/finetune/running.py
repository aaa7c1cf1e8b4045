"""One run of a fine-tuning document, in this process: what it did lies in its folder."""

import io
import json
import os
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from compress.backends import hugging_face
from compress.errors import InputError
from compress.finetune.adapter_file import save_adapter
from compress.finetune.adapting import trainable_table
from compress.finetune.batches import Samples
from compress.finetune.config import Finetuning
from compress.finetune.merging import compare_merges
from compress.finetune.tasks import Progress
from compress.finetune.tuning import finetune
from compress.references import is_code, resolve

CHECKPOINT, FACTS, SCORES = "checkpoint.safetensors", "run.json", "scores.npy"


def run(document: Finetuning, name: str, folder: Path, contents: Any, progress: Progress | None = None) -> dict[str, Any]:
    """The facts of a run, as in `run.json`; read from there where the same run is done. Its checkpoint, adapter and scores lie beside it.

    contents  what stands for the code and data of the run, JSON: where it has changed, the run is another
    """
    chosen, kept = document.runs[name], folder / FACTS
    asked = document.model_dump(mode="json", exclude={"runs", "limit_seconds"}) | {"run": chosen.model_dump(mode="json", exclude={"against"})}
    asked = json.loads(json.dumps(asked | {"contents": contents}))
    if kept.exists() and (found := json.loads(kept.read_text(encoding="utf-8")))["asked"] == asked:
        return found
    torch.set_num_threads(document.threads)
    budget = document.budget.model_copy(update={"learning_rate": chosen.learning_rate} if chosen.learning_rate else {})
    data = load_samples(document.train, document.folder, document.train_samples)
    test = load_samples(document.test, document.folder, document.test_samples) if document.test else None
    model = load_network(chosen.model or document.model, document.folder)
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"{chosen.model or document.model!r} returned a {type(model).__name__}: documents take PyTorch models; for Keras call finetune(...)")
    began = perf_counter()
    tuned = finetune(model, chosen.method, data, budget, document.task, test, folder / CHECKPOINT, progress, predict=True)
    save_adapter(tuned.adapted, folder / "adapter")
    facts = {
        "asked": asked,
        "name": name,
        "log": tuned.log,
        "trainable": sum(p.numel() for p in tuned.adapted.trainable().values()),
        "parameters": parameters(model),
        "seconds": sum(entry.get("seconds", 0) for entry in tuned.log),
        "wall_seconds": perf_counter() - began,
        "notes": list(tuned.adapted.notes),
        "memory": tuned.memory if isinstance(tuned.memory, str) else tuned.memory.beside(tuned.predicted),
        "table": [[*row, row.share] for row in trainable_table(tuned.adapted)],
        "merges": [],
    }
    if test is not None:
        write(folder / SCORES, array_bytes(tuned.scores))
        if document.merge:
            facts["merges"] = compare_merges(tuned.adapted, model, test, document.task)
    write(kept, json.dumps(facts).encode())
    return facts


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def load_samples(reference: str, folder: Path, limit: int | None) -> Samples:
    """Samples from a function that returns them, or (inputs, labels)."""
    if not is_code(reference):
        raise InputError(f"{reference!r}: write `file.py:function`, which returns Samples or (inputs, labels)")
    found = resolve(reference, folder)(**({} if limit is None else {"limit": limit}))
    if isinstance(found, Samples):
        return found
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], dict):
        raise InputError(f"{reference!r} returned {type(found).__name__}: fine-tuning takes Samples or ({{input name: array}}, labels)")
    return Samples(*found)


def load_network(reference: str, folder: Path) -> torch.nn.Module:
    """A module from `file.py:function`, or from the folder of a Hugging Face model by its own architecture."""
    if is_code(reference):
        return resolve(reference, folder)()
    if not (folder / reference / "config.json").is_file():
        raise InputError(f"model {reference!r}: neither `file.py:function` nor a folder with config.json")
    return hugging_face.load(folder / reference)


def write(path: Path, content: bytes) -> None:
    """The file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")
    part.write_bytes(content)
    os.replace(part, path)


def array_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
