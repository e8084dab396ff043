#!/usr/bin/env bash
# docker/wmse-repro.sif from the local Docker image, or from a file that `docker save` wrote, compressed or not:
#
#   docker/sif.sh [IMAGE | ARCHIVE.tar[.gz]] [OUTPUT.sif]
set -euo pipefail

source=${1:-wmse-repro}
output=${2:-docker/wmse-repro.sif}
command -v apptainer >/dev/null || { echo "docker/sif.sh: needs apptainer on the path" >&2; exit 1; }
work=$(mktemp -d "${TMPDIR:-/tmp}/wmse-sif.XXXXXX")
trap 'rm -rf "$work"' EXIT
archive=$work/image.tar
if ! [ -f "$source" ]; then
  # Without a tag, all tags of that name would be saved.
  case ${source##*/} in *[:@]*) ;; *) source=$source:latest ;; esac
  "${DOCKER:-docker}" save "$source" --output "$archive"
elif [ "$(od -An -tx1 -N2 "$source")" = " 1f 8b" ]; then # gzip
  gzip --decompress --stdout "$source" >"$archive"
else
  archive=$source
fi
mkdir "$work/tmp" "$work/cache"
# zstd at its fastest takes half the time of the default and reads faster, at about the same size.
APPTAINER_TMPDIR=$work/tmp APPTAINER_CACHEDIR=$work/cache apptainer --quiet build --force \
  --mksquashfs-args "-comp zstd -Xcompression-level 1 -no-progress" "$work/image.sif" "docker-archive:$archive"
mv "$work/image.sif" "$output"
echo "$output: $(($(stat -c %s "$output") >> 20)) MiB"
