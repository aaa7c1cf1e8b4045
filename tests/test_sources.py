"""Models from files and folders of others: what they give is what their own library computes, and what cannot be opened safely is refused."""

import json

import numpy as np
import pytest

import exporters
from compress import compress, open_model
from compress.errors import InputError


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder as save_pretrained writes it."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 16}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, num_labels=3)).eval()
    folder = tmp_path_factory.mktemp("models") / "bert"
    model.save_pretrained(folder)
    return folder, model


def changed(folder, into, **settings):
    """A copy of a folder whose config says something else."""
    into.mkdir()
    for file in folder.iterdir():
        (into / file.name).write_bytes(file.read_bytes())
    config = json.loads((into / "config.json").read_text())
    (into / "config.json").write_text(json.dumps(config | settings))
    return into


def test_a_hugging_face_folder_is_its_model(bert, tmp_path):
    folder, model = bert
    network = open_model(folder)
    assert [(spec.name, spec.shape) for spec in network.inputs] == [("input_ids", (1, 16)), ("attention_mask", (1, 16))]
    assert "tokenizer or config" in network.notes[0]
    sample = {"input_ids": np.arange(16)[None] % 99, "attention_mask": np.ones((1, 16), np.int64)}
    same = open_model(model, sample)
    np.testing.assert_array_equal(network.run(sample)[0], same.run(sample)[0])
    assert list(network.weights()) == list(same.weights())
    artifact = exporters.export(compress(network, "int8-weight-only"), tmp_path / "bert.onnx")
    assert {t.dtype for t in artifact.tensors if t.placement == "decoded"} == {"int8"}


def test_data_decides_the_shapes_of_a_hugging_face_model(bert):
    network = open_model(str(bert[0]), {"input_ids": np.ones((4, 9), np.int64)})
    assert [(spec.name, spec.shape) for spec in network.inputs] == [("input_ids", (1, 9))] and not network.notes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architectures": ["Nothing"]}, "has no model 'Nothing', and code in the folder is not run"),
        ({"architectures": ["os"]}, "has no model 'os'"),
        ({"architectures": ["BertForMaskedLM"]}, "lacks weights of a BertForMaskedLM"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized already .bitsandbytes."),
    ],
)
def test_folders_that_do_not_say_what_they_hold(bert, tmp_path, settings, said):
    with pytest.raises(InputError, match=said):
        open_model(changed(bert[0], tmp_path / "other", **settings))


def test_pickled_weights_are_read_where_the_user_says_so(bert, tmp_path):
    import torch

    folder = changed(bert[0], tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has a config.json and no"):
        open_model(folder)
    torch.save(bert[1].state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights.*save_pretrained"):
        open_model(folder)
    given = {"input_ids": np.ones((1, 16), np.int64), "attention_mask": np.ones((1, 16), np.int64)}
    np.testing.assert_array_equal(open_model(folder, weights_only=True).run(given)[0], open_model(bert[0]).run(given)[0])


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_pickle_does_not_run(bert, tmp_path):
    import torch

    folder = changed(bert[0], tmp_path / "evil")
    (folder / "model.safetensors").unlink()
    torch.save({"bert.pooler.dense.bias": Evil(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be opened"):
        open_model(folder, weights_only=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".ckpt"])
def test_pickles_are_refused_with_what_to_do(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"anything")
    with pytest.raises(InputError, match="is a pickle.*file.py:function.*weights_only=True"):
        open_model(path)


def test_shards_outside_of_the_folder(bert, tmp_path):
    folder = changed(bert[0], tmp_path / "sharded")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../bert/model.safetensors"}}))
    with pytest.raises(InputError, match="shard outside of its folder"):
        open_model(folder)


def test_an_opened_network_is_itself(bert):
    network = open_model(bert[0])
    assert open_model(network) is network


@pytest.mark.parametrize("name", ["bert", "open.onnx"])
def test_init_writes_a_study_for_a_file(bert, tmp_path, name):
    import onnx
    from onnx import TensorProto, helper

    from evaluators.starting import start_study
    from evaluators.study import Study

    changed(bert[0], tmp_path / "bert")
    given, made = (helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", "steps", 6]) for end in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "open", [given], [made])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "open.onnx")
    start_study(str(tmp_path / name), tmp_path / "study.yaml")
    study = Study.load(tmp_path / "study.yaml")
    assert "onnxruntime" in study.runtimes and len(study.models) == 1
    wanted = {"bert": "input_ids int64 [samples, 16], attention_mask int64 [samples, 16]", "open.onnx": "x float32 [samples, ?, 6]"}
    assert wanted[name] in (tmp_path / "data.py").read_text()
