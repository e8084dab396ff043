#!/usr/bin/env bash
# docker/wmse-repro.sif from the local Docker image, or from a file that `docker save` wrote:
#
#   docker/sif.sh [IMAGE | ARCHIVE.tar] [OUTPUT.sif]
set -euo pipefail

source=${1:-wmse-repro}
output=${2:-docker/wmse-repro.sif}
command -v apptainer >/dev/null || { echo "docker/sif.sh: needs apptainer on the path" >&2; exit 1; }
work=$(mktemp -d "${TMPDIR:-/tmp}/wmse-sif.XXXXXX")
trap 'rm -rf "$work"' EXIT
archive=$source
if ! [ -f "$archive" ]; then
  archive=$work/image.tar
  "${DOCKER:-docker}" save "$source" --output "$archive"
fi
mkdir "$work/tmp" "$work/cache"
# zstd at its fastest takes half the time of the default and reads faster, at about the same size.
APPTAINER_TMPDIR=$work/tmp APPTAINER_CACHEDIR=$work/cache apptainer --quiet build --force \
  --mksquashfs-args "-comp zstd -Xcompression-level 1 -no-progress" "$work/image.sif" "docker-archive:$archive"
mv "$work/image.sif" "$output"
echo "$output: $(($(stat -c %s "$output") >> 20)) MiB"
