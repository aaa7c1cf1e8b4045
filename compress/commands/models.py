"""One model: what a recipe will do to it, its artifact, and what a file holds."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from compress.commands.shared import AsJson, Calibration, Model, RecipeName, app, console, errors, print_json, print_rows


@app.command()
def compress(
    model: Model,
    recipe: RecipeName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The artifact: .tflite, .onnx, .pt2, .pte, .gguf, or DIR/model.safetensors.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="Exporter: litert (tflite), litert-converter, onnx, torch, torch-pt2e, executorch, safetensors (bitsandbytes, compressed-tensors), gguf. "
            "Default: by the suffix.",
        ),
    ] = None,
    calibration: Calibration = None,
    training: Annotated[str | None, typer.Option("--training", "-t", help="`file.py:function` that returns (inputs, labels), for recipes that train.")] = None,
    learning_rate: Annotated[float, typer.Option(help="The peak learning rate that suits the model, where the recipe says none.", min=0)] = 1e-3,
    checkpoints: Annotated[Path | None, typer.Option(help="A folder where trainings are kept: the same command goes on from there.")] = None,
    labels: Annotated[Path | None, typer.Option(help="A text file with a class on each line, for the artifact.", exists=True, dir_okay=False)] = None,
    mean: Annotated[list[float] | None, typer.Option(help="Of the normalisation (pixel - mean) / std, for the artifact; once, or for each channel.")] = None,
    std: Annotated[list[float] | None, typer.Option(help="As --mean.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compress one model into one artifact.

    Example: `compresskit compress model.keras --recipe int8-static --to litert --calibration data.npz -o model.tflite`

    With training: `compresskit compress model.keras --recipe pqat -c data.py:calibration -t data.py:train --checkpoints trained -o model.tflite`
    """
    import exporters
    from compress.card import Card
    from compress.pipeline import compress as run
    from compress.references import load_training

    card = Card.of(labels.read_text(encoding="utf-8") if labels else "", mean or (), std or ())
    with errors.status("opening the model") as status:
        network, data = open_network(model, calibration)
        status.update(f"fitting {recipe}")
        taught = load_training(training, learning_rate) if training else None
        small = run(network, recipe, calibration=data, training=taught, checkpoints=checkpoints, progress=training_status(status))
        status.update(f"writing and checking {output.name}")
        artifact = exporters.export(small, output, to, card)
    show_artifact(artifact, as_json)


def training_status(status):
    """A progress callback that says how far a step's training is, and about how long it will take."""
    began: dict[str, tuple[float, int]] = {}

    def progress(step: str, done: int, steps: int, loss: float) -> None:
        start, first = began.setdefault(step, (time.perf_counter(), done))
        left = f", about {(time.perf_counter() - start) / (done - first) * (steps - done):,.0f} s left" if done > first else ""
        status.update(f"{step}: step {done:,} of {steps:,}, loss {loss:.3f}{left}")

    return progress


def open_network(model: str, calibration: str | None):
    from compress.backends import open_model
    from compress.references import load_data, load_model

    data = load_data(calibration)[0] if calibration else None
    return open_model(load_model(model), inputs=data), data


@app.command()
def plan(
    model: Model,
    recipe: RecipeName,
    to: Annotated[str | None, typer.Option("--to", help="Also say how this exporter will store each tensor, or why it cannot.")] = None,
    calibration: Calibration = None,
    as_json: AsJson = False,
) -> None:
    """Show what a recipe will do to every tensor and the predicted bytes, before any work.

    Example: `compresskit plan model.keras --recipe int4-group32 --to onnx`
    """
    import exporters
    from compress.plan import plan as decide
    from compress.recipe import Recipe

    loaded = Recipe.load(recipe)
    with errors.status("opening the model"):
        network, _ = open_network(model, calibration)
        decided = decide(network.weights(), loaded)
        placed = exporters.placements(decided, to, network.framework, loaded.allow_float) if to else {}
    predicted = exporters.predicted_bytes(decided, to, placed) if to else None
    if as_json:
        tensors = [decision_facts(d, placed.get(d.name)) for d in decided.decisions]
        print_json({"recipe": loaded.name, "recipe_id": loaded.id, "tensors": tensors, "predicted_file_bytes": predicted, "notes": network.notes})
        return
    rows = [
        (d.name, d.kind, "x".join(map(str, d.shape)), plan_words(d), *([stored_words(placed.get(d.name))] if to else []), f"{d.size_bytes:,}")
        for d in decided.decisions
        if d.format is not None or d.wanted or len(d.shape) > 1
    ]
    print_rows(f"{loaded.name} ({loaded.id})", ["tensor", "kind", "shape", "plan", *([f"stored by {to}"] if to else []), "bytes"], rows)
    small = sum(d.float_bytes for d in decided.decisions if len(d.shape) < 2 and d.format is None)
    total = sum(d.float_bytes for d in decided.decisions)
    console.print(f"Biases and norms stay in float32: {small:,} bytes. Predicted weights: {decided.size_bytes:,} of {total:,} bytes.")
    if predicted is not None:
        console.print(f"Predicted file: {predicted:,} bytes with what {to} adds for each weight, without the model's own graph.")
    for note in network.notes:
        console.print(f"Note: {escape(note)}")
    if to and hasattr(exporters.EXPORTERS.load(to), "delegates"):
        with errors.status("converting to float32, to see what delegates take"):
            print_delegates(exporters.EXPORTERS.load(to).delegates(network))


