"""Files that would run code, unpack without end, or reach outside of their folder are refused, in one line that says what to do."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from test_sources import Evil

from compress import open_model
from compress.errors import InputError


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The members of a .pt2."""
    import torch

    path = tmp_path_factory.mktemp("program") / "model.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(1, 4),)), path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(members, path):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def pickled(path):
    import torch

    buffer = io.BytesIO()
    torch.save(Evil(path), buffer)
    return buffer.getvalue()


def test_an_untouched_program_opens(program, tmp_path):
    assert open_model(written(program, tmp_path / "model.pt2")).weights()["layer.weight"].value.shape == (2, 4)


def example_inputs(members, ran):
    return members | {"model/data/sample_inputs/model.pt": pickled(ran)}


def pickled_weight(members, ran):
    config = json.loads(members["model/data/weights/model_weights_config.json"])
    config["config"]["weight"]["use_pickle"] = True
    return members | {"model/data/weights/weight_0": pickled(ran), "model/data/weights/model_weights_config.json": json.dumps(config)}


def pickled_object(members, ran):
    config = {"config": {"thing": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}}}
    return members | {"model/data/constants/opaque_obj_0": pickle.dumps(Evil(ran)), "model/data/constants/model_constants_config.json": json.dumps(config)}


def old_weights(members, ran):
    return members | {"model/data/weights/model.pt": pickled(ran)}


def old_archive(members, ran):
    return {"version": b"8.1", "serialized_state_dict.pt": pickled(ran)}


def expression(members, ran):
    graph = json.loads(members["model/models/model.json"])
    graph["evil"] = {"expr_str": f"open({str(ran)!r}, 'w')", "hint": None}
    return members | {"model/models/model.json": json.dumps(graph)}


def compiled(members, ran):
    return members | {"model/data/aotinductor/model/a.so": b"code"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (example_inputs, "example inputs that are no tensors"),
        (pickled_weight, "pickled tensors"),
        (pickled_object, "pickled tensors or objects"),
        (old_weights, "pickled weights"),
        (old_archive, "older ones are pickles"),
        (expression, "sizes that are no arithmetic"),
        (compiled, "compiled code"),
    ],
)
def test_programs_that_would_run_code(program, tmp_path, change, said):
    ran = tmp_path / "ran"
    path = written(change(program, ran), tmp_path / "model.pt2")
    with pytest.raises(InputError, match=f"{said}.*save it again with torch.export.save, or if you trust the file") as error:
        open_model(path)
    assert not ran.exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".keras", ".pt2"])
def test_archives_that_unpack_without_end(tmp_path, suffix):
    path = tmp_path / f"bomb{suffix}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("model.weights.h5", "w") as member:
        for _ in range(80):
            member.write(bytes(1 << 20))
    with pytest.raises(InputError, match="unpacks .* bytes to 83,886,080.*not opened"):
        open_model(path)


@pytest.mark.parametrize("suffix", [".keras", ".pt2"])
@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "a\\..\\..\\outside"])
def test_members_outside_of_the_archive(tmp_path, suffix, name):
    with pytest.raises(InputError, match="members that point outside"):
        open_model(written({name: b"data"}, tmp_path / f"model{suffix}"))
    assert not (tmp_path.parent / "outside").exists()


@pytest.mark.parametrize("name", ["model.keras", "model.pt2", "model.onnx", "model.tflite"])
def test_garbage_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x07garbage" * 99)
    with pytest.raises(InputError, match=name) as error:
        open_model(path)
    assert "\n" not in str(error.value)


def test_damaged_programs_and_files_end_in_one_error(program, tmp_path):
    """Half a .tflite or .pt2 never gets further than opening."""
    import random

    from zoo import flipped

    whole = written(program, tmp_path / "whole.pt2").read_bytes()
    dice, path = random.Random(0), tmp_path / "hurt.pt2"
    opened = 0
    for data in (whole[: len(whole) // 2], *(flipped(whole, dice) for _ in range(15))):
        path.write_bytes(data)
        try:
            open_model(path).run({"input": np.ones((1, 4), np.float32)})
            opened += 1
        except InputError:
            continue
    assert opened < 16


def test_a_study_keeps_to_its_output_folder():
    from compress.errors import RecipeError
    from compress.recipe import Recipe, parse_document
    from evaluators.study import Study

    text = 'name: s\nmodels: {"../../evil": "m.py:f"}\ntest: "d.py:t"\nrecipes: [float32]\nruntimes: [onnxruntime]'
    with pytest.raises(RecipeError, match="model's name"):
        parse_document(Study, text, "study")
    with pytest.raises(RecipeError, match="name"):
        Recipe.parse("name: ../evil\nsteps: []")
