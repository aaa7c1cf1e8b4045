"""This project against its peers: `python -m benchmarks [NAME ...]`. Each line gives a ratio, its interval and the bar."""

import argparse
import subprocess
import sys
from importlib import import_module

BENCHMARKS = {
    "import": "benchmarks.import_time",
    "efficientnet": "benchmarks.efficientnet_static_int8",
    "minilm": "benchmarks.minilm_to_litert",
    "study": "benchmarks.study_overhead",
    "verdicts": "benchmarks.verdicts",
    "codebook": "benchmarks.codebook",
    "encoding": "benchmarks.encoding",
    "channels": "benchmarks.channels",
    "tfmot": "benchmarks.tfmot_training",
    "torchao-qat": "benchmarks.torchao_qat",
    "sparse": "benchmarks.sparse_files",
    "memory": "benchmarks.memory",
    "qlora": "benchmarks.qlora_step",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], default=[], help=f"some of {', '.join(BENCHMARKS)}; default: all")
    names = parser.parse_args().names or list(BENCHMARKS)
    if len(names) > 1:
        return max([subprocess.call([sys.executable, "-m", "benchmarks", name]) for name in names])  # none finds what another left in its process
    print(f"{names[0]} ...", file=sys.stderr, flush=True)
    short = False
    for what, measured, bar, reached in import_module(BENCHMARKS[names[0]]).run():
        print(f"{'ok   ' if reached else 'SHORT'} {what}: {measured} (bar: {bar})", flush=True)
        short |= not reached
    return int(short)


if __name__ == "__main__":
    raise SystemExit(main())
