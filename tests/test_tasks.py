"""Tasks: each scores what it says, finds float32 equal to itself and a disturbed model worse, and goes through a study, its reports and the gate."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("altair", reason="the report needs altair, vl-convert, jinja2 and rich")
from results_fixture import results
from rich.console import Console
from scipy.special import softmax
from tiny_study import STUDY, written

import evaluators
from compress.errors import InputError
from evaluators import dataset
from evaluators.gate import Limits, check
from evaluators.metrics import accuracy
from evaluators.progress import TextProgress
from evaluators.report import markdown, reading, rows, terminal, verdicts, words
from evaluators.results import Metric
from evaluators.study import Study
from evaluators.tasks import TASKS, causal_lm, classification, embeddings, function, open_task, regression, token_classification
from evaluators.tasks import outputs as raw

SAMPLES, TOKENS = 60, 12


def labels_of(task: str) -> np.ndarray | None:
    generator = np.random.default_rng(1)
    if task in ("token_classification", "causal_lm"):
        found = generator.integers(0, 8, (SAMPLES, TOKENS))
        found[::2, 7:] = -100
        return found
    if task == "regression":
        return generator.normal(size=(SAMPLES, 3)).astype(np.float32)
    return None if task == "outputs" else generator.integers(0, 8, SAMPLES)


def outputs_of(task: str, noise: float) -> list[list[np.ndarray]]:
    """What a model that mostly knows the labels puts out, sample by sample, with noise on it."""
    generator, labels = np.random.default_rng(2), labels_of(task)
    if task == "outputs":
        clean = [generator.normal(size=(SAMPLES, 4, 5)), generator.normal(size=(SAMPLES, 3))]
    elif task == "regression":
        clean = [labels + 0.1 * generator.normal(size=labels.shape)]
    else:
        asked = np.where(labels < 0, 0, labels)
        known = np.eye(8)[np.concatenate([asked[:, 1:], asked[:, :1]], 1) if task == "causal_lm" else asked]
        clean = [known + 0.4 * generator.normal(size=known.shape)]
    disturbed = [array + noise * np.random.default_rng(3).normal(size=array.shape) for array in clean]
    return [[array[i : i + 1].astype(np.float32) for array in disturbed] for i in range(SAMPLES)]


def kept_of(task: str, noise: float, folder: Path) -> dict[str, np.ndarray]:
    labels = open_task(task).check(labels_of(task))
    (folder / dataset.TASK).write_text(task)
    if labels is not None:
        np.save(folder / dataset.LABELS, labels)
    return accuracy.kept(outputs_of(task, noise), folder)


@pytest.mark.parametrize("task", TASKS)
def test_float32_equals_itself_and_a_disturbed_model_is_worse(task, tmp_path):
    clean, noisy, labels = kept_of(task, 0.0, tmp_path), kept_of(task, 1.0, tmp_path), labels_of(task)
    assert all(len(array) == SAMPLES and array.nbytes < 100 * SAMPLES for array in clean.values())  # nothing as large as a vocabulary
    same, lost = (accuracy.derive(open_task(task), kept, clean, labels) for kept in (clean, noisy))
    assert len(same) == len(lost) == len({score.metric.title for score in same}) >= 1
    arm = results().arms[1]
    for equal, worse in zip(same, lost, strict=True):
        assert (equal.worse, equal.better, equal.flipped) == (0, 0, 0.0) and equal.p in (1.0, None)
        assert reading.loss(replace(arm, accuracy=equal)) == "none shown" and reading.loss(replace(arm, accuracy=worse)) == "loss", worse
        assert worse.worse > worse.better and worse.value.low <= worse.value.value <= worse.value.high
        assert worse.difference is None or worse.drop.value > 0
        assert worse.metric.kind in ("right", "likeness") or worse.p < 0.001 < worse.smallest
    assert accuracy.derive(open_task(task), clean, clean, labels, is_baseline=True)[0].difference is None


def test_scores_are_those_of_scikit_learn(tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")

    def values(task):
        found = accuracy.derive(open_task(task), kept_of(task, 0.8, tmp_path), kept_of(task, 0.0, tmp_path), open_task(task).check(labels_of(task)))
        return {score.metric.title: score.value.value for score in found}, np.concatenate([row[0] for row in outputs_of(task, 0.8)]), labels_of(task)

    found, scores, labels = values("classification")
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, scores.argmax(1)))
    assert found["top-5 accuracy"] == pytest.approx(metrics.top_k_accuracy_score(labels, scores, k=5, labels=range(8)))
    found, scores, labels = values("regression")
    assert found["mean absolute error"] == pytest.approx(metrics.mean_absolute_error(labels, scores), rel=1e-6)
    found, scores, labels = values("token_classification")
    assert found["token accuracy"] == pytest.approx(metrics.accuracy_score(labels[labels >= 0], scores.argmax(-1)[labels >= 0]))
    found, scores, labels = values("causal_lm")
    asked = labels[:, 1:] >= 0
    nats = metrics.log_loss(labels[:, 1:][asked], softmax(scores[:, :-1][asked].astype(float), axis=1), labels=range(8))
    assert found["perplexity"] == pytest.approx(np.exp(nats), rel=1e-5)
    found, scores, labels = values("embeddings")
    near = metrics.pairwise.cosine_similarity(scores)
    np.fill_diagonal(near, -2)
    places = [np.flatnonzero(labels[np.argsort(-near[i])] == labels[i])[0] + 1 for i in range(SAMPLES)]
    assert found["recall@1"] == pytest.approx(np.mean(np.array(places) == 1)) and found["recall@10"] == pytest.approx(np.mean(np.array(places) <= 10))
    assert found["mean reciprocal rank"] == pytest.approx(np.mean(1 / np.array(places)))


def test_sqnr_and_maximum_error_are_of_every_output(tmp_path):
    clean, noisy = kept_of("outputs", 0.0, tmp_path), kept_of("outputs", 0.01, tmp_path)
    first, *others = accuracy.derive(raw, noisy, clean, None)
    assert [score.metric.title for score in others] == [f"{what} of output_{i}" for i in range(2) for what in ("SQNR", "maximum error")]
    assert first.value.value == pytest.approx(40, abs=2)  # noise of a hundredth of values of about 1
    assert others[1].worst == pytest.approx(np.abs(noisy["output_0"].astype(float) - clean["output_0"]).max())
    assert first.worst <= min(others[0].worst, others[2].worst) and raw.sqnr(np.zeros((1, 2)), np.zeros((1, 2))) == raw.CEILING
    assert raw.named({f"output_{i}": 0 for i in range(12)})[-1] == "output_11"


def test_a_document_counts_as_much_as_it_has_tokens():
    kept = {"nats": np.array([1.0, 30.0]), "tokens": np.array([1, 10]), "right": np.array([1, 1])}
    found = accuracy.derive(causal_lm, kept, None, None)[0]
    assert found.value.value == pytest.approx(np.exp(31 / 11)) and found.worst == pytest.approx(np.exp(3))
    assert "11 tokens of 2 documents" in causal_lm.notes(kept, None)[0]


def test_perplexities_are_compared_by_their_ratio():
    generator = np.random.default_rng(0)
    tokens, before = generator.integers(50, 300, 100), generator.normal(3, 0.5, 100)
    kept = [{"nats": each * tokens, "tokens": tokens, "right": tokens} for each in (before, before + np.log(1.02))]
    found = accuracy.derive(causal_lm, kept[1], kept[0], None)[0]
    assert found.difference.value == pytest.approx(0.02) and found.value.value / found.before == pytest.approx(1.02)
    assert (found.worse, found.better) == (100, 0) and found.p == pytest.approx(1e-4)
    said = verdicts.verdict(replace(results().arms[1], accuracy=found))
    assert "worse by 2.00% [2.00, 2.00], 100 of 100 documents changed for the worse and 0 for the better (sign-flip permutation p < 0.001)" in said


def test_equal_embeddings_find_nothing_and_lonely_samples_ask_for_nothing():
    labels = np.array([0, 0, 1, 1, 2])
    flat = {"embeddings": np.ones((5, 3), np.float32)}
    recall, rank, *_ = accuracy.derive(embeddings, flat, None, labels)
    assert (recall.count, recall.value.value) == (4, 0.0) and rank.value.value < 0.5
    assert "1 of 5 samples" in embeddings.notes(flat, labels)[0]


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        ("classification", None, "there are none"),
        ("classification", np.zeros((3, 2), int), "shape"),
        ("token_classification", np.full((3, 2), -100), "nothing is asked"),
        ("token_classification", np.full((3, 2), -1), "asks for no answer"),
        ("regression", None, "there are none"),
        ("regression", np.array([1.0, np.nan]), "not finite"),
        ("regression", np.array(["a"]), "not numbers"),
        ("causal_lm", np.full((3, 1), 5), "behind a first token"),
        ("embeddings", np.arange(4), "no two samples"),
        ("embeddings", np.ones(4), "integers"),
    ],
)
def test_labels_that_do_not_fit_are_named(task, labels, words):
    with pytest.raises(InputError, match=words):
        open_task(task).check(labels)


@pytest.mark.parametrize(
    ("task", "output", "label", "words"),
    [
        (classification, np.ones((1, 1)), 0, "one score per class"),
        (token_classification, np.ones((1, 3, 4)), np.zeros(2, int), "2 tokens, classes"),
        (regression, np.ones((1, 3)), np.zeros(2, np.float32), "3 values, a label 2"),
        (regression, np.full((1, 2), np.nan), np.zeros(2, np.float32), "NaN"),
        (causal_lm, np.ones((1, 3)), np.zeros(3, int), "vocabulary"),
        (causal_lm, np.ones((1, 3, 4)), np.array([0, 9, 1]), "label 9 is no token"),
        (causal_lm, np.full((1, 3, 4), np.inf), np.array([0, 2, 1]), "NaN"),
        (embeddings, np.full((1, 3), np.nan), None, "no cosine"),
        (raw, np.full((1, 3), np.inf), None, "no SQNR"),
    ],
)
def test_outputs_that_cannot_be_scored_are_named(task, output, label, words):
    with pytest.raises(InputError, match=words):
        task.keep([output.astype(np.float32)], np.asarray(label) if label is not None else None)


def test_more_than_the_store_can_hold_says_how_many_samples_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "LARGEST_BYTES", 1000)
    with pytest.raises(InputError, match="set `samples` to 10 or fewer"):
        kept_of("outputs", 0.0, tmp_path)


# A function of the user's own


@pytest.mark.parametrize(
    ("returned", "words"),
    [(np.ones((3, 2)), "for 3 samples"), (2.0, "for 3 samples"), (["a", "b", "c"], "no finite numbers"), ([1, np.nan, 2], "no finite numbers")],
)
def test_what_a_users_function_must_not_return(returned, words):
    with pytest.raises(InputError, match=words):
        function.checked(returned, "m.py:f", 3)


def test_a_users_function_gets_outputs_without_their_batch_axis_and_labels(tmp_path):
    (tmp_path / "m.py").write_text(
        "import numpy as np\ndef f(predictions, labels): return [len(predictions), predictions[1].ndim, predictions[0][labels[2], 0]]\n"
    )
    np.save(tmp_path / dataset.LABELS, np.array([0, 1, 2, 9]))
    kept = {"output_1": np.zeros((3, 1, 4, 4)), "output_0": np.arange(6.0).reshape(3, 1, 2)}
    assert function.score("m.py:f", str(tmp_path), kept, str(tmp_path))["scores"].tolist() == [2, 3, 4]


def test_what_a_users_function_says_is_right_or_a_number():
    (right,) = open_task({"score": "m.py:hit_or_miss"}).scores({"scores": np.array([True, False])}, None, None)
    assert (right.metric.title, right.metric.kind, right.metric.unit) == ("hit or miss", "right", "%")
    (number,) = open_task({"score": "m.py:f", "title": "overlap", "unit": "mm", "higher_is_better": False}).scores({"scores": np.ones(2)}, None, None)
    assert (number.metric.title, number.metric.kind, number.metric.unit, number.metric.higher_is_better) == ("overlap", "mean", "mm", False)


def test_a_python_function_is_a_task_by_its_file():
    made = Study(name="s", models={"m": "a.py:b"}, test="c.py:d", recipes=("float32",), runtimes=("onnxruntime",), task=labels_of)
    assert made.task.score == f"{Path(__file__).resolve()}:labels_of" or made.task.score.endswith("test_tasks:labels_of")
    with pytest.raises(ValueError, match="top of a file"):
        Study(**{**made.model_dump(), "task": lambda predictions, labels: 0})


# Studies

TOKEN_MODEL = """

