# What every part uses. Sourced by `provision`.

say() {
    echo "testbed: $*"
}

fail() {
    echo "testbed: $1" >&2
    shift
    for line in "$@"; do echo "testbed:   $line" >&2; done
    exit 1
}

# found NAME PATH: writes a part's place down for the suites.
found() {
    printf 'export CITADEL_TESTBED_%s=%q\n' "$1" "$2" >>"$new_env"
}

# at_least WANTED VERSION
at_least() {
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

# fingerprint FILE…: names a cache entry by what it is built from.
fingerprint() {
    cat -- "$@" | sha256sum | cut -c 1-12
}

# entry NAME WHAT HELP COMMAND…: makes the cache entry NAME, unless it is
# there, by running COMMAND with the folder to fill as its last argument.
entry() {
    local name=$1 what=$2 help=$3
    shift 3
    [ -d "$cache/$name" ] && return
    local partial=$cache/.partial-$name log=$cache/log/$name.log
    rm -rf "$partial"
    mkdir -p "$partial"
    local started=$SECONDS
    say "$name: $what"
    # In a process group of its own, so that an interrupt ends compilers too.
    set -m
    (set -e; "$@" "$partial") >"$log" 2>&1 </dev/null &
    set +m
    job=$!
    if ! attend "$name" "$job" "$log" "$started"; then
        tail -n 25 "$log" | sed 's/^/    /' >&2
        fail "$name could not be made; the whole log is $log" "$help"
    fi
    job=
    mv "$partial" "$cache/$name"
    say "$name: done in $((SECONDS - started)) s"
}

# end_job: for an interrupt in the middle of an entry.
end_job() {
    [ -z "${job:-}" ] || kill -- "-$job" 2>/dev/null || true
}

# attend NAME PID LOG STARTED: waits for a job and shows that it lives.
attend() {
    local name=$1 pid=$2 log=$3 started=$4 next=$((SECONDS + 20))
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.2
        if [ "$SECONDS" -ge "$next" ]; then
            next=$((SECONDS + 20))
            say "$name: $((SECONDS - started)) s… $(tail -n 1 "$log" | cut -c 1-100)"
        fi
    done
    wait "$pid"
}

# debian FOLDER PACKAGE…: unpacks Debian packages without installing them.
debian() {
    local folder=$1
    shift
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || {
        echo "this machine has no apt-get and dpkg"
        return 1
    }
    local debs
    debs=$(mktemp -d)
    # apt's own download user has to write here.
    chmod 777 "$debs"
    (
        cd "$debs"
        apt-get download "$@" || { apt-get update && apt-get download "$@"; }
        for deb in *.deb; do dpkg -x "$deb" "$folder"; done
    )
    rm -rf "$debs"
}

# wheel FOLDER REQUIREMENT: unpacks a PyPI package without its dependencies.
wheel() {
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
        --root-user-action=ignore --target "$1" "$2"
}
