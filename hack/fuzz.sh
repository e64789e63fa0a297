#!/usr/bin/env bash
# make fuzz: each target for SECONDS_EACH (60) seconds. Needs the nightly toolchain and cargo-fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
  echo "needs: rustup toolchain install nightly && cargo install cargo-fuzz" >&2
  exit 1
fi
for target in $(cargo +nightly fuzz list); do
  echo "== $target"
  cargo +nightly fuzz run "$target" -- -max_total_time="${SECONDS_EACH:-60}" -max_len=16384
done