def tokens():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(40, 64), nn.Linear(64, 40)).eval()
"""
TOKEN_DATA = """

def ids(seed, count):
    return {"input": np.random.default_rng(seed).integers(0, 40, (count, 9))}

def token_calibration():
    return ids(1, 16)

def documents(limit):
    found = ids(2, limit)
    return found, found["input"]

def tagged(limit):
    found = ids(2, limit)
    return found, np.where(found["input"] % 5 == 0, -100, found["input"] % 7)

def alike(limit):
    x = np.random.default_rng(2).standard_normal((limit, 64)).astype(np.float32)
    x[1::2] = x[::2] + 0.3 * x[1::2]
    return {"input": x}, np.arange(limit) // 2

def numbers(limit):
    inputs, _ = part(2, limit)
    return inputs, inputs["input"][:, :10]

def unlabelled(limit):
    return part(2, limit)[0]

def margin(predictions, labels):
    top = np.sort(predictions, axis=1)
    return top[:, -1] - top[:, -2]
"""
CASES = {  # task: test data, model, title of its score, what its p is from
    "classification": ("test", "load", "accuracy", "exact McNemar"),
    "regression": ("numbers", "load", "mean absolute error", "sign-flip permutation"),
    "embeddings": ("alike", "load", "recall@1", "exact McNemar"),
    "outputs": ("unlabelled", "load", "SQNR", ""),
    "token_classification": ("tagged", "tokens", "token accuracy", "sign-flip permutation"),
    "causal_lm": ("documents", "tokens", "perplexity", "sign-flip permutation"),
    "{score: 'data.py:margin', title: 'margin', unit: 'logits'}": ("unlabelled", "load", "margin", "sign-flip permutation"),
}


def test_every_task_has_a_study():
    assert set(TASKS) <= set(CASES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for all of them: what one study exported the next one finds."""
    found = tmp_path_factory.mktemp("tasks")
    written(found)
    for name, text in (("model.py", TOKEN_MODEL), ("data.py", TOKEN_DATA)):
        (found / name).write_text((found / name).read_text() + text)
    return found


