#!/bin/sh
# Makes images of the real nginx, Apache httpd and busybox from Debian (or Ubuntu) packages, in seconds, without Docker:
#
#     hack/make-test-images.sh CACHE_DIR
#
# leaves CACHE_DIR/nginx.tar, httpd.tar and busybox.tar (docker-archives named nginx:latest, httpd:latest and
# busybox:latest; nginx also under the tag 1.17 that the tutorial's policies ask for). What is there already is kept as
# long as this file does not change; remove a file to have it made again.
#
# Packages are downloaded and unpacked, never installed: no chroot, no maintainer script runs. What those scripts would
# have done (users, links, directories) is done here by hand. Needs apt-get with package lists, dpkg-deb, tar, ldconfig.
set -eu

cache=${1:?usage: make-test-images.sh CACHE_DIR}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
work=$(mktemp -d "$cache/.work.XXXXXX")
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
PATH=$PATH:/usr/sbin:/sbin

say() { echo "make-test-images: $*" >&2; }

# What only modules need that no page here uses (databases, certificates from the internet, Lua, XML filters): 60 MB.
unneeded='-dbd-|-ldap$|^libcurl|^liblua|^libjansson|^libxml2'

# closure PACKAGE...: these and the shared libraries they need, from the table of dependencies.
closure() {
    awk -v roots="$*" -v unneeded="$unneeded" '
        /^[^ <]/ { package = $1 }
        /^ *\|?(Pre)?Depends: / && $2 ~ /^(lib|zlib1g|nginx-common|nginx-core)/ && $2 !~ /perl/ && $2 !~ unneeded {
            needs[package] = needs[package] " " $2
        }
        END {
            count = split(roots, queue, " ")
            for (n = 1; n <= count; n++) seen[queue[n]] = 1
            for (n = 1; n <= count; n++) {
                print queue[n]
                more = split(needs[queue[n]], next_ones, " ")
                for (m = 1; m <= more; m++) if (!(next_ones[m] in seen)) {
                    seen[next_ones[m]] = 1
                    queue[++count] = next_ones[m]
                }
            }
        }' "$work/depends"
}

nginx_roots="nginx busybox-static base-files netbase"
# The dynamic one: a static busybox of Debian's cannot resolve names without the files of its own glibc.
busybox_roots="busybox libc6 base-files netbase"
# libgcc-s1: without it worker threads die silently when they end.
httpd_roots="apache2-bin libgcc-s1 busybox-static base-files netbase media-types"

# Downloads all packages that the cache does not have in the version that apt would install; $work/files names them.
fetch() {
    # apt keeps its parsed lists here for the calls below, even where the system's configuration forbids it.
    printf 'Dir::Cache::pkgcache "%s/pkgcache.bin";\nDir::Cache::srcpkgcache "%s/srcpkgcache.bin";\n' "$work" "$work" \
        >"$work/apt.conf"
    echo 'APT::Sandbox::User "root";' >>"$work/apt.conf"
    export APT_CONFIG="$work/apt.conf"
    # shellcheck disable=SC2086
    apt-cache depends --recurse --important $nginx_roots $httpd_roots $busybox_roots >"$work/depends"
    # shellcheck disable=SC2086
    packages=$(closure $nginx_roots $httpd_roots $busybox_roots)
    mkdir -p "$cache/debs" "$work/debs"
    # shellcheck disable=SC2086
    (cd "$work/debs" && apt-get -qq --print-uris download $packages) |
        sed "s/^'\([^']*\)' \([^ ]*\) .*/\2/" >"$work/files"
    missing=$(while read -r file; do [ -e "$cache/debs/$file" ] || echo "${file%%_*}"; done <"$work/files")
    if [ -n "$missing" ]; then
        # shellcheck disable=SC2086
        (cd "$work/debs" && apt-get -qq download $missing)
        mv "$work"/debs/*.deb "$cache/debs/"
    fi
}

# unpack ROOT PACKAGE...
unpack() {
    root=$1
    shift
    mkdir -p "$root/usr/bin" "$root/usr/lib" "$root/usr/lib64" "$root/usr/sbin"
    for dir in bin lib lib64 sbin; do ln -s "usr/$dir" "$root/$dir"; done
    for package in "$@"; do
        # A virtual or absent package of another release has no file; the checks below tell what really lacks.
        if file=$(grep "^${package}_" "$work/files"); then dpkg-deb --extract "$cache/debs/$file" "$root"; fi
    done
}

# What base packages' scripts would have made.
finish_root() {
    root=$1
    mkdir -p "$root/dev" "$root/etc" "$root/proc" "$root/root" "$root/run" "$root/sys" "$root/tmp" "$root/var/log" \
        "$root/var/tmp" "$root/home"
    chmod 700 "$root/root"
    chmod 1777 "$root/tmp" "$root/var/tmp"
    [ -e "$root/var/run" ] || ln -s ../run "$root/var/run"
    cat >"$root/etc/passwd" <<'EOF'
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
EOF
    cat >"$root/etc/group" <<'EOF'
root:x:0:
daemon:x:1:
tty:x:5:
www-data:x:33:
nogroup:x:65534:
EOF
    echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
    if [ -d "$root/etc/ld.so.conf.d" ] || ls "$root"/usr/lib/*/libc.so.6 >/dev/null 2>&1; then
        [ -e "$root/etc/ld.so.conf" ] || echo 'include /etc/ld.so.conf.d/*.conf' >"$root/etc/ld.so.conf"
        ldconfig -r "$root"
    fi
    rm -rf "$root/usr/share/doc" "$root/usr/share/man" "$root/usr/share/lintian"
}