def decision_facts(decision, placed) -> dict[str, Any]:
    stored = {"placement": placed.placement, "placement_reason": placed.reason} if placed else {}
    return {
        "name": decision.name,
        "kind": decision.kind,
        "shape": decision.shape,
        "format": str(decision.format or "float32"),
        "activations": str(decision.activations or ""),
        "reason": decision.reason,
        "bytes": decision.size_bytes,
        "float_bytes": decision.float_bytes,
        **stored,
    }


def print_delegates(found: dict[str, str]) -> None:
    for name, said in found.items():
        console.print(f"{name}: {escape(said)}")


def plan_words(decision) -> str:
    if decision.format is None:
        return f"float32: {decision.reason}"
    return str(decision.format) + (f", {decision.activations}" if decision.activations else "")


def stored_words(placed) -> str:
    return "" if placed is None else placed.placement + (f": {placed.reason}" if placed.reason else "")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A .tflite, .onnx, .pt2, .pte, .safetensors or .gguf file, whoever wrote it.")],
    as_json: AsJson = False,
) -> None:
    """Show what a file holds: tensors, number formats, operators and where its bytes go.

    Example: `compresskit inspect model.tflite`
    """
    import exporters

    show_artifact(exporters.inspect(file), as_json)


def show_artifact(artifact, as_json: bool) -> None:
    from compress.artifact import deflated_bytes, in_memory
    from evaluators.artifact_facts import to_facts

    if as_json:
        print_json(to_facts(artifact, artifact.path.name) | {"deflated_bytes": deflated_bytes(artifact.path)})
        return
    contents, ledger = artifact.contents, artifact.ledger
    rows = [
        (t.name, "x".join(map(str, t.shape)) or "scalar", t.dtype, *values_words(t), t.placement + (f": {t.reason}" if t.reason else ""), f"{t.size_bytes:,}")
        for t in sorted(contents.tensors, key=lambda t: -t.size_bytes)
        if t.placement != "float" or t.size_bytes >= 1024
    ]
    print_rows(artifact.path.name, ["tensor", "shape", "stored as", "zeros", "values", "placement", "bytes"], rows)
    hidden = len(contents.tensors) - len(rows)
    if hidden:
        console.print(f"and {hidden} float tensors under 1 KiB")
    console.print("Operators: " + ", ".join(f"{count} {name}" for name, count in sorted(contents.operators.items(), key=lambda o: -o[1])))
    print_delegates(contents.delegates)
    for noun, specs in (("Inputs", contents.inputs), ("Outputs", contents.outputs)):
        console.print(f"{noun}: " + escape(", ".join(f"{s.name} {list(s.shape)} {s.dtype}" for s in specs)))
    made = f"recipe {artifact.recipe} ({artifact.recipe_id}), exporter {artifact.exporter}" if artifact.recipe else "not made by compresskit"
    console.print(f"{ledger.file_bytes:,} bytes ({deflated_bytes(artifact.path):,} deflated); {made}")
    parts = ("payload", "scales", "zero_points", "float_bytes", "graph")
    console.print("Ledger: " + ", ".join(f"{part.replace('_', ' ')} {getattr(ledger, part):,}" for part in parts))
    sizes = [f"{size:,} {how}" for how, size in in_memory(contents.tensors).items() if size]
    if sizes:
        console.print(f"Compressed weights in memory, bytes: {', '.join(sizes)}")
    for name, claims in contents.metadata.get("kept", {}).items():
        console.print(f"Kept: {escape(name)}: {escape('; '.join(claims))}")
    for name, value in contents.metadata.get("card", {}).items():
        console.print(f"Card: {name} {escape(', '.join(map(str, value)) if isinstance(value, list) else value)}")
    for note in artifact.notes:
        console.print(f"Note: {escape(note)}")


def values_words(tensor) -> tuple[str, str]:
    """Share of zeros, and how many different values or codes."""
    zeros = "" if tensor.zeros is None else f"{tensor.zeros:.0%}"
    return zeros, str(tensor.distinct) if tensor.distinct is not None else ">256" if tensor.zeros is not None else ""
