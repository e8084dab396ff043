#!/bin/bash
# The image's entry point.
#
#   (nothing)          the DAG with the configuration in the image: the preset quick
#   -ARGUMENTS         ... with these arguments to Snakemake, e.g. -n, or --config preset=paper
#   COMMAND ARGUMENTS  that command, e.g. wmse runs, or bash
set -euo pipefail

home=/opt/wmse-repro
results=$home/results

fail() { echo "entrypoint: $*" >&2; exit 1; }

# The process becomes the owner of the results, so that what it writes belongs to the same user. If that is root, it stays
# root but drops all privileges. Where the container may not change users (--cap-drop), nothing happens here.
become_owner() {
  local uid gid drop
  [ "$(id -u)" = 0 ] && [ -z "${WMSE_USER_SET:-}" ] || return 0
  read -r uid gid < <(stat -c '%u %g' "$results")
  drop=(setpriv --no-new-privs --inh-caps=-all --ambient-caps=-all --bounding-set=-all)
  if [ "$uid" != 0 ]; then drop+=(--reuid "$uid" --regid "$gid" --clear-groups); fi
  if "${drop[@]}" true 2>/dev/null; then
    WMSE_USER_SET=1 exec "${drop[@]}" "$0" "$@"
  fi
}

describe_gpu() {
  if compgen -G '/dev/nvidia[0-9]*' >/dev/null || [ -e /dev/dxg ]; then
    echo "GPU: $(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | paste -sd, - || true)"
  elif [ -e /proc/driver/nvidia/version ]; then
    echo "GPU: the host has one, but this container was started without --gpus all: running on the CPU"
  else
    echo "GPU: none, running on the CPU"
  fi
}

# Snakemake does not pass SIGTERM on to its jobs. Here it has a process group of its own, and `docker stop` reaches every
# process of it, once: a training writes a checkpoint and ends. This script outlives them all.
run_snakemake() {
  local pid status=0 stopped=
  mkdir -p "$results/.snakemake" 2>/dev/null && [ -w "$results" ] \
    || fail "uid $(id -u) cannot write to $results, which belongs to uid $(stat -c %u "$results"): start the" \
      "container with --user $(stat -c %u:%g "$results"), or without --user"
  describe_gpu
  set -m
  snakemake "$@" &
  pid=$!
  set +m
  trap 'stopped=1; echo "entrypoint: stopping, trainings write their checkpoints"; kill -TERM -- "-$pid" || true' TERM INT
  while :; do
    status=0
    wait "$pid" || status=$?
    kill -0 "$pid" 2>/dev/null || break # else it was a signal that ended the waiting
  done
  while kill -0 -- "-$pid" 2>/dev/null; do sleep 0.1; done
  if [ -n "$stopped" ] && [ "$status" != 0 ]; then status=143; fi
  exit "$status"
}

become_owner "$@"
cd "$PWD" 2>/dev/null || cd "$home"
case ${1:-} in
  "" | -*) run_snakemake --cores all "$@" ;;
  snakemake) shift && run_snakemake "$@" ;;
  *) exec "$@" ;;
esac
