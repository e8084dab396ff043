#!/usr/bin/env bash
# Snakemake runs this once in the new conda environment: the package itself, as it lies in the project's folder.
set -euo pipefail
python -m pip install --no-deps --no-build-isolation --editable "$WMSE_PROJECT"
