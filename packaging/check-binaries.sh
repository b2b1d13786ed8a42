#!/usr/bin/env bash
# Fails for programs that would not start on every distribution that the package supports: those with symbols newer than
# the C library of Ubuntu 22.04, or with libraries that a machine may lack, above all CUDA's. Prints the packages that
# the programs need.
set -euo pipefail

ceiling=2.35
bad=
refuse() {
    echo "error: \`$1\` $2" >&2
    bad=1
}

newest=0
needed=()
for program in "$@"; do
    symbols=$(objdump -T "$program" | grep -oE '\(GLIBC_[0-9.]+\) +.*|GLIBC_[0-9.]+ +.*' | tr -d '()' | sort -u)
    while read -r version symbol; do
        version=${version#GLIBC_}
        [ -n "$version" ] || continue
        newest=$(printf '%s\n' "$newest" "$version" | sort -V | tail -n 1)
        if [ "$(printf '%s\n' "$ceiling" "$version" | sort -V | tail -n 1)" != "$ceiling" ]; then
            refuse "${program##*/}" "needs \`$symbol\` of glibc $version, and Ubuntu 22.04 has $ceiling: build where glibc is not newer, or avoid the symbol"
        fi
    done <<<"$symbols"
    while read -r library; do
        case $library in
            libc.so.6 | libm.so.6 | ld-linux-x86-64.so.2) ;;
            libgcc_s.so.1) needed+=('libgcc-s1') ;;
            libstdc++.so.6) needed+=('libstdc++6 (>= 12)') ;;
            libsystemd.so.0) needed+=('libsystemd0 (>= 249)') ;;
            libcu* | libnv*) refuse "${program##*/}" "is linked to \`$library\`: it would not start without CUDA; load it at run time" ;;
            *) refuse "${program##*/}" "is linked to \`$library\`, of which packaging/check-binaries.sh does not know the package" ;;
        esac
    done < <(readelf -d "$program" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
done
[ -z "$bad" ] || exit 1
printf '%s\n' "libc6 (>= $newest)" "${needed[@]}" | sort -u | paste -s -d , | sed 's/,/, /g'
