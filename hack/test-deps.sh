#!/usr/bin/env bash
# Installs what the tests need and the machine lacks, and says what. Debian or Ubuntu, root.
set -euo pipefail

missing=()
need() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
need nft nftables
need ip iproute2
need dig dnsutils
need curl curl
need wrk wrk
need h2load nghttp2-client
need python3 python3
need conntrack conntrack
need kubectl kubernetes-client
need iptables iptables
[ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
need node nodejs
need npm npm
need script bsdutils
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
[ -x /bin/busybox ] || missing+=(busybox-static)

if [ "${#missing[@]}" -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "the tests need root and these packages: sudo apt-get install ${missing[*]}" >&2
    exit 1
  fi
  echo "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi
if ! cargo deny --version >/dev/null 2>&1; then
  echo "installing cargo-deny"
  cargo install --quiet --locked cargo-deny
fi

# The client libraries that the tests drive, each as its own world installs it.
clients="${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/clients"
wanted='kubernetes==37.0.2 @kubernetes/client-node@1.4.0'
if [ "$(cat "$clients/done" 2>/dev/null)" != "$wanted" ]; then
  echo "installing $wanted"
  rm -rf "$clients"
  mkdir -p "$clients"
  python3 -m venv "$clients/venv"
  "$clients/venv/bin/pip" install --quiet --disable-pip-version-check "${wanted% *}"
  # Node trusts its own list of authorities unless told of the machine's; without them npm retries for minutes.
  [ ! -f /etc/ssl/certs/ca-certificates.crt ] || export NODE_EXTRA_CA_CERTS="${NODE_EXTRA_CA_CERTS:-/etc/ssl/certs/ca-certificates.crt}"
  timeout 300 npm install --silent --no-audit --no-fund --prefix "$clients" "${wanted#* }"
  echo "$wanted" >"$clients/done"
fi
if [ "$(id -u)" != 0 ]; then
  echo "network and end-to-end tests need root: sudo make test" >&2
  exit 1
fi
