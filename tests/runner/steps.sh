# The steps that are no suites. Sourced by tests/run.

# step NAME COMMAND…: a check that counts as one.
step() {
    local name=$1 started=$SECONDS
    shift
    say "$name"
    if "$@"; then
        passed=$((passed + 1))
    else
        failed_one "$name: $*"
    fi
    timed "$name" $((SECONDS - started))
}

# must NAME COMMAND…: a step without which nothing after it makes sense.
must() {
    local before=$failed
    step "$@"
    if [ "$failed" != "$before" ]; then
        summary
        exit 1
    fi
}

# tests_step NAME COMMAND…: a test program, whose own count is added up.
tests_step() {
    local name=$1 started=$SECONDS code=0
    shift
    say "$name"
    "$@" 2>&1 | tee "$run/$name.log" || code=$?
    count "$name" "$run/$name.log" "$code"
    timed "$name" $((SECONDS - started))
}

# lint_all: "all targets" are those that a plain `cargo test` runs; the suites
# are no part of them.
lint_all() {
    cargo clippy --workspace --locked --all-targets -- -D warnings &&
        cargo clippy --workspace --locked --test '*' -- -D warnings
}

# build_all: programs and tests in one invocation and one profile, so that
# features are resolved once and every later step finds its work done.
build_all() {
    cargo build --workspace --locked --lib --bins --test '*' \
        --message-format=json-render-diagnostics >"$run/build.json" || return 1
    e2e=$(executable e2e) scan=$(executable citadel-test-scan)
    [ -x "$e2e" ] && [ -x "$scan" ] || { echo "cargo built no test program e2e" >&2; return 1; }
}

executable() {
    sed -n "s/.*\"name\":\"$1\".*\"executable\":\"\([^\"]*\)\".*/\1/p" "$run/build.json" | tail -n 1
}

# bound_target DIR: what old clones left there is never used again.
bound_target() {
    local gigabytes
    gigabytes=$(du -s --block-size=1G "$1" 2>/dev/null | cut -f 1) || true
    if [ "${gigabytes:-0}" -gt 12 ]; then
        say "starting afresh in $1 (it grew to $gigabytes GB)"
        rm -rf "$1"
    fi
}

# own_target DIR: what a clone in another folder compiled there looks for its files in that one.
own_target() {
    local of=$1/clone
    [ "$(cat "$of" 2>/dev/null)" = "$PWD" ] && return
    find "$1" -type d -path '*/.fingerprint/citadel-*' -prune -exec rm -rf {} + 2>/dev/null || true
    mkdir -p "$1"
    echo "$PWD" >"$of"
}

# remove_ended_runs: nobody reads what an earlier run of CI left on its machine.
remove_ended_runs() {
    local pid
    for pid in "${run%/*}"/citadel.??????/pid; do
        [ -f "$pid" ] || continue
        kill -0 "$(cat "$pid")" 2>/dev/null || rm -rf "${pid%/pid}"
    done
}

# enough_disk GIGABYTES FOLDER…: a disk that fills up in the middle of a run fails
# whatever suite writes next, with a message of its own each time.
enough_disk() {
    local wanted=$1 folder free
    shift
    for folder in "$@"; do
        mkdir -p "$folder"
        free=$(($(df --output=avail -B 1M "$folder" | tail -n 1) / 1024))
        if [ "$free" -lt "$wanted" ]; then
            echo "$folder: $free GB free, a run needs $wanted; make room, or set TMPDIR," \
                "CITADEL_TEST_CACHE or CARGO_TARGET_DIR to a folder on another disk" >&2
            return 1
        fi
    done
}
