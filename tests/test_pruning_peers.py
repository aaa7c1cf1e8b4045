"""Masks and centroids of the libraries that people come from: torch.nn.utils.prune, torchao, tensorflow-model-optimization."""

import warnings

import numpy as np
import pytest

from compress.numerics.clustering import by_sign, cluster, density, linear
from compress.numerics.pruning import channel_scores, global_masks, lowest, mask, saliency
from compress.sparsity import Blocks, NofM, Unstructured

DRAW = np.random.default_rng(0)


def torch_linear(values: np.ndarray):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(values.shape[1], values.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(values.copy())
    return layer


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.83])
def test_masks_of_torch_prune(sparsity):
    prune = pytest.importorskip("torch.nn.utils.prune")
    first, second = (DRAW.standard_normal(shape).astype(np.float32) for shape in ((12, 30), (7, 12)))
    layers = torch_linear(first), torch_linear(second)
    prune.l1_unstructured(layers[0], "weight", sparsity)
    np.testing.assert_array_equal(mask(saliency(first, "magnitude"), Unstructured(), sparsity), layers[0].weight_mask.numpy().astype(bool))
    layers = torch_linear(first), torch_linear(second)
    prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=sparsity)
    found = global_masks({"a": np.abs(first), "b": np.abs(second)}, sparsity)
    for ours, layer in zip(found.values(), layers, strict=True):
        np.testing.assert_array_equal(ours, layer.weight_mask.numpy().astype(bool))
    layer = torch_linear(first)
    prune.ln_structured(layer, "weight", sparsity, n=2, dim=0)
    gone = lowest(channel_scores(first)[None], round(sparsity * len(first)))[0]
    np.testing.assert_array_equal(~gone, layer.weight_mask.numpy().astype(bool).all(1))


@pytest.mark.parametrize("pattern", [Unstructured(), NofM(2, 4)], ids=str)
def test_masks_of_torchao_wanda(pattern):
    """torchao 0.18 ranks by |w| times the squared norm of the input (its observer squares it, and no root is taken), the paper and we by the norm itself."""
    torch = pytest.importorskip("torch")
    sparsity = pytest.importorskip("torchao.sparsity")
    values, inputs = DRAW.standard_normal((8, 16)).astype(np.float32), (DRAW.standard_normal((50, 16)) * np.arange(1, 17)).astype(np.float32)
    model = torch.nn.Sequential(torch_linear(values))
    sparsifier = sparsity.WandaSparsifier(sparsity_level=0.5, semi_structured_block_size=4 if isinstance(pattern, NofM) else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's quantization observers, which it is built on
        sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
        model(torch.from_numpy(inputs))
        sparsifier.step()
        sparsifier.squash_mask()
    power = np.square(inputs, dtype=np.float64).mean(0)
    ours = mask(saliency(values, "wanda", power**2), pattern, None if isinstance(pattern, NofM) else 0.5)
    np.testing.assert_array_equal(ours, model[0].weight.detach().numpy() != 0)


def tfmot(module: str):
    """A module of tensorflow-model-optimization, whose import would make tf.keras mean tf_keras in every test after it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TF_USE_LEGACY_KERAS", "1")
        return pytest.importorskip(f"tensorflow_model_optimization.python.core.{module}", exc_type=ImportError)


@pytest.mark.parametrize("pattern", [Unstructured(), Blocks(1, 4), Blocks(4, 2)], ids=str)
def test_masks_of_tensorflow_model_optimization(pattern):
    implementation, schedule = tfmot("sparsity.keras.pruning_impl"), tfmot("sparsity.keras.pruning_schedule")
    values = DRAW.standard_normal((16, 24)).astype(np.float32)
    block = (pattern.columns, pattern.rows) if isinstance(pattern, Blocks) else (1, 1)  # of a Keras kernel [in, out]
    pruning = implementation.Pruning(lambda: 0, [], schedule.ConstantSparsity(0.75, 0), list(block), "AVG")
    import tensorflow as tf

    _, theirs = pruning._maybe_update_block_mask(tf.constant(values.T.copy()))
    np.testing.assert_array_equal(mask(np.abs(values), pattern, 0.75), theirs.numpy().T.astype(bool))


@pytest.mark.parametrize("pattern", [NofM(2, 4), NofM(4, 8), NofM(1, 3)], ids=str)
def test_n_of_m_of_tensorflow_model_optimization(pattern):
    utils = tfmot("sparsity.keras.pruning_utils")
    values = DRAW.standard_normal((16, 24)).astype(np.float32)
    theirs = utils.generate_m_by_n_mask(values, (pattern.m - pattern.n, pattern.m))  # it counts zeros
    np.testing.assert_array_equal(mask(np.abs(values), pattern), np.array(theirs).astype(bool))


@pytest.mark.parametrize("name", ["linear", "density"])
@pytest.mark.parametrize("count", [2, 3, 8, 16])
@pytest.mark.parametrize("pruned", [False, True])
def test_centroids_of_tensorflow_model_optimization(name, count, pruned):
    theirs = tfmot("clustering.keras.clustering_centroids")
    made = {"linear": theirs.LinearCentroidsInitialisation, "density": theirs.DensityBasedCentroidsInitialisation}[name]
    import tensorflow as tf

    values = (DRAW.standard_t(5, (40, 50)) * 0.1 + 0.02).astype(np.float32)
    kept = DRAW.random(values.shape) < 0.4 if pruned else None
    expected = made(tf.constant(values * kept if pruned else values), count, preserve_sparsity=pruned).get_cluster_centroids().numpy()
    _, ours = cluster(values, count, "tensor", name, kept)
    # sorted, for zero comes first here; its interpolation of the node costs some float32 roundings of y - (y - a x) with |a| from 1 to 1000
    np.testing.assert_allclose(np.sort(ours), np.sort(expected), rtol=1e-6, atol=2e-6)


def test_signs_share_centroids_as_in_tensorflow_model_optimization():
    theirs = tfmot("clustering.keras.clustering_centroids")
    import tensorflow as tf

    for positive in range(1, 10):
        row = np.concatenate([np.linspace(-1, -0.5, 10 - positive), np.linspace(0.25, 2, positive)]).astype(np.float32)
        expected = theirs.LinearCentroidsInitialisation(tf.constant(row), 6, preserve_sparsity=True).get_cluster_centroids().numpy()
        np.testing.assert_allclose(by_sign(row, 5, linear, None), expected[expected != 0], rtol=1e-6)
    assert density(row, 3, np.float32(0.01), None).shape == (3,)


def test_kmeans_plus_plus_is_as_good_as_tensorflows():
    ops = pytest.importorskip("tensorflow.python.ops.clustering_ops", exc_type=ImportError)
    values = DRAW.standard_t(4, 2000).astype(np.float32)

    def distortion(centroids: np.ndarray) -> float:
        return float(np.square(values[:, None] - np.asarray(centroids).ravel()).min(1).sum())

    theirs = [distortion(ops.kmeans_plus_plus_initialization(values[:, None], 16, seed=seed, num_retries_per_sample=-1)) for seed in range(60)]
    ours = [distortion(cluster(values[None], 16, "tensor", "kmeans++", seed=seed)[1]) for seed in range(60)]
    # means of 60 draws; five standard errors of their difference. A single try for each centroid is some 40% worse
    error = np.hypot(np.std(theirs), np.std(ours)) / np.sqrt(60)
    assert abs(np.mean(ours) - np.mean(theirs)) < 5 * error < 0.2 * np.mean(theirs)
