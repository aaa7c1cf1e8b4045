"""Checkpoints in the hands of those who load them: transformers with bitsandbytes and compressed-tensors, gguf-py."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from zoo import case

import exporters
from compress.backends import open_model
from compress.errors import BrokenFile, ExportError, Refused
from compress.formats import DoubleQuantized, FloatFormat, Format, IntFormat, PerAxis, PerGroup, PerTensor
from compress.pipeline import Compressed, compress
from compress.presets import preset
from compress.recipe import Recipe
from compress.steps import Quantize

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = np.random.default_rng(0).integers(0, 256, (2, 16))
LAYERS = {"name": "model.layers.*"}


def small_llama(**settings):
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    spread = {"initializer_range": 0.1}  # large enough that a wrong weight moves the logits
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | heads | spread | settings))).eval()


@functools.cache
def llama():
    return open_model(small_llama(), {"input_ids": TOKENS})


def recipe(*steps: tuple[dict, Format], **settings) -> Recipe:
    return Recipe(name="checkpoint", steps=tuple(Quantize(select=select, weights=fmt) for select, fmt in steps), **settings)


def of(name: str) -> Format:
    return preset(name).format


def written(folder: Path, *steps, network=None) -> tuple[Compressed, exporters.Artifact]:
    small = compress(network or llama(), recipe(*steps))
    return small, exporters.export(small, folder / "model.safetensors")


def loaded(folder: Path, **settings):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", **settings).eval()


def logits(model, **inputs) -> np.ndarray:
    with torch.no_grad():
        return model(**{name: torch.tensor(value) for name, value in (inputs or {"input_ids": TOKENS}).items()}).logits.float().numpy()


def bitsandbytes_own(model, folder: Path, kind: str, double: bool = False, skipped: tuple[str, ...] = ("lm_head",), dtype=torch.float32):
    """bitsandbytes' own quantization of the float model."""
    pytest.importorskip("bitsandbytes")
    model.save_pretrained(folder)
    settings = {"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": double, "bnb_4bit_compute_dtype": dtype}
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=list(skipped), **settings)
    return type(model).from_pretrained(folder, quantization_config=config, device_map="cpu").eval()


def file_tensors(path: Path) -> dict[str, bytes]:
    from safetensors import deserialize

    return {name: (entry["dtype"], entry["shape"], bytes(entry["data"])) for name, entry in deserialize(path.read_bytes())}


# --- bitsandbytes ---