# whole ROOT PROGRAM: every library of a program is in its root. apt leaves away, without a word, what old package lists no
# longer have an address for.
whole() {
    lacks=$({ "$1"/lib64/ld-linux-x86-64.so.2 --library-path "$1/usr/lib/x86_64-linux-gnu:$1/lib/x86_64-linux-gnu" --list "$1$2" || true; } |
        awk -v root="$1/" '$2 == "=>" && index($3, root) != 1 { print $1 }')
    [ -z "$lacks" ] || { say "no package for $lacks of $2; the lists may be old, run: apt-get update"; exit 1; }
}

# A link in /bin for every applet that nothing better provides.
link_applets() {
    "$1/bin/busybox" --list | while read -r applet; do
        [ -e "$1/bin/$applet" ] || [ -e "$1/sbin/$applet" ] || [ -L "$1/bin/$applet" ] || ln -s busybox "$1/bin/$applet"
    done
}

# The same for a busybox that needs the root's own libraries to run, and wget's --timeout, which Debian's busybox is
# built without and everybody else's has.
chroot_applets() {
    "$1"/lib64/ld-linux-x86-64.so.2 --library-path "$1/usr/lib/x86_64-linux-gnu" "$1/bin/busybox" --list |
        while read -r applet; do [ -e "$1/bin/$applet" ] || [ -L "$1/bin/$applet" ] || ln -s busybox "$1/bin/$applet"; done
    rm "$1/bin/wget"
    cat >"$1/bin/wget" <<'EOT'
#!/bin/sh
limit=900
for word; do
    shift
    case $word in --timeout=*) limit=${word#*=} ;; *) set -- "$@" "$word" ;; esac
done
timeout -s INT "$limit" busybox wget "$@"
code=$?
# 130: ended by that signal.
[ "$code" != 130 ] || { echo "wget: download timed out" >&2; code=1; }
exit "$code"
EOT
    chmod 755 "$1/bin/wget"
}

# pack NAME ROOT CONFIG [TAG...]: writes CACHE/NAME.tar with the tag latest and these; CONFIG is the JSON of the image's
# "config".
pack() {
    name=$1 root=$2 config=$3
    shift 3
    tags=$(for tag in latest "$@"; do printf ',"%s:%s"' "$name" "$tag"; done)
    out=$work/$name.image
    mkdir "$out"
    tar --create --file "$out/layer.tar" --directory "$root" --sort=name --numeric-owner --owner=0 --group=0 \
        --format=gnu --clamp-mtime --mtime=@1700000000 .
    diff_id=$(sha256sum "$out/layer.tar" | cut -d' ' -f1)
    printf '{"architecture":"amd64","os":"linux","created":"2023-11-14T22:13:20Z","config":%s,"rootfs":%s,"history":%s}' \
        "$config" "{\"type\":\"layers\",\"diff_ids\":[\"sha256:$diff_id\"]}" \
        '[{"created":"2023-11-14T22:13:20Z","created_by":"hack/make-test-images.sh"}]' >"$out/config.json"
    printf '[{"Config":"config.json","RepoTags":[%s],"Layers":["layer.tar"]}]' "${tags#,}" >"$out/manifest.json"
    tar --create --file "$work/$name.tar" --directory "$out" --sort=name manifest.json config.json layer.tar
    mv "$work/$name.tar" "$cache/$name.tar"
    rm -rf "$out" "$root"
    say "$name:latest ($(du -h "$cache/$name.tar" | cut -f1)) in $cache/$name.tar"
}

env_path='"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"'

make_busybox() {
    root=$work/busybox
    # shellcheck disable=SC2046,SC2086
    unpack "$root" $(closure $busybox_roots)
    finish_root "$root"
    rm -rf "$root/usr/lib/x86_64-linux-gnu/gconv" "$root/usr/share/common-licenses"
    chroot_applets "$root"
    pack busybox "$root" "{\"Env\":[$env_path],\"Cmd\":[\"sh\"]}"
}

