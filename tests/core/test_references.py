"""References to a user's own code and data."""

import numpy as np
import pytest

from compress.errors import InputError
from compress.references import load_data, load_model, resolve


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "neighbour.py").write_text("VALUE = 7\n")
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom neighbour import VALUE\ndef model(): return VALUE\ndef data(limit=5): return np.ones((limit, 2)), np.zeros(limit)\n"
    )
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    return tmp_path


def test_files_import_their_neighbours(folder):
    assert load_model("mine.py:model", folder) == 7


def test_data_from_code_and_files(folder):
    inputs, labels = load_data("mine.py:data", folder, limit=3)
    assert inputs.shape == (3, 2) and labels.shape == (3,)
    inputs, labels = load_data("x.npy", folder)
    assert inputs.shape == (3, 2) and labels is None


def test_modules_resolve():
    assert resolve("json:dumps")(1) == "1"


@pytest.mark.parametrize(
    ("reference", "message"),
    [("mine.py:modell", "did you mean 'model'"), ("other.py:f", "no such file"), ("no_such_package:f", "no module"), ("mine.py", "write `file.py:function`")],
)
def test_bad_references_say_what_is_missing(folder, reference, message):
    with pytest.raises(InputError, match=message):
        resolve(reference, folder)


def test_pickled_arrays_are_refused(folder):
    np.save(folder / "evil.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        load_data("evil.npy", folder)
