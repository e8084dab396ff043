"""The workflow of this project in a real Snakemake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from builders import ROOT

# On a busy machine, threads that spin at every barrier of such tiny networks take each other's time.
PATIENT = {"GOMP_SPINCOUNT": "1000"}


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with the commands of this virtual environment first, and some more variables."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Snakemake in `folder`, with this project's workflow and the command `wmse` of this environment."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", "2"]
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment(**PATIENT), capture_output=True, text=True, timeout=800
    )
