#!/usr/bin/env bash
# make install, make uninstall: the binary, its manual pages and completions below a prefix, and away again.
set -euo pipefail
usage="usage: install.sh install BINARY PREFIX | uninstall PREFIX"
verb=${1:?$usage}
case $verb in
install) skiff=${2:?$usage} prefix=${3:?$usage} ;;
uninstall) prefix=${2:?$usage} ;;
*) echo "$usage" >&2; exit 2 ;;
esac
man=$prefix/share/man/man1
bash=$prefix/share/bash-completion/completions/skiff
zsh=$prefix/share/zsh/site-functions/_skiff
fish=$prefix/share/fish/vendor_completions.d/skiff.fish

if [ "$verb" = uninstall ]; then
  rm -f "$prefix/bin/skiff" "$man/skiff.1" "$man"/skiff-*.1 "$bash" "$zsh" "$fish"
  echo "skiff is gone from $prefix; clusters that are still there: they need it to be deleted (skiff delete --all)"
  exit
fi
install -d "$prefix/bin" "$man" "$(dirname "$bash")" "$(dirname "$zsh")" "$(dirname "$fish")"
# By rename: a running daemon keeps the file that it was started from.
install -m 755 "$skiff" "$prefix/bin/.skiff.new"
mv "$prefix/bin/.skiff.new" "$prefix/bin/skiff"
"$prefix/bin/skiff" man "$man"
"$prefix/bin/skiff" completion bash >"$bash"
"$prefix/bin/skiff" completion zsh >"$zsh"
"$prefix/bin/skiff" completion fish >"$fish"
echo "skiff is in $prefix/bin; under minikube's name too: ln -s skiff $prefix/bin/minikube"
