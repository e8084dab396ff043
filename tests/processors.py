"""`make test-processors`: the numerical tests on two emulated processors, at the same time.

The libraries below torch choose their code by the processor, and add up in other orders on others. These variables
make them choose as on a lesser one; whatever a test of numbers relies on must hold there, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MACHINES = {
    "the least": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "NUMBA_CPU_NAME": "generic",
    },
    "AVX2, two threads": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "AVX2",
        "WMSE_TEST_THREADS": "2",
    },
}
FEWER = "not ten_million"  # Of the comparisons with Pillow, the shorter ones.
TESTS = (
    "tests/probes",
    "tests/test_encoder.py",
    "tests/test_losses.py",
    "tests/test_methods.py",
    "tests/test_streams.py",
    "tests/test_whitening.py",
    "tests/training/test_golden.py",
    "tests/training/test_optim.py",
    "tests/training/test_pretrain.py",
    "tests/views",
)


def run(name: str) -> tuple[str, str, float]:
    """The name of an emulated processor, pytest's last line (all of its output if a test failed), and the seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", FEWER, *TESTS, *sys.argv[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **MACHINES[name]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    output = done.stdout.strip() + done.stderr.strip()
    return name, output.splitlines()[-1] if done.returncode == 0 else output, time.monotonic() - started


def main() -> int:
    failed = 0
    with ThreadPoolExecutor(max(1, min(2, os.cpu_count() or 1))) as pool:
        for name, output, seconds in pool.map(run, MACHINES):
            ok = "\n" not in output
            failed += not ok
            print(f"{'pass' if ok else 'FAIL'}  {name:18}{seconds:5.0f} s  {output}", flush=True)
    print(f"{len(MACHINES) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
