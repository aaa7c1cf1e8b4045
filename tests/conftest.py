import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
threads = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"  # workers share the cores: more threads than cores are many times slower
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, threads)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["HF_HUB_OFFLINE"] = "1"