@pytest.mark.parametrize("task", CASES)
def test_a_study_of_every_task_is_reported_and_judged(folder, task):
    test, model, title, from_test = CASES[task]
    text = STUDY.replace("model.py:load", f"model.py:{model}").replace("data.py:test", f"data.py:{test}").replace(", int16x8", "").replace("mlp", model)
    text = text.replace("data.py:calibration", "data.py:token_calibration") if model == "tokens" else text
    (folder / "study.yaml").write_text(f"{text}task: {task}\n")
    found = evaluators.compare(folder / "study.yaml", folder / "out", TextProgress(StringIO()))
    assert [arm.status for arm in found.arms] == ["done", "done"], found.arms
    float32, int8 = (arm.accuracy for arm in found.arms)
    assert int8.metric.title == title and int8.test == from_test and int8.count == 40 and float32.difference is None
    assert int8.worse + int8.better > 0 or int8.metric.unit == "%"
    text = {"md": markdown.page(found, {}), "csv": rows.to_csv(found), "json": rows.to_json(found), "terminal": printed(found)}
    assert all(title in shown or words.capital(title) in shown for shown in text.values())
    assert title in verdicts.verdict(found.arms[1]) and from_test in found.protocol[words.capital(title)]
    value = words.in_unit(int8.value.value, int8.metric)
    assert value in verdicts.verdict(found.arms[1]) and value in text["terminal"] and markdown.plain(value) in text["md"]
    judged(folder / "out", int8)


