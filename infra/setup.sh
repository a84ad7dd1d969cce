#!/usr/bin/env bash
# Installs what building, checking and testing need on Debian 12 with a Rust toolchain and Python 3.11.
# Debian packages go into the system, everything else into .venv. Safe to run again: it installs only what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

sam_version=1.170.0
cargo_lambda_version=1.9.2
zig_version=0.17.1
cargo_deny_version=0.20.2

packages=(
  build-essential          # C compiler and linker: aws-lc, SQLite
  cmake                    # aws-lc
  python3-venv             # .venv
  openssl                  # a TLS server and its certificates for the tests of `stopover doctor`
  jq                       # merges daemon.json in what `stopover setup` prints
  docker-registry          # the upstream of the tests and the benchmark, and a peer of the benchmark
  apache2-utils            # htpasswd for an upstream with a password
  skopeo podman buildah    # clients
  containerd docker.io     # clients with a daemon
  crun                     # podman refuses to start without an OCI runtime
  uidmap slirp4netns fuse-overlayfs # podman without root
  wrk nginx-light          # benchmark: load generator, peer
)

say() { printf 'setup: %s\n' "$*"; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "apt packages: ${missing[*]}"
  # docker-registry, nginx and the daemons are wanted as programs. Without this policy Debian would start them as services,
  # and docker-registry would take port 5000.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'as_root rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
  fi
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  # Nor after the next boot.
  for service in docker-registry nginx:nginx-light containerd docker:docker.io docker.socket:docker.io; do
    if [ -d /run/systemd/system ] && [[ " ${missing[*]} " == *" ${service#*:} "* ]]; then
      as_root systemctl disable --quiet "${service%:*}"
    fi
  done
fi

[ -x .venv/bin/python ] || python3 -m venv .venv
say "PyPI: SAM CLI $sam_version, cargo-lambda $cargo_lambda_version, zig $zig_version"
.venv/bin/pip install --quiet --disable-pip-version-check \
  "aws-sam-cli==$sam_version" "cargo-lambda==$cargo_lambda_version" "ziglang==$zig_version"

if [ "$(.venv/bin/cargo-deny --version 2>/dev/null)" != "cargo-deny $cargo_deny_version" ]; then
  # A debug build takes a third of the time of a release build, and checks this workspace in a second.
  say "crates.io: cargo-deny $cargo_deny_version (a minute or two)"
  CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug --force --root .venv "cargo-deny@$cargo_deny_version"
fi
say "complete"
