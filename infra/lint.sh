#!/usr/bin/env bash
# Compiles a crate of the workspace with clippy: cargo calls this in place of rustc for infra/test.py --lint.
#
# Unit tests are not optimised, for which cargo has no setting beside that of the crate they are in: they run for seconds,
# and optimising what is compiled for them alone takes a minute and a half of processor. Where the tests of a program compute
# for longer, it is one of tests/, which is optimised as Cargo.toml says.
set -euo pipefail
arguments=("$@")
case " $* " in
  *" src/lib.rs "*" --test "* | *" src/bin/"*" --test "*) arguments=("${arguments[@]/#opt-level=*/opt-level=0}") ;;
esac
exec clippy-driver "${arguments[@]}"
