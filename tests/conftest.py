import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
threads = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"  # workers share the cores: more threads than cores are many times slower
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, threads)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` say why they are skipped where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    lack = gpu_lacks() if marked else ""
    for item in marked if lack else ():
        item.add_marker(pytest.mark.skip(reason=lack))


def gpu_lacks() -> str:
    from compress.errors import Unreachable
    from evaluators.targets import open_target

    try:
        open_target("cuda:0").check()
    except Unreachable as error:
        return str(error)
    return ""