def one_zero(name: str, data: bytes, kind: str) -> bytes:
    """FP4 codes 0 and 8 are both 0: bitsandbytes' CPU code gives 8 to small positive numbers, its CUDA code and the core to negative ones."""
    if kind != "fp4" or not name.endswith("proj.weight"):
        return data
    halves = np.frombuffer(data, np.uint8)[:, None] >> np.array([4, 0], np.uint8) & 15
    return np.where(halves == 8, 0, halves).tobytes()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_logits_and_files_equal_bitsandbytes_own(kind, tmp_path):
    written(tmp_path / "ours", (LAYERS, of(f"bnb.{kind}")))
    theirs = bitsandbytes_own(small_llama(), tmp_path / "float", kind)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, own = (file_tensors(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    assert ours.keys() == own.keys()
    for name, (dtype, shape, data) in ours.items():
        assert (dtype, shape, one_zero(name, data, kind)) == (*own[name][:2], one_zero(name, own[name][2], kind)), name
    model = loaded(tmp_path / "ours")
    assert type(model.model.layers[1].mlp.up_proj).__name__ == "Linear4bit" and type(model.lm_head) is torch.nn.Linear
    np.testing.assert_array_equal(logits(model), logits(theirs))


def test_double_quantized_layers_are_bitsandbytes_own(tmp_path):
    small, _ = written(tmp_path / "ours", (LAYERS, of("bnb.nf4.dq")))
    theirs = bitsandbytes_own(small_llama(), tmp_path / "float", "nf4", double=True)
    ours = loaded(tmp_path / "ours")
    for name, encoded in small.encoded.items():
        path = name.removesuffix(".weight")
        mine, own = (model.get_submodule(path) for model in (ours, theirs))
        assert torch.equal(mine.weight.data, own.weight.data)
        # torch.linspace, which makes bitsandbytes' map, rounds as the processor's vector units do
        np.testing.assert_allclose(mine.weight.quant_state.state2.code, own.weight.quant_state.state2.code, rtol=2.0**-22)
        np.testing.assert_array_equal(mine.weight.quant_state.absmax.numpy(), encoded.scale_codes.codes)
        np.testing.assert_array_equal(mine.weight.quant_state.absmax.numpy(), own.weight.quant_state.absmax.numpy())
        # the offset is a mean of float32 numbers, summed in another order
        np.testing.assert_allclose(own.weight.quant_state.offset.item(), encoded.scale_codes.offset, rtol=1e-6)
    np.testing.assert_allclose(logits(ours), logits(theirs), rtol=0, atol=1e-5)


def test_double_quantized_layers_with_equal_codes_of_scales_decode_alike(tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    small, _ = written(tmp_path / "ours", (LAYERS, of("bnb.nf4.dq")))
    model = loaded(tmp_path / "ours")
    for name, encoded in small.encoded.items():
        weight = model.get_submodule(name.removesuffix(".weight")).weight
        np.testing.assert_array_equal(bnb.functional.dequantize_4bit(weight.data, weight.quant_state).numpy(), encoded.decode())


def test_classifiers_with_biases_keep_the_layers_that_the_recipe_leaves_out_in_float(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "initializer_range": 0.1}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).eval()
    inputs = {"input_ids": TOKENS, "attention_mask": np.ones_like(TOKENS)}
    written(tmp_path / "ours", ({"name": "bert.encoder.*attention*"}, of("bnb.nf4")), network=open_model(model, inputs))
    ours = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", device_map="cpu").eval()
    skipped = json.loads((tmp_path / "ours" / "config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
    assert "classifier" in skipped and "bert.encoder.layer.0.output.dense" in skipped
    theirs = bitsandbytes_own(model, tmp_path / "float", "nf4", skipped=tuple(skipped))
    kinds = {name: type(module).__name__ for name, module in ours.named_modules() if "Linear" in type(module).__name__}
    assert {name for name, kind in kinds.items() if kind == "Linear4bit"} == {n for n in kinds if "encoder" in n and "attention" in n}
    np.testing.assert_array_equal(logits(ours, **inputs), logits(theirs, **inputs))


def test_models_in_bfloat16_stay_in_it(tmp_path):
    model = small_llama().to(torch.bfloat16)
    written(tmp_path / "ours", (LAYERS, of("bnb.nf4")), network=open_model(model, {"input_ids": TOKENS}))
    theirs = bitsandbytes_own(model, tmp_path / "float", "nf4", dtype=torch.bfloat16)
    ours = loaded(tmp_path / "ours")
    assert ours.lm_head.weight.dtype == torch.bfloat16
    np.testing.assert_array_equal(logits(ours), logits(theirs))


def test_tied_heads_are_tied_again(tmp_path):
    network = open_model(small_llama(tie_word_embeddings=True), {"input_ids": TOKENS})
    _, artifact = written(tmp_path / "ours", (LAYERS, of("bnb.nf4")), network=network)
    assert "lm_head.weight" not in {t.file_name for t in artifact.tensors}
    theirs = bitsandbytes_own(small_llama(tie_word_embeddings=True), tmp_path / "float", "nf4")
    np.testing.assert_array_equal(logits(loaded(tmp_path / "ours")), logits(theirs))


# --- compressed-tensors ---

ASYMMETRIC = IntFormat(4, PerGroup(32), "asymmetric")
INTEGERS = {
    "w4a16": of("ct.w4a16.group128"),
    "w8a16": of("ct.w8a16.channel"),
    "zero points of groups": ASYMMETRIC,
    "zero points of channels": IntFormat(8, PerAxis(), "asymmetric"),
    "3 bits": IntFormat(3, PerGroup(64), "half"),
    "per tensor": IntFormat(8, PerTensor(), "narrow"),
}


def decompressed(folder: Path, **settings):
    """The model after its first forward pass, when compressed-tensors has expanded every weight."""
    pytest.importorskip("compressed_tensors")
    model = loaded(folder, **settings)
    return model, logits(model)


@pytest.mark.parametrize("name", INTEGERS)
def test_pack_quantized_weights_are_the_decoded_ones(name, tmp_path):
    small, artifact = written(tmp_path, (LAYERS, INTEGERS[name]))
    asymmetric = any(encoded.zero_points is not None for encoded in small.encoded.values())
    # transformers 5.23 makes no place for packed zero points in compressed models: it loads them only to expand them at once
    assert asymmetric == any("zero points" in note for note in artifact.notes)
    settings = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)} if asymmetric else {}
    model, got = decompressed(tmp_path, **settings)
    for tensor, encoded in small.encoded.items():
        np.testing.assert_array_equal(model.get_parameter(tensor).detach().numpy(), encoded.decode(), err_msg=tensor)
    np.testing.assert_array_equal(got, small.simulate().run({"input_ids": TOKENS})[0])


@pytest.mark.parametrize(("name", "bound"), [("mx.fp4", 0), ("mx.fp4.even", 0), ("nvfp4", 2.0**-7)])
def test_four_bit_floats_are_the_decoded_ones_up_to_bfloat16(name, bound, tmp_path):
    """compressed-tensors multiplies in bfloat16: exact for scales that are powers of two; NVFP4's scale and its product are each rounded by up to 2^-9."""
    small, artifact = written(tmp_path, (LAYERS, of(name)))
    assert any("bfloat16" in note for note in artifact.notes)
    model, _ = decompressed(tmp_path)
    for tensor, encoded in small.encoded.items():
        expected = encoded.decode()
        assert np.all(np.abs(model.get_parameter(tensor).detach().float().numpy() - expected) <= bound * np.abs(expected)), tensor


def test_several_formats_are_several_groups(tmp_path):
    steps = ({"name": "*self_attn*"}, of("ct.w4a16.group128")), ({"name": "*mlp*"}, of("ct.w8a16.channel"))
    small, _ = written(tmp_path, *steps)
    model, _ = decompressed(tmp_path)
    assert {encoded.format.bits for encoded in small.encoded.values()} == {4, 8}
    for tensor, encoded in small.encoded.items():
        np.testing.assert_array_equal(model.get_parameter(tensor).detach().numpy(), encoded.decode(), err_msg=tensor)


# --- what holds for every checkpoint ---


@pytest.mark.parametrize("name", ["bnb.nf4.dq", "bnb.fp4", "ct.w4a16.group128", "nvfp4", "mx.fp4"])
def test_checkpoints_are_read_back_whole(name, tmp_path):
    small, artifact = written(tmp_path, (LAYERS, of(name)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = exporters.inspect(artifact.path)
    assert again.sha256 == artifact.sha256 and again.recipe_id == small.recipe.id
    stored, ledger = {t.name: t for t in again.tensors}, again.ledger
    assert {stored[tensor].placement for tensor in small.encoded} == {"decoded"}
    assert ledger.payload == sum(encoded.codes.size // 2 for encoded in small.encoded.values())
    # tables and global scales are in the file, the prediction knows them by name
    assert 0 <= ledger.payload + ledger.scales - sum(encoded.nbytes for encoded in small.encoded.values()) <= 4 * len(small.encoded)
    assert ledger.payload + ledger.scales + ledger.zero_points + ledger.float_bytes + ledger.graph == ledger.file_bytes


def test_float_checkpoints_need_no_recipe_step(tmp_path):
    small, artifact = written(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    np.testing.assert_array_equal(logits(loaded(tmp_path)), logits(llama().model))


@pytest.mark.parametrize("damage", ["empty", "half", "cut", "shape", "scale"])
def test_damaged_checkpoints_are_named(damage, tmp_path):
    data = written(tmp_path, (LAYERS, of("nvfp4")))[1].path.read_bytes()
    first = data.index(b'"model.layers.0.mlp.down_proj.weight_global_scale"')
    start = int(data[first:].split(b'"data_offsets":[', 1)[1].split(b",", 1)[0]) + 8 + int.from_bytes(data[:8], "little")
    broken = {
        "empty": b"",
        "half": data[: len(data) // 2],
        "cut": data[:-20],
        "shape": data.replace(b'"shape":[128,192]', b'"shape":[192,128]'),
        "scale": data[: start + 2] + bytes([data[start + 2] ^ 1]) + data[start + 3 :],
    }[damage]
    path = tmp_path / f"{damage}.safetensors"
    assert broken != data
    path.write_bytes(broken)
    with pytest.raises((BrokenFile, ExportError), match=damage):
        exporters.inspect(path)


REFUSALS = {
    "no Hugging Face model": lambda path: exporters.export(compress(case("torch_linear").network, recipe()), path),
    "embedding": lambda path: written(path.parent, ({"name": "model.embed_tokens.weight"}, of("bnb.nf4"))),
    "one quantization method": lambda path: written(path.parent, ({"name": "*self_attn*"}, of("bnb.nf4")), ({"name": "*mlp*"}, of("nvfp4"))),
    "has one format": lambda path: written(path.parent, ({"name": "*self_attn*"}, of("bnb.nf4")), ({"name": "*mlp*"}, of("bnb.fp4"))),
    "FOLDER/model.safetensors": lambda path: exporters.export(compress(llama(), recipe((LAYERS, of("bnb.nf4")))), path.with_name("x.safetensors")),
    "dynamic map": lambda path: written(path.parent, (LAYERS, replace(of("bnb.nf4.dq"), double=DoubleQuantized("linear")))),
    "no method of transformers": lambda path: written(path.parent, (LAYERS, of("kmeans.16"))),
    "its codes are signed": lambda path: written(path.parent, (LAYERS, of("gguf.q4_1"))),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_nobody_could_load_is_refused_and_nothing_is_left(reason, tmp_path):
    with pytest.raises(Refused, match=reason):
        REFUSALS[reason](tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_models_that_their_config_does_not_build_are_refused(tmp_path):
    model = small_llama()
    model.model.norm = torch.nn.Identity()
    with pytest.raises(Refused, match="model.norm.weight"):
        written(tmp_path, (LAYERS, of("bnb.nf4")), network=open_model(model, {"input_ids": TOKENS}))


# --- GGUF ---

TYPES = {"Q4_0": of("gguf.q4_0"), "Q4_1": of("gguf.q4_1"), "Q8_0": of("gguf.q8_0"), "F16": FloatFormat("float16"), "BF16": FloatFormat("bfloat16")}


@pytest.mark.parametrize("kind", TYPES)
def test_gguf_files_of_llama_models_load_in_transformers(kind, tmp_path):
    gguf = pytest.importorskip("gguf")
    small = compress(llama(), recipe(({}, TYPES[kind])))
    path = exporters.export(small, tmp_path / "llama.gguf").path
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    types = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert types["token_embd.weight"] == types["output.weight"] == types["blk.1.attn_k.weight"] == kind and types["output_norm.weight"] == "F32"
    value = small.encoded["model.layers.1.mlp.up_proj.weight"].decode()
    np.testing.assert_array_equal(gguf.dequantize(tensors["blk.1.ffn_up.weight"].data, tensors["blk.1.ffn_up.weight"].tensor_type), value)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="llama.gguf", dtype=torch.float32).eval()
    for name, encoded in small.encoded.items():  # queries and keys are in another order in the file
        np.testing.assert_array_equal(model.get_parameter(name).detach().numpy(), encoded.decode(), err_msg=name)
    np.testing.assert_array_equal(logits(model), small.simulate().run({"input_ids": TOKENS})[0])


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_gguf_blocks_are_those_of_gguf_itself(kind, tmp_path):
    gguf = pytest.importorskip("gguf")
    small = compress(llama(), recipe((LAYERS, TYPES[kind])))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(exporters.export(small, tmp_path / "x.gguf").path).tensors}
    value = llama().weights()["model.layers.0.mlp.gate_proj.weight"].value
    np.testing.assert_array_equal(tensors["blk.0.ffn_gate.weight"].data, gguf.quantize(value, gguf.GGMLQuantizationType[kind]))


def test_gguf_files_of_other_networks_keep_their_names(tmp_path):
    gguf = pytest.importorskip("gguf")
    small = compress(case("torch_text").network, recipe(({"kind": ["linear", "attention"]}, TYPES["Q8_0"])))
    artifact = exporters.export(small, tmp_path / "text.gguf")
    assert any("own names" in note for note in artifact.notes)
    stored = {t.name: t for t in exporters.inspect(artifact.path).tensors}
    assert {stored[name].placement for name in small.encoded} == {"decoded"}
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(artifact.path).tensors}
    for name, encoded in small.encoded.items():
        np.testing.assert_array_equal(gguf.dequantize(tensors[name].data, tensors[name].tensor_type), encoded.decode())


def test_gguf_refuses_what_llama_cpp_could_not_run(tmp_path):
    scaled = open_model(small_llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), {"input_ids": TOKENS})
    with pytest.raises(Refused, match="rotary embeddings of type 'linear'"):
        exporters.export(compress(scaled, recipe((LAYERS, TYPES["Q8_0"]))), tmp_path / "x.gguf")
    with pytest.raises(Refused, match="GGUF has no type for"):
        exporters.export(compress(llama(), recipe((LAYERS, replace(TYPES["Q8_0"], scale_dtype="float32")))), tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


def test_studies_say_that_no_runtime_here_loads_checkpoints():
    from evaluators.artifacts import EXPORT, exporter_facts

    for exporter in ("safetensors", "gguf"):
        with pytest.raises(Refused, match="no runtime here"):
            exporter_facts(EXPORT, exporter)
