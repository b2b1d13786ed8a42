#!/usr/bin/env bash
# Builds target/deb/animd_VERSION_amd64.deb with nothing but cargo, binutils and dpkg-deb.
#   PROFILE     cargo's profile: dist, what is released, or release, what the tests have built already
#   CUDA        0 leaves the GPU backend out, which nvcc compiles
#   VERSION     the package's version, if it is not the workspace's
#   MAINTAINER  who answers for the package
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

profile=${PROFILE:-dist}
version=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}
maintainer=${MAINTAINER:-The animd founders <animd@animd.org>}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
built=$target/$profile

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

for tool in dpkg-deb readelf objdump strip gzip; do
    command -v "$tool" >/dev/null || fail "\`$tool\` is missing; it is in binutils, or in dpkg"
done
[ "$(uname -m)" = x86_64 ] || fail "the package is for amd64, and this machine is \`$(uname -m)\`"
# The same commit gives the same files.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

cargo build --profile "$profile" --locked --workspace --bins
if [ "${CUDA:-1}" != 0 ]; then
    # Builds the engine again, with the kernels; nothing else is rebuilt.
    cargo build --profile "$profile" --locked --workspace --features animd-engine/cuda --bin animd-engine
fi

tree=$target/deb/tree
rm -rf "$tree"
mkdir -p "$tree/DEBIAN"
put() { # MODE FILE PATH
    install -D -p -m "$1" "$2" "$tree/$3"
}
# Installs a file compressed, without a time stamp of its own.
pack() { # FILE PATH
    mkdir -p "$(dirname "$tree/$2")"
    gzip -9 -n -c "$1" >"$tree/$2"
    chmod 644 "$tree/$2"
}

# ---- programs ----
put 755 "$built/animctl" usr/bin/animctl
put 755 "$built/animd" usr/libexec/animd/animd
put 755 "$built/animd-engine" usr/libexec/animd/engine
put 755 "$built/animd-watch" usr/libexec/animd/animd-watch
strip --strip-unneeded "$tree"/usr/bin/animctl "$tree"/usr/libexec/animd/*
libraries=$(packaging/check-binaries.sh "$tree"/usr/bin/animctl "$tree"/usr/libexec/animd/*)
put 755 systemd/handover usr/libexec/animd/handover

# ---- systemd, D-Bus, polkit ----
for unit in animd animd-devices animd-handover; do
    put 644 "systemd/$unit.service" "usr/lib/systemd/system/$unit.service"
done
put 644 systemd/user/animd-watch.service usr/lib/systemd/user/animd-watch.service
put 644 systemd/animd.sysusers usr/lib/sysusers.d/animd.conf
put 644 systemd/animd.tmpfiles usr/lib/tmpfiles.d/animd.conf
put 644 systemd/animd.catalog usr/lib/systemd/catalog/animd.catalog
put 644 systemd/org.animd.Animd1.conf usr/share/dbus-1/system.d/org.animd.Animd1.conf
put 644 systemd/org.animd.Animd1.service usr/share/dbus-1/system-services/org.animd.Animd1.service
put 644 systemd/org.animd.animd1.policy usr/share/polkit-1/actions/org.animd.animd1.policy
put 644 systemd/org.animd.Animd1.rules usr/share/polkit-1/rules.d/org.animd.Animd1.rules

# ---- configuration and profiles ----
put 644 configs/animd.toml etc/animd/animd.toml
for file in configs/*.toml; do
    [ "$file" = configs/animd.toml ] || put 644 "$file" "usr/share/animd/profiles/${file##*/}"
done

# ---- the small model ----
(cd packaging/small-model/files && find . -type f -printf '%P\n') | while read -r file; do
    put 644 "packaging/small-model/files/$file" "usr/share/animd/models/small/$file"
done

# ---- documents ----
doc=usr/share/doc/animd
put 644 packaging/debian/copyright "$doc/copyright"
pack README.md "$doc/README.md.gz"
pack CHANGELOG.md "$doc/CHANGELOG.md.gz"
pack packaging/small-model/README.md "$doc/small-model.md.gz"
packaging/third-party.py >"$target/deb/third-party"
pack "$target/deb/third-party" "$doc/third-party.gz"
if [ -d packaging/examples ]; then
    (cd packaging && find examples -type f) | while read -r file; do
        put "$([ -x "packaging/$file" ] && echo 755 || echo 644)" "packaging/$file" "$doc/$file"
    done
fi
cat >"$target/deb/changelog" <<END
animd ($version) unstable; urgency=medium

  * What has changed is told in CHANGELOG.md.gz.

 -- $maintainer  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
END
pack "$target/deb/changelog" "$doc/changelog.gz"

# Manual pages and completions, from the same source as --help.
"$built/animd-docs" "$tree/usr/share" >/dev/null
find "$tree/usr/share/man" -type f -exec gzip -9 -n {} +

# ---- control ----
(cd "$tree" && find etc -type f | sed 's|^|/|' | sort) >"$tree/DEBIAN/conffiles"
(cd "$tree" && find . -path ./DEBIAN -prune -o -type f -printf '%P\n' | grep -v '^etc/' | sort | xargs md5sum) \
    >"$tree/DEBIAN/md5sums"
size=$(du -sk --apparent-size --exclude=DEBIAN "$tree" | cut -f 1)
sed -e "s|@VERSION@|$version|" -e "s|@MAINTAINER@|$maintainer|" -e "s|@SIZE@|$size|" -e "s|@LIBRARIES@|$libraries|" \
    packaging/debian/control >"$tree/DEBIAN/control"
for script in preinst postinst prerm postrm; do
    sed -e '/@SYSUSERS@/{r systemd/animd.sysusers' -e 'd}' "packaging/debian/$script" >"$tree/DEBIAN/$script"
    chmod 755 "$tree/DEBIAN/$script"
done
find "$tree" -type d -exec chmod 755 {} +
chmod 644 "$tree"/DEBIAN/{control,conffiles,md5sums}

package=$target/deb/animd_${version}_amd64.deb
# zstd would not do: Debian 12 can read it, but older tools cannot.
dpkg-deb --root-owner-group -Zxz --build "$tree" "$package" >/dev/null
echo "$package: $(du -h "$package" | cut -f 1), $((size / 1024)) MiB installed; needs $libraries"

if command -v lintian >/dev/null; then
    lintian --allow-root --fail-on error,warning "$package"
    echo 'lintian finds nothing'
fi
