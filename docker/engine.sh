#!/usr/bin/env bash
# A Docker engine and a Debian 12 base image on a bare Debian machine: no systemd, no registry, no bridge network.
# For tests and for hosts without a registry; whoever has a running Docker needs nothing of this. Root; idempotent.
#
#   docker/engine.sh up      installs docker.io and debootstrap with apt where they are missing, starts dockerd
#   docker/engine.sh base    makes the image wmse-base:bookworm from the machine's own Debian mirror
#   docker/engine.sh env     prints what a shell must evaluate to speak to that engine
#   docker/engine.sh down    stops the engine that `up` started, and removes what it left mounted
#   docker/engine.sh purge   the same, and deletes its images
set -euo pipefail

STATE=${WMSE_ENGINE:-/tmp/wmse-engine}
BASE_TAG=${BASE_TAG:-wmse-base:bookworm}
SOCKET=unix://$STATE/docker.sock
# Debian's own client has BuildKit built in; others need a plug-in for it that may not be installed.
DOCKER=/usr/bin/docker

fail() { echo "docker/engine.sh: $*" >&2; exit 1; }

docker_() { DOCKER_HOST=$SOCKET "$DOCKER" "$@"; }

up() {
  [ "$(id -u)" = 0 ] || fail "only root can start an engine (this is $(id -un))"
  mkdir -p "$STATE"
  if ! [ -x /usr/sbin/dockerd ] || ! command -v debootstrap >/dev/null; then
    command -v apt-get >/dev/null || fail "there is no dockerd here and no apt to install it with"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends docker.io debootstrap; } >"$STATE/apt.log" 2>&1 \
      || { tail -n 5 "$STATE/apt.log" >&2; fail "apt could not install docker.io and debootstrap"; }
  fi
  if docker_ info >/dev/null 2>&1; then return; fi
  rm -f "$STATE/dockerd.pid"
  # Containers stay in this process's own memory group: they must not escape the limits that it runs under.
  local group
  group=$(awk -F: '$2 == "memory" || $1 == "0" { print $3; exit }' /proc/self/cgroup)
  group=${group%/}
  echo "$group" >"$STATE/cgroup"
  for hierarchy in /sys/fs/cgroup/*/; do
    if [ -d "$hierarchy${group#/}" ]; then echo "$hierarchy"; fi
  done >"$STATE/cgroup-had"
  # The engine outlives this script: it must not keep files of its callers open, locks among them.
  (
    for file in "/proc/$BASHPID/fd"/*; do
      if [ "${file##*/}" -gt 2 ]; then eval "exec ${file##*/}>&-"; fi
    done
    exec setsid nohup /usr/sbin/dockerd --host "$SOCKET" --data-root "$STATE/data" --exec-root "$STATE/exec" \
      --pidfile "$STATE/dockerd.pid" --storage-driver overlay2 --iptables=false --ip6tables=false --bridge=none \
      --cgroup-parent "$group/docker"
  ) >"$STATE/dockerd.log" 2>&1 </dev/null &
  for _ in $(seq 60); do
    if docker_ info >/dev/null 2>&1; then break; fi
    sleep 0.5
  done
  docker_ info -f 'dockerd {{.ServerVersion}}, {{.Driver}}' 2>/dev/null \
    || { tail -n 5 "$STATE/dockerd.log" >&2; fail "dockerd does not start on this machine"; }
}

base() {
  up
  if docker_ image inspect "$BASE_TAG" >/dev/null 2>&1; then return; fi
  local root=$STATE/rootfs mirror
  # The mirror that this machine's own apt uses.
  # shellcheck disable=SC2016 # a format of apt's, not of the shell
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
  rm -rf "$root"
  debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "$mirror" >"$STATE/debootstrap.log" 2>&1 \
    || { tail -n 5 "$STATE/debootstrap.log" >&2; fail "debootstrap failed"; }
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  # Behind a proxy with its own certificate authority, builds need what this machine trusts.
  find /usr/local/share/ca-certificates -name '*.crt' -exec cp {} "$root/usr/local/share/ca-certificates/" \; \
    2>/dev/null || true
  chroot "$root" update-ca-certificates >/dev/null 2>&1
  printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$root/etc/pip.conf"
  # Published images have an empty /dev, and Apptainer cannot always make device nodes.
  tar -C "$root" --exclude='./dev/*' -c . | docker_ import \
    --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' --change 'CMD ["bash"]' \
    - "$BASE_TAG" >/dev/null
  rm -rf "$root"
}

down() {
  local pid group
  pid=$(cat "$STATE/dockerd.pid" 2>/dev/null || true)
  if [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]; then
    docker_ ps -q | xargs -r "$DOCKER" -H "$SOCKET" rm -f >/dev/null
    kill "$pid"
    for _ in $(seq 60); do
      [ -d "/proc/$pid" ] || break
      sleep 0.5
    done
  fi
  awk -v state="$STATE/" 'index($2, state) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r -n1 umount
  group=$(cat "$STATE/cgroup" 2>/dev/null || true)
  [ -n "$group" ] || return 0
  for hierarchy in /sys/fs/cgroup/*/; do
    if [ -d "$hierarchy${group#/}/docker" ]; then
      find "$hierarchy${group#/}/docker" -depth -type d -exec rmdir {} + 2>/dev/null || true
    fi
    # Only the groups that dockerd itself had added.
    grep -qxF "$hierarchy" "$STATE/cgroup-had" || (cd "$hierarchy" && rmdir -p "${group#/}" 2>/dev/null) || true
  done
  rm -f "$STATE/cgroup" "$STATE/cgroup-had"
}

case ${1:-} in
  up) up ;;
  base) base ;;
  env) echo "export DOCKER_HOST=$SOCKET DOCKER=$DOCKER BASE_IMAGE=$BASE_TAG" ;;
  down) down ;;
  purge) down; rm -rf "$STATE" ;;
  *) sed -n '2,9p' "$0"; exit 2 ;;
esac
