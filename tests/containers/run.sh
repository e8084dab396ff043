#!/usr/bin/env bash
# The image, built and used with real engines: `make test-containers`. What the machine lacks is started or installed
# first (root on Debian 12), and removed again; where that is impossible, the reason is said loudly and nothing is tested.
# WMSE_CONTAINERS=required turns that into a failure. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d "${TMPDIR:-/tmp}/wmse-containers.XXXXXX")
started=
# shellcheck disable=SC2329 # called by the trap
cleanup() {
  if [ -n "$started" ]; then
    WMSE_ENGINE=$work/engine docker/engine.sh purge || echo "tests/containers/run.sh: the engine in $work is still there" >&2
  elif [ -n "${IMAGE:-}" ]; then
    "$DOCKER" image rm --force "$IMAGE" >/dev/null 2>&1 || true
  fi
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

skip() {
  printf '\n%s\n' "################################################################################"
  printf '##  CONTAINERS NOT TESTED: %s\n' "$*"
  printf '%s\n\n' "################################################################################"
  if [ "${WMSE_CONTAINERS:-}" = required ]; then exit 1; fi
  echo "0 passed, 0 failed, all skipped"
  exit 0
}
stage() { echo "== $1 (after $SECONDS s)"; }

# The engine's layers, the copy of them that `docker save` makes, the archive, and what Apptainer unpacks of it.
need=40
free=$(($(df --output=avail --block-size=1 "$work" | tail -n 1) >> 30))
[ "$free" -ge $need ] || skip "they need $need GiB of disk, and $work has $free: free some, or name another disk by TMPDIR"

stage "engine"
export DOCKER=${DOCKER:-docker}
if ! "$DOCKER" info >/dev/null 2>&1; then
  [ "$(id -u)" = 0 ] || skip "no Docker engine runs here, and only root can start one"
  started=1
  WMSE_ENGINE=$work/engine docker/engine.sh base || skip "no Docker engine runs here, and none could be started (see above)"
  eval "$(WMSE_ENGINE=$work/engine docker/engine.sh env)"
  export DOCKER_HOST BASE_IMAGE
fi

stage "apptainer"
if ! command -v apptainer >/dev/null; then
  if docker/apptainer.sh install "$work/apptainer"; then
    export PATH=$work/apptainer/usr/bin:$PATH
  else
    export WMSE_NO_APPTAINER="it is not installed, and could not be (see above)"
    echo "##  APPTAINER NOT TESTED: $WMSE_NO_APPTAINER"
  fi
fi

stage "image"
# A revision of its own: it shows in the results which of them were computed inside.
export IMAGE=wmse-repro:test
make --no-print-directory image DOCKER="$DOCKER" IMAGE=$IMAGE BASE_IMAGE="${BASE_IMAGE:-}" REVISION=test-image \
  >"$work/build.log" 2>&1 || { tail -n 30 "$work/build.log"; echo "0 passed, 1 failed: the image does not build"; exit 1; }
tail -n 1 "$work/build.log"

# Of an engine of its own, what only the build needed: as much again as the image.
if [ -n "$started" ]; then "$DOCKER" builder prune --all --force >/dev/null; fi

if [ -z "${WMSE_NO_APPTAINER:-}" ]; then
  stage "sif"
  export SIF=$work/wmse-repro.sif
  TMPDIR=$work docker/sif.sh $IMAGE "$SIF"
fi

stage "tests"
status=0
# Without the common conftest.py, which gives every process a core of its own: an engine knows nothing of that.
pytest tests/containers --confcutdir tests/containers --numprocesses 2 --dist loadfile --basetemp "$work/pytest" "$@" || status=$?
exit $status
