#!/usr/bin/env bash
# make dist: a Debian package and a tarball out of what `make install` installs.
#
#     hack/package.sh BINARY OUT
#
# leaves OUT/skiff_VERSION_amd64.deb and OUT/skiff-VERSION-x86_64-linux.tar.gz, the same bytes for the same input.
# DEB_COMPRESSION names dpkg-deb's compression (default: its own). Needs dpkg-deb, tar and gzip.
set -euo pipefail
usage="usage: package.sh BINARY OUT"
skiff=$(realpath "${1:?$usage}")
mkdir -p "${2:?$usage}"
out=$(realpath "$2")
root=$(cd "$(dirname "$0")/.." && pwd)
version=$("$skiff" version --short)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 0)}

deb() {
  local tree=$work/deb doc
  DESTDIR=$tree "$root/hack/install.sh" install "$skiff" "$tree/usr" >/dev/null
  # Debian's places: site functions of packages, compressed pages.
  mkdir -p "$tree/usr/share/zsh/vendor-completions"
  mv "$tree/usr/share/zsh/site-functions/_skiff" "$tree/usr/share/zsh/vendor-completions/"
  rmdir "$tree/usr/share/zsh/site-functions"
  gzip -9n "$tree"/usr/share/man/man1/*.1
  doc=$tree/usr/share/doc/skiff
  mkdir -p "$doc" "$tree/DEBIAN"
  cp "$root/README.md" "$root"/docs/*.md "$doc/"
  cat >"$doc/copyright" <<'TEXT'
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: skiff

Files: *
Copyright: the skiff authors
License: Apache-2.0
 On Debian systems the text of this licence is in /usr/share/common-licenses/Apache-2.0.
TEXT
  printf 'skiff (%s) unstable; urgency=medium\n\n  * See README.md and CHANGELOG.md of the source.\n\n -- the skiff authors <skiff@localhost>  %s\n' \
    "$version" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.gz"
  cat >"$tree/DEBIAN/control" <<TEXT
Package: skiff
Version: $version
Architecture: amd64
Maintainer: the skiff authors <skiff@localhost>
Installed-Size: $(du -sk --exclude=DEBIAN "$tree" | cut -f1)
Recommends: kubernetes-client | kubectl, curl
Section: admin
Priority: optional
Description: Kubernetes with its whole network in one small binary
 A node is a few namespaces of this machine: no Docker, no virtual machine, no
 tunnel. Services, DNS, ingress and network policies come with it.
TEXT
  (cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
  local options=(--root-owner-group)
  [ -z "${DEB_COMPRESSION-}" ] || options+=("-Z$DEB_COMPRESSION")
  dpkg-deb "${options[@]}" --build "$tree" "$out/skiff_${version}_amd64.deb" >/dev/null
}

tarball() {
  local name=skiff-$version-x86_64-linux tree
  tree=$work/$name
  # Unpacked over a prefix, most often /usr/local.
  DESTDIR=$work/elsewhere "$root/hack/install.sh" install "$skiff" "$tree" >/dev/null
  sed -i "s|$tree/bin|/usr/local/bin|" "$tree/lib/systemd/system/skiff@.service"
  mkdir -p "$tree/share/doc/skiff"
  cp "$root/README.md" "$root/LICENSE" "$root"/docs/*.md "$tree/share/doc/skiff/"
  tar --create --directory "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" "$name" |
    gzip -n >"$out/$name.tar.gz"
}

deb
tarball
ls -l "$out"/skiff[-_]"$version"*
