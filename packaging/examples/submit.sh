#!/bin/sh
# Makes a video of a picture over D-Bus with nothing but busctl, which comes with systemd, and prints where the video is, or
# why there is none:
#
#   submit.sh PICTURE PROMPT
#
# BUS=--user asks the session's animd; by default it is the system's.
#
# busctl before systemd 254 cannot pass an open file. With one of these a picture in a watched folder is named by its path
# (SubmitPath) instead; for any other picture use `animctl submit PICTURE -p PROMPT --wait`.
set -eu

if [ $# -ne 2 ]; then
    echo "usage: $0 PICTURE PROMPT" >&2
    exit 2
fi
bus=${BUS:---system}

call() { # PATH INTERFACE METHOD ARGUMENT...
    path=$1 interface=$2
    shift 2
    busctl "$bus" --json=short call org.animd.Animd1 "$path" "org.animd.Animd1.$interface" "$@"
}

property() { # JOB NAME
    value=$(busctl "$bus" get-property org.animd.Animd1 "$1" org.animd.Animd1.Job "$2") || return
    printf '%s\n' "$value" | cut -d ' ' -f 2 | tr -d '"'
}

# busctl needs the number of options: this is a dictionary with one entry.
if [ "$(busctl --version | sed -n '1s/systemd \([0-9]*\).*/\1/p')" -ge 254 ]; then
    # The picture is standard input, descriptor 0.
    reply=$(call /org/animd/Animd1 Manager Submit 'ha{sv}' 0 1 prompt s "$2" <"$1")
else
    reply=$(call /org/animd/Animd1 Manager SubmitPath 'sa{sv}' "$(realpath -- "$1")" 1 prompt s "$2")
fi
job=$(printf '%s\n' "$reply" | sed 's|.*"\(/org/animd/[^"]*\)".*|\1|')

while state=$(property "$job" State); do
    case $state in
    done | failed | canceled) break ;;
    esac
    echo "$state $(property "$job" Stage) $(property "$job" Progress)" >&2
    sleep 1
done

if [ -z "$state" ]; then
    echo "animd has gone away; it goes on with the job when it is back: animctl show ${job##*/}" >&2
    exit 1
fi

# Picks one value out of the description; for more, jq is the better tool.
value=output
[ "$state" = "done" ] || value=error_text
call "$job" Job Describe | sed -n 's|.*"'$value'":{"type":"s","data":"\([^"\\]*\(\\.[^"\\]*\)*\)".*|\1|p'
[ "$state" = "done" ]
