#!/bin/sh
# `docker run wmse-repro` runs the DAG; arguments that begin with a dash go to Snakemake, anything else is a command.
set -eu
case "${1:-}" in
    "" | -*)
        if [ -e /proc/driver/nvidia/version ]; then echo "GPU: found"; else echo "GPU: none, running on the CPU"; fi
        exec snakemake --cores all "$@"
        ;;
    *) exec "$@" ;;
esac
