#!/usr/bin/env bash
# make install, make uninstall: the binary, its manual pages, completions and systemd unit below a prefix, and away again.
set -euo pipefail
usage="usage: install.sh install BINARY PREFIX [ALIAS] | uninstall PREFIX"
verb=${1:?$usage}
case $verb in
install) skiff=${2:?$usage} prefix=${3:?$usage} alias=${4-} ;;
uninstall) prefix=${2:?$usage} ;;
*) echo "$usage" >&2; exit 2 ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
man=$prefix/share/man/man1
bash=$prefix/share/bash-completion/completions
zsh=$prefix/share/zsh/site-functions
fish=$prefix/share/fish/vendor_completions.d
unit=$prefix/lib/systemd/system/skiff@.service

# names: skiff, and what links to it.
names() {
  echo skiff
  find "$prefix/bin" -maxdepth 1 -type l -lname skiff -printf '%f\n' 2>/dev/null || true
}

if [ "$verb" = uninstall ]; then
  for name in $(names); do
    rm -f "$prefix/bin/$name" "$bash/$name" "$zsh/_$name" "$fish/$name.fish"
  done
  rm -f "$man/skiff.1" "$man"/skiff-*.1 "$unit"
  echo "skiff is gone from $prefix; clusters that are still there: they need it to be deleted (skiff delete --all)"
  exit
fi
install -d "$prefix/bin" "$man" "$bash" "$zsh" "$fish" "$(dirname "$unit")"
# By rename: a running daemon keeps the file that it was started from.
install -m 755 "$skiff" "$prefix/bin/.skiff.new"
mv "$prefix/bin/.skiff.new" "$prefix/bin/skiff"
[ -z "$alias" ] || ln -sfn skiff "$prefix/bin/$alias"
"$prefix/bin/skiff" man "$man"
for name in $(names); do
  "$prefix/bin/$name" completion bash >"$bash/$name"
  "$prefix/bin/$name" completion zsh >"$zsh/_$name"
  "$prefix/bin/$name" completion fish >"$fish/$name.fish"
done
# DESTDIR is where the files lie now, not where they will be.
sed "s|@BINDIR@|${prefix#"${DESTDIR-}"}/bin|" "$here/package/skiff@.service" >"$unit"
chmod 644 "$unit"
echo "skiff is in $prefix/bin; under minikube's name too: make install ALIAS=minikube"
