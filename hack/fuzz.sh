#!/usr/bin/env bash
# make fuzz: each target for SECONDS_EACH (60) seconds, with the address sanitizer; hack/fuzz.sh TARGET... for some of them.
# The sanitizer's flags are the nightly compiler's; RUSTC_BOOTSTRAP lets the stable one take them, so that what is fuzzed is
# what is shipped. cargo-fuzz sets RUSTFLAGS, which leaves crt-static out: the sanitizer needs a dynamic C library.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v cargo-fuzz >/dev/null; then
  echo "needs cargo-fuzz: cargo install cargo-fuzz --locked" >&2
  exit 1
fi
export RUSTC_BOOTSTRAP=1
triple=(--target x86_64-unknown-linux-gnu)
cargo fuzz build "${triple[@]}"
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
failed=()
for target in "${targets[@]}"; do
  echo "== $target"
  cargo fuzz run "${triple[@]}" "$target" -- -max_total_time="${SECONDS_EACH:-60}" -max_len=16384 -timeout=20 \
    -rss_limit_mb=2048 -print_final_stats=1 || failed+=("$target")
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}; inputs are in fuzz/artifacts" >&2; exit 1; }
