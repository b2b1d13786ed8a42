#!/usr/bin/env bash
# Shows the whole path on this machine: builds animd, starts the service with the small model on a bus of its own, drops
# a photograph into its inbox, waits for the video, and makes a contact sheet of it. Writes only below target/demo.
# PROMPT, SIZE and FRAMES can be set; the model's own file has what is not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

frames=${FRAMES:-81}
prompt=${PROMPT:-The camera moves slowly closer.}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export PATH=$target/release:$PATH
# The user's own animd, if any, has nothing to do with this one.
for variable in "${!ANIMD_@}"; do unset "$variable"; done
run=
children=()

# Ends the processes that were started, the last one first. Each child leads a process group of its own.
end_children() {
    local i child
    for ((i = ${#children[@]} - 1; i >= 0; i--)); do
        child=${children[i]}
        kill -TERM -- "-$child" 2>/dev/null || continue
        for _ in {1..100}; do
            kill -0 -- "-$child" 2>/dev/null || continue 2
            sleep 0.1
        done
        kill -KILL -- "-$child" 2>/dev/null || true
    done
}

finish() {
    local status=$?
    trap - EXIT
    trap '' INT TERM
    end_children
    case $status in
        0) ;;
        130 | 143) printf '\nstopped\n' >&2 ;;
        *)
            status=1
            if [ -n "$run" ] && [ -s "$run/animd.log" ]; then
                printf '\nThe demo failed. The end of %s:\n\n' "$run/animd.log" >&2
                tail -n 30 "$run/animd.log" >&2
            else
                printf '\nThe demo failed.\n' >&2
            fi
            ;;
    esac
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

echo "Building animd (a first build takes some minutes)"
# Only what the demo runs, and with the features that a build of all of the workspace has, so that the two share it.
cargo build --release --locked --workspace --bin animd --bin animctl --bin animd-engine

mkdir -p "$target/demo"
run=$(mktemp -d "$target/demo/$(date +%Y%m%d-%H%M%S)-XXXX")
cat >"$run/bus.conf" <<'END'
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <!-- Not below target/demo: a socket's path has at most 107 bytes. -->
  <listen>unix:tmpdir=/tmp</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="false"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
</busconfig>
END
cat >"$run/animd.toml" <<END
[model]
path = "$PWD/packaging/small-model/files"

[folders]
inbox = "inbox"
outbox = "outbox"
state = "state"

[defaults]
seed = 42
END

echo "Starting a private D-Bus bus and the service"
setsid dbus-daemon --config-file="$run/bus.conf" --nofork --nopidfile --print-address=3 \
    3>"$run/bus.address" >"$run/bus.log" 2>&1 </dev/null &
children+=($!)
for _ in {1..100}; do
    [ -s "$run/bus.address" ] && break
    sleep 0.1
done
[ -s "$run/bus.address" ] || fail "dbus-daemon did not start: $(tail -n 3 "$run/bus.log")"
DBUS_SESSION_BUS_ADDRESS=$(cat "$run/bus.address")
export DBUS_SESSION_BUS_ADDRESS

setsid animd --user --config "$run/animd.toml" >"$run/animd.log" 2>&1 </dev/null &
children+=($!)
for _ in {1..100}; do
    animctl status >"$run/status" 2>&1 && break
    kill -0 "${children[-1]}" 2>/dev/null || fail "the service ended at once"
    sleep 0.1
done
animctl status >/dev/null || fail "the service did not answer within 10 s"

echo "Dropping photo.jpg and photo.txt into $run/inbox"
echo "$prompt" >"$run/inbox/photo.txt"
# A folder's settings outrank those that the model's file has for all of its jobs.
{
    [ -z "${SIZE:-}" ] || printf 'size = "%s"\n' "$SIZE"
    [ -z "${FRAMES:-}" ] || printf 'frames = %s\n' "$FRAMES"
} >"$run/inbox/folder.toml"
cp packaging/demo/photo.jpg "$run/inbox/"
if ! packaging/demo/follow.py 3>"$run/job"; then
    if [ -s "$run/job" ]; then animctl show "$(cat "$run/job")" || true; fi
    fail "there is no video"
fi

video=$run/outbox/photo-42.mp4
echo
echo "What the service's log has of the job:"
animctl show "$(cat "$run/job")"
echo
echo "What ffprobe says of the video:"
ffprobe -v error -select_streams v:0 -of compact=print_section=0 \
    -show_entries stream=codec_name,profile,width,height,pix_fmt,color_space,avg_frame_rate,nb_frames,duration "$video"
# Six frames from the first to the last, in two rows.
sheet=$run/outbox/photo-42.jpg
ffmpeg -v error -i "$video" -frames:v 1 -q:v 3 \
    -vf "select='eq(n,0)+gte(n-prev_selected_n,($frames-1)/5)',scale=320:-2,tile=3x2" "$sheet"

echo
echo "The small model knows a few motions of the camera and of the light; it shows how animd works, not how well Wan 14B does."
echo "The video: $video"
echo "A sheet of six of its frames: $sheet"