# Debian's nginx with Debian's welcome page; paths and behaviour of the image that everybody knows: one site in
# /etc/nginx/conf.d/default.conf, pages in /usr/share/nginx/html, logs on stdout and stderr.
make_nginx() {
    root=$work/nginx
    # shellcheck disable=SC2046,SC2086
    unpack "$root" $(closure $nginx_roots)
    finish_root "$root"
    link_applets "$root"
    mkdir -p "$root/var/log/nginx" "$root/var/lib/nginx" "$root/etc/nginx/conf.d" "$root/etc/nginx/modules-enabled" \
        "$root/etc/nginx/sites-enabled"
    ln -sf /dev/stdout "$root/var/log/nginx/access.log"
    ln -sf /dev/stderr "$root/var/log/nginx/error.log"
    cat >"$root/etc/nginx/conf.d/default.conf" <<'EOF'
server {
    listen       80;
    server_name  localhost;

    location / {
        root   /usr/share/nginx/html;
        index  index.html index.htm;
    }
}
EOF
    grep -q 'Welcome to nginx!' "$root/usr/share/nginx/html/index.html"
    [ -x "$root/usr/sbin/nginx" ]
    whole "$root" /usr/sbin/nginx
    pack nginx "$root" "{\"Env\":[$env_path],\"Cmd\":[\"nginx\",\"-g\",\"daemon off;\"],\"StopSignal\":\"SIGQUIT\",\
\"ExposedPorts\":{\"80/tcp\":{}}}" 1.17
}

# Debian's Apache httpd with the places of the image that everybody knows: pages in /usr/local/apache2/htdocs,
# httpd-foreground, logs on stdout and stderr.
make_httpd() {
    root=$work/httpd
    # shellcheck disable=SC2046,SC2086
    unpack "$root" $(closure $httpd_roots)
    finish_root "$root"
    link_applets "$root"
    top=$root/usr/local/apache2
    mkdir -p "$top/htdocs" "$top/conf" "$top/logs" "$root/usr/local/bin"
    ln -s ../../../usr/lib/apache2/modules "$top/modules"
    echo '<html><body><h1>It works!</h1></body></html>' >"$top/htdocs/index.html"
    cat >"$top/conf/httpd.conf" <<'EOF'
ServerRoot "/usr/local/apache2"
ServerName localhost
Listen 80
LoadModule mpm_event_module modules/mod_mpm_event.so
LoadModule authz_core_module modules/mod_authz_core.so
LoadModule mime_module modules/mod_mime.so
LoadModule dir_module modules/mod_dir.so
LoadModule env_module modules/mod_env.so
LoadModule setenvif_module modules/mod_setenvif.so
LoadModule alias_module modules/mod_alias.so
LoadModule status_module modules/mod_status.so
User www-data
Group www-data
PidFile logs/httpd.pid
DefaultRuntimeDir logs
Mutex file:logs default
TypesConfig /etc/mime.types
DocumentRoot "/usr/local/apache2/htdocs"
<Directory />
    Require all denied
</Directory>
<Directory "/usr/local/apache2/htdocs">
    Options Indexes FollowSymLinks
    Require all granted
</Directory>
DirectoryIndex index.html
LogFormat "%h %l %u %t \"%r\" %>s %b" common
CustomLog /proc/self/fd/1 common
ErrorLog /proc/self/fd/2
LogLevel warn
EOF
    cat >"$root/usr/local/bin/httpd-foreground" <<'EOF'
#!/bin/sh
set -e
# A pid file of an earlier life would keep it from starting.
rm -f /usr/local/apache2/logs/httpd.pid
# By its path: busybox's shell would take its own applet of that name.
exec /usr/local/bin/httpd -DFOREGROUND "$@"
EOF
    cat >"$root/usr/local/bin/httpd" <<'EOF'
#!/bin/sh
exec /usr/sbin/apache2 -d /usr/local/apache2 -f /usr/local/apache2/conf/httpd.conf "$@"
EOF
    chmod 755 "$root/usr/local/bin/httpd-foreground" "$root/usr/local/bin/httpd"
    [ -x "$root/usr/sbin/apache2" ]
    whole "$root" /usr/sbin/apache2
    pack httpd "$root" "{\"Env\":[\"PATH=/usr/local/apache2/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"],\
\"Cmd\":[\"httpd-foreground\"],\"StopSignal\":\"SIGWINCH\",\"WorkingDir\":\"/usr/local/apache2\",\"ExposedPorts\":{\"80/tcp\":{}}}"
}

# Images of another recipe are made anew.
recipe=$(sha256sum "$0" | cut -d' ' -f1)
[ "$(cat "$cache/recipe" 2>/dev/null)" = "$recipe" ] || rm -f "$cache/busybox.tar" "$cache/nginx.tar" "$cache/httpd.tar"
wanted=
for image in busybox nginx httpd; do
    [ -s "$cache/$image.tar" ] || wanted="$wanted $image"
done
if [ -n "$wanted" ]; then
    fetch
    for image in $wanted; do "make_$image"; done
fi
echo "$recipe" >"$cache/recipe"
