#!/usr/bin/env bash
# Makes sure that the machine has what animd is built from, tested with, and run with. Installs what is missing with
# apt-get: as root or with YES=1 at once, otherwise after asking. Where everything is there, it changes nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# `cuda` adds what fetches the CUDA compiler and what that compiler needs, `emulate` what compiles CUDA kernels for this
# machine's processor, and `appliance` what tests the package on other versions of Debian.
purpose=${1:-}

has() {
    command -v "$1" >/dev/null
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

# Rust must come from rustup, because the distributions' version is too old. This script does not install it.
check_rust() {
    local needed found
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    has cargo || fail "\`cargo\` is not on the PATH; install Rust $needed or newer from https://rustup.rs"
    found=$(cargo --version | cut -d ' ' -f 2)
    if [ "$(printf '%s\n' "$needed" "${found%%-*}" | sort -V | head -n 1)" != "$needed" ]; then
        fail "cargo is $found, but animd needs Rust $needed or newer; run \`rustup update\`"
    fi
}

# Prints what is missing, one need per line: `cc`, `pkg-config`, `libsystemd`, `dbus`, `ffmpeg`, `python3`, and so on.
missing() {
    has cc || echo cc
    has pkg-config || echo pkg-config
    pkg-config --exists libsystemd 2>/dev/null || echo libsystemd
    has dbus-daemon || echo dbus
    { has ffmpeg && has ffprobe; } || echo ffmpeg
    has python3 || echo python3
    if [ "$purpose" = cuda ] || [ "$purpose" = emulate ]; then has c++ || echo c++; fi
    if [ "$purpose" = cuda ]; then python3 -m pip --version >/dev/null 2>&1 || echo pip; fi
    if [ "$purpose" = appliance ]; then
        has debootstrap || echo debootstrap
        has lintian || echo lintian
        { has ip && has pgrep && has hostname; } || echo iproute2 procps hostname
    fi
}

# Prints the package that provides a need.
package() { # MANAGER NEED
    case "$1 $2" in
        'apt cc') echo gcc libc6-dev ;;
        'apt libsystemd') echo libsystemd-dev ;;
        'apt c++') echo g++ ;;
        'dnf c++') echo gcc-c++ ;;
        'pacman c++') echo gcc ;;
        'apt pip' | 'dnf pip') echo python3-pip ;;
        'pacman pip') echo python-pip ;;
        'apt dbus') echo dbus ;; # its daemon is in dbus or in dbus-daemon, which dbus needs
        'dnf cc') echo gcc ;;
        'dnf pkg-config') echo pkgconf-pkg-config ;;
        'dnf libsystemd') echo systemd-devel ;;
        'dnf dbus') echo dbus-daemon ;;
        'pacman cc') echo gcc ;;
        'pacman pkg-config') echo pkgconf ;;
        'pacman libsystemd') echo systemd-libs ;;
        'pacman python3') echo python ;;
        *) echo "$2" ;;
    esac
}

packages() { # MANAGER
    local need
    missing | while read -r need; do package "$1" "$need"; done | tr '\n' ' ' | sed 's/ $//'
}

# The choice depends on the package manager that is there, so that relatives of Debian and Ubuntu work as well.
install_missing() {
    local list
    if ! has apt-get; then
        if has dnf; then
            fail "these packages are missing: $(packages dnf); install them with \`dnf install\` (ffmpeg with x264 is in RPM Fusion)"
        elif has pacman; then
            fail "these packages are missing: $(packages pacman); install them with \`pacman -S\`"
        fi
        fail "these are missing: $(missing | tr '\n' ' ')- install them with your distribution's package manager"
    fi

    read -r -a list <<<"$(packages apt)"
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        as_root=(sudo)
        if ! has sudo; then
            fail "these packages are missing, and there is no \`sudo\`: as root, run \`apt-get install ${list[*]}\`"
        fi
        if [ "${YES:-}" != 1 ]; then
            if [ ! -t 0 ]; then
                fail "these packages are missing, and nobody can be asked: run \`sudo apt-get install ${list[*]}\`, or set YES=1"
            fi
            local answer
            read -r -p "animd needs these packages: ${list[*]}. Install them with sudo apt-get? [Y/n] " answer
            case "$answer" in
                '' | y | Y | yes) ;;
                *) fail "nothing was installed; when ready, run \`sudo apt-get install ${list[*]}\`" ;;
            esac
        fi
    fi

    echo "Installing ${list[*]}"
    # An old list of packages is often good enough, so a mirror that does not answer does not stop the script.
    "${as_root[@]}" apt-get update -qq || echo 'warning: apt-get update failed; trying with the lists that are there' >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${list[@]}"
    if [ -n "$(missing)" ]; then
        fail "still missing after the installation: $(missing | tr '\n' ' ')"
    fi
}

check_rust
if [ -n "$(missing)" ]; then
    install_missing
fi
case "$(ffmpeg -hide_banner -encoders 2>/dev/null)" in
    *' libx264 '*) ;;
    *) fail "\`$(command -v ffmpeg)\` has no libx264; put one that has on the PATH (Debian's and Ubuntu's have)" ;;
esac
