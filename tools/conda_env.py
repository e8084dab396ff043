"""Write envs/wmse.yaml, the environment of the rules under --use-conda, from the lock file of the image.

    python tools/conda_env.py > envs/wmse.yaml      (make lock does it)

Conda gives Python and pip, pip installs the locked packages with their hashes: the same wheels, and so the same bits,
as in the image and in .venv.
"""

from __future__ import annotations

import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "envs" / "runtime.lock"
HEAD = """\
# Written by tools/conda_env.py from envs/runtime.lock; do not edit.
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def requirements(lock: str) -> list[str]:
    """Every requirement of a lock file with its hashes on one line."""
    joined = lock.replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def environment(lock: str) -> str:
    """The content of the environment file. Single quotes: markers contain double ones or need their own doubled."""
    quoted = (line.replace("'", "''") for line in requirements(lock))
    return HEAD + "".join(f"      - '{line}'\n" for line in quoted)


if __name__ == "__main__":
    sys.stdout.write(environment(LOCK.read_text(encoding="utf-8")))