@pytest.mark.parametrize(("least", "said"), [(20, "none shown"), (120, "loss")])
def test_how_alike_outputs_must_be_is_the_studys_to_say(folder, least, said):
    text = STUDY.replace("mlp", "load").replace("data.py:test", "data.py:unlabelled").replace(", int16x8", "")
    (folder / "study.yaml").write_text(f"{text}task: outputs\nleast_sqnr: {least}\n")
    found = evaluators.compare(folder / "study.yaml", folder / "out", TextProgress(StringIO()))
    int8 = found.arms[1]
    assert int8.accuracy.flipped == 1 and reading.loss(int8) == said and reading.lossless(int8) == (said == "none shown")
    assert f"asked for {words.in_unit(least, int8.accuracy.metric)} at least" in verdicts.verdict(int8) and f"reaches {least} dB" in found.protocol["SQNR"]


def printed(found) -> str:
    text = StringIO()
    terminal.print_table(found, Console(file=text, width=140, force_terminal=False))
    return text.getvalue()


def judged(out: Path, score) -> None:
    """The gate knows the score's own unit, and says what it cannot ask of it."""
    about: Metric = score.metric
    scale = 100 if about.unit == "%" or about.kind == "perplexity" else 1
    if about.kind == "likeness":
        with pytest.raises(InputError, match="--worst-score"):
            check(out, Limits(drop=1.0))
    else:
        edge = scale * score.drop.high
        assert [f.outcome for f in check(out, Limits(drop=max(edge, 0) + 0.001))] == ["passed"]
        assert [f.outcome for f in check(out, Limits(drop=edge - 0.001))] == ["failed"]
    if about.unit != "%":
        with pytest.raises(InputError, match="--max-drop|--worst-score"):
            check(out, Limits(accuracy_drop=1.0))
    end = (score.value.low if about.higher_is_better else score.value.high) * (100 if about.unit == "%" else 1)
    step = 0.001 if about.higher_is_better else -0.001
    assert [f.outcome for limit in (end - step, end + step) for f in check(out, Limits(score=limit))] == ["passed", "failed"]
