#!/usr/bin/env bash
# make bench: every figure of the issues, ours and the peer's side by side, printed and written to bench/*.json.
set -euo pipefail
skiff=${1:?usage: bench.sh SKIFF IMAGES}
images=${2:?usage: bench.sh SKIFF IMAGES}
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
  echo "benchmarks start clusters and need root; run: sudo make bench" >&2
  exit 1
fi
command -v wrk >/dev/null 2>&1 || echo "no wrk to ask with; install it: apt-get install wrk" >&2
command -v etcd >/dev/null 2>&1 || echo "no etcd to compare with; install it: apt-get install etcd-server" >&2
cargo build --release --package bench
bench=$(dirname "$skiff")/bench
config=$(mktemp -d)
export KUBECONFIG=$config/config
trap 'for p in benchrun benchuser; do "$skiff" -p "$p" delete >/dev/null 2>&1 || true; done; rm -rf "$config"' EXIT

"$bench" dns "$skiff"
"$bench" start "$skiff"
"$bench" user "$skiff" "$images"
"$skiff" -p benchrun start
"$bench" pods
"$bench" api --server "$(cat /run/skiff/benchrun/daemon.lock)"
"$bench" ingress
"$bench" services
"$bench" policy
"$bench" policy-live
"$bench" dns-live
hack/figures.py
