# What the scenarios share; sourced inside the machine, as root.
# shellcheck shell=bash disable=SC2034 # the scenarios use what is set here

passed=0 failed=0
service=animd.service
inbox=/var/lib/animd/inbox
outbox=/var/lib/animd/outbox

ok() {
    passed=$((passed + 1))
    printf '    ok      %s\n' "$1"
}

not_ok() { # TEXT [DETAILS]
    failed=$((failed + 1))
    printf '    FAILED  %s\n' "$1"
    [ -z "${2:-}" ] || printf '%s\n' "$2" | sed 's/^/            /'
}

# check TEXT COMMAND...: the command must succeed.
check() {
    local text=$1 said
    shift
    if said=$("$@" 2>&1); then ok "$text"; else not_ok "$text" "$said"; fi
}

# refuse TEXT COMMAND...: the command must fail.
refuse() {
    local text=$1 said
    shift
    if said=$("$@" 2>&1); then not_ok "$text" "it was allowed: $said"; else ok "$text"; fi
}

# says TEXT PATTERN COMMAND...: the command's output must match the pattern, whether the command succeeds or not.
says() {
    local text=$1 pattern=$2 said
    shift 2
    said=$("$@" 2>&1) || true
    if grep -qE -- "$pattern" <<<"$said"; then ok "$text"; else not_ok "$text" "no \`$pattern\` in: $said"; fi
}

# same TEXT EXPECTED FOUND: both texts must be equal.
same() {
    if [ "$2" = "$3" ]; then ok "$1"; else not_ok "$1" "expected \`$2\`, found \`$3\`"; fi
}

# until_so SECONDS TEXT COMMAND...: the command must succeed within this time.
until_so() {
    local seconds=$1 text=$2 end
    shift 2
    end=$((SECONDS + seconds))
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$end" ]; then
            not_ok "$text" "not within $seconds s; the service's last words:"$'\n'"$(journalctl -u animd -n 15 -o cat --no-pager)"
            return 0
        fi
        sleep 0.1
    done
    ok "$text"
}

# Ends a scenario. Nothing may have failed, and something must have been checked.
finish() {
    if [ "$failed" -gt 0 ] || [ "$passed" -eq 0 ]; then exit 1; fi
    exit 0
}

# Restarts the machine, or cuts its power; the scenario is then run again with BOOT one higher.
reboot_machine() {
    if [ "$failed" -gt 0 ]; then exit 1; fi
    exit 100
}
cut_power() {
    if [ "$failed" -gt 0 ]; then exit 1; fi
    sync -f /var/lib/animd # the test is of the service, not of the page cache
    exit 101
}

# as USER COMMAND...: runs a command as another user.
as() {
    local user=$1
    shift
    runuser -u "$user" -- env -C / HOME="$(getent passwd "$user" | cut -d : -f 6)" "$@"
}

user() { # NAME: a user whose home is nobody else's business
    id "$1" >/dev/null 2>&1 && return
    useradd --create-home --shell /bin/bash "$1"
    chmod 700 "/home/$1"
}

property() { # NAME, of the unit
    systemctl show --property "$1" --value "$service"
}

ledger() { # SQL
    sqlite3 -readonly /var/lib/animd/state/ledger.db "$1"
}

state_is() { # STATE of the service
    [ "$(animctl --system status --json | jq -r .state)" = "$1" ]
}

job_is() { # ID STATE
    [ "$(ledger "SELECT state FROM job WHERE id = $1")" = "$2" ]
}

in_stage() { # STAGE: the running job
    [ "$(animctl --system list --state running --json | jq -r '.[0].stage // empty')" = "$1" ]
}

engine() { # the engine's process, and not the child that it forks for ffmpeg, which is called the same until its exec
    pgrep -u animd -o -f '^/usr/libexec/animd/engine serve'
}

videos() { # how many there are
    find "$outbox" -name '*.mp4' -type f | wc -l
}

picture() { # FILE [SEED [SIZE]]: a small picture, another one for each seed
    ffmpeg -v error -y -f lavfi -i "testsrc2=size=${3:-96x64}:rate=1,hue=h=${2:-0}" -frames:v 1 "$1"
}

# A short job is over in about two seconds, a long one takes a minute, most of it in the denoiser.
short=(--size 192x128 --frames 13 --sampler distill --seed 7)
long=(--size 320x192 --frames 81 --sampler unipc --steps 60 --seed 7)

submit() { # USER FILE OPTIONS...: prints the job's number
    local user=$1 file=$2 prompt=(-p 'waves roll in')
    shift 2
    [[ " $* " != *' -p '* ]] || prompt=()
    as "$user" animctl --system submit "$file" "${prompt[@]}" "$@" --json | jq -r .id
}

configure() { # TEXT: the whole configuration besides the model's path
    printf '[model]\npath = "/var/lib/animd/models/tiny"\n%s\n' "$1" >/etc/animd/animd.toml
}

submit_plainly() {
    as alice animctl --system submit /tmp/photo.png -p 'waves roll in' "${short[@]}"
}
