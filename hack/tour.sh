#!/usr/bin/env bash
# make run: starts a cluster with the given binary and walks through its main job, showing each command.
set -euo pipefail
skiff=${1:?usage: tour.sh SKIFF}
profile=tour
if [ "$(id -u)" != 0 ]; then
  echo "namespaces, mounts and links need root; run: sudo make run" >&2
  exit 1
fi
bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'
[ -t 1 ] || bold='' dim='' plain=''

say() { printf '\n%s# %s%s\n' "$dim" "$1" "$plain"; }
show() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; "$@"; }

if ! command -v kubectl >/dev/null 2>&1; then
  say "there is no kubectl on this machine; installing Debian's kubernetes-client"
  apt-get update -qq && apt-get install -qq -y --no-install-recommends kubernetes-client >/dev/null
fi
skiff() { "$skiff" -p "$profile" "$@"; }

say "a cluster: one node, made of namespaces of this machine"
show skiff start
show kubectl get nodes

say "an application from the built-in image: two replicas of an echo server"
show kubectl create deployment web --image=localhost/skiff:latest --replicas=2 -- serve --http 8080
show kubectl expose deployment web --port=80 --target-port=8080
show kubectl rollout status deployment/web --timeout=60s
show kubectl get pods,service -o wide

say "another Pod resolves its name and fetches it through the ClusterIP"
show kubectl run client --image=localhost/skiff:latest --restart=Never -- sleep 3600
show kubectl wait --for=condition=Ready pod/client --timeout=60s
show kubectl exec client -- cat /etc/resolv.conf
show kubectl exec client -- nslookup web
show kubectl exec client -- wget -qO- web

say "go on as you like: kubectl is pointed at the cluster \"$profile\""
cat <<TEXT
  kubectl scale deployment web --replicas=5
  kubectl logs -l app=web
  $skiff -p $profile image load some-image.tar
remove it all:
  $skiff -p $profile delete
TEXT
