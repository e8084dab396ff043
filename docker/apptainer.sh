#!/usr/bin/env bash
# Apptainer on a Debian 12 machine that has no package of it. Whoever has `apptainer` needs nothing of this.
# It takes the package of Debian's unstable release and gives it a C library of its own, so that neither the system's
# library nor apt's sources change. Root; idempotent.
#
#   docker/apptainer.sh install FOLDER     makes FOLDER/usr/bin/apptainer; FOLDER cannot be moved afterwards
set -euo pipefail

fail() { echo "docker/apptainer.sh: $*" >&2; exit 1; }

[ "${1:-}" = install ] && [ -n "${2:-}" ] || { sed -n '2,6p' "$0"; exit 2; }
[ "$(id -u)" = 0 ] || fail "only root can install it (this is $(id -un))"
target=$(realpath -m "$2")
arch=x86_64-linux-gnu
if "$target/usr/bin/apptainer" --version 2>/dev/null; then exit; fi
[ "$(uname -m)" = x86_64 ] || fail "this is for x86_64 only"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v patchelf >/dev/null || ! command -v mksquashfs >/dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends patchelf squashfs-tools; } >"$work/log" 2>&1 \
    || { tail -n 5 "$work/log" >&2; fail "apt could not install patchelf and squashfs-tools"; }
fi

# A state of apt's own: the machine's sources stay as they are.
# shellcheck disable=SC2016 # a format of apt's, not of the shell
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
mkdir -p "$work"/apt/lists/partial "$work"/apt/cache/archives/partial "$work/debs" "$work/files"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/apt/sources.list"
options=(-o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/apt/lists"
  -o "Dir::Cache=$work/apt/cache" -o APT::Sandbox::User=root)
(apt-get "${options[@]}" update -qq && cd "$work/debs" \
  && apt-get "${options[@]}" download -qq apptainer libc6 libseccomp2 libsqlite3-0) >"$work/log" 2>&1 \
  || { tail -n 5 "$work/log" >&2; fail "the packages could not be downloaded"; }
for package in "$work"/debs/*.deb; do dpkg-deb -x "$package" "$work/files"; done

rm -rf "$target"
mkdir -p "$target/lib" "$target/usr/bin" "$target/usr/lib/$arch" "$target/usr/var/lib/apptainer/mnt/session"
cp -a "$work/files/usr/lib/$arch"/*.so* "$target/lib/"
cp -a "$work/files/usr/bin/apptainer" "$target/usr/bin/"
cp -a "$work/files/usr/lib/$arch/apptainer" "$target/usr/lib/$arch/"
cp -a "$work/files/etc" "$target/usr/etc"
rm -rf "$target/usr/etc/ld.so.conf.d"
# Its helper program takes usr/lib for the prefix.
ln -s ../var "$target/usr/lib/var"
ln -s ../etc "$target/usr/lib/etc"
ln -s apptainer "$target/usr/bin/singularity"
for program in "$target/usr/bin/apptainer" "$target/usr/lib/$arch/apptainer/bin/starter"; do
  patchelf --set-interpreter "$target/lib/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$target/lib" "$program"
done

# Root in a container or a small virtual machine may lack a capability: Apptainer must not ask for that one.
python3 - "$target/usr/etc/apptainer" <<'PYTHON'
import json
import re
import sys
from pathlib import Path

NAMES = """CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE""".split()
status = Path("/proc/self/status").read_text()
bounding = int(re.search(r"CapBnd:\s+(\w+)", status)[1], 16)
have = ["CAP_" + name for bit, name in enumerate(NAMES) if bounding >> bit & 1]
if len(have) < len(NAMES):
    folder = Path(sys.argv[1])
    settings = folder / "apptainer.conf"
    text = re.sub(r"(?m)^root default capabilities = .*", "root default capabilities = file", settings.read_text())
    settings.write_text(text)
    (folder / "capability.json").write_text(json.dumps({"users": {"root": have}}, indent=1))
PYTHON
"$target/usr/bin/apptainer" --version
