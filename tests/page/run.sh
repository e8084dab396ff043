#!/usr/bin/env bash
# report.html in a headless Chromium: `make test-page`. Root on Debian installs one first where there is none. Where that is
# impossible, the reason is said loudly and nothing is tested. WMSE_PAGE=required turns that into a failure. Arguments
# go to pytest.
set -euo pipefail
cd "$(dirname "$0")/../.."

skip() {
  printf '\n%s\n' "################################################################################"
  printf '##  PAGE NOT TESTED: %s\n' "$*"
  printf '%s\n\n' "################################################################################"
  if [ "${WMSE_PAGE:-}" = required ]; then exit 1; fi
  echo "0 passed, 0 failed, all skipped"
  exit 0
}

if ! command -v chromedriver >/dev/null; then
  [ "$(id -u)" = 0 ] || skip "no Chromium is here, and only root can install one"
  command -v apt-get >/dev/null || skip "there is no apt here to install Chromium with"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends chromium chromium-driver; } >/dev/null ||
    skip "apt could not install Chromium"
fi
exec pytest tests/page "$@"
