#!/bin/sh
# Installs the programs that the tests in this folder talk to: clients and libraries as packages, the servers of
# tftpd-hpa and atftpd into .cache/peers, because these two packages exclude each other and would start services.
# It installs on Debian as root only, it does nothing when all is there, and it never fails: what is missing is named in
# one line, and the tests that need it skip.

set -u
umask 022
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1

checkout=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd) || exit 0
cache=$checkout/.cache/peers
log=$cache/install.log

has_client() {
    case $1 in
        busybox) busybox --list 2>/dev/null | grep -qx tftp ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

has_server() {
    [ -x "$cache/$1" ] && ! ldd "$cache/$1" 2>/dev/null | grep -q 'not found'
}

# What is missing, as lines "client PROGRAM PACKAGE" and "server PROGRAM PACKAGE".
missing() {
    while read -r kind program package; do
        "has_$kind" "$program" || echo "$kind $program $package"
    done <<EOF
client curl curl
client tftp tftp-hpa
client atftp atftp
client busybox busybox
client dnsmasq dnsmasq-base
client openssl openssl
client ip iproute2
server in.tftpd tftpd-hpa
server atftpd atftpd
EOF
}

apt_get() {
    apt-get -q -y -o DPkg::Lock::Timeout=120 -o Acquire::http::Timeout=20 -o Acquire::Retries=1 "$@" \
        </dev/null >>"$log" 2>&1
}

# Installs those that apt knows and that are not installed, so that none is upgraded or marked as wanted.
install_packages() {
    wanted=
    for package; do
        ! dpkg -s "$package" 2>/dev/null | grep -q '^Status: .* installed$' || continue
        ! apt-cache show --no-all-versions "$package" >/dev/null 2>&1 || wanted="$wanted $package"
    done
    # shellcheck disable=SC2086  # a list of names
    [ -z "$wanted" ] || apt_get install --no-install-recommends $wanted
}

# Unpacks the program of a package that is not to be installed, and installs the libraries that it is linked with.
unpack_server() {
    folder=$(mktemp -d "$cache/unpack.XXXXXX") || return
    if (cd "$folder" && apt_get download "$2" && dpkg -x ./*.deb . >>"$log" 2>&1); then
        libraries=$(dpkg-deb -f "$folder"/*.deb Depends | tr ',' '\n' | sed -n 's/^ *\(lib[a-z0-9.+-]*\).*/\1/p')
        # shellcheck disable=SC2086
        install_packages $libraries
        mv -f "$folder/usr/sbin/$1" "$cache/$1"
    fi
    rm -rf "$folder"
}

install_missing() {
    # shellcheck disable=SC2046
    install_packages $(missing | sed -n 's/^client [^ ]* //p')
    missing | sed -n 's/^server //p' | while read -r program package; do
        unpack_server "$program" "$package"
    done
}

[ -n "$(missing)" ] || exit 0

if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && mkdir -p "$cache" 2>/dev/null; then
    echo "installing the peers of tests/interop (once)" >&2
    rm -f "$log"
    install_missing
    if [ -n "$(missing)" ]; then # the package lists are empty or out of date
        apt_get update
        install_missing
    fi
    hint="$log says why"
else
    hint="'make test' as root on Debian installs them"
fi

names=$(missing | cut -d ' ' -f 2 | paste -s -d ' ' -)
[ -z "$names" ] || echo "tests/interop will skip what needs: $names ($hint)" >&2
exit 0
