# Counting, timing, and the closing line. Sourced by tests/run.

passed=0 failed=0 skipped=0
timings=()
failures=()
left_out=()

say() {
    echo "=== $*"
}

# timed NAME SECONDS: a line of the table at the end.
timed() {
    timings+=("$(printf '%6d s  %s' "$2" "$1")")
}

failed_one() {
    failed=$((failed + 1))
    failures+=("$1")
}

# count NAME LOG EXIT: adds up every `test result:` line of a test program's
# log. A program that failed without saying which test did is one failure.
count() {
    local name=$1 log=$2 code=$3 ok bad ignored
    read -r ok bad ignored < <(awk '
        $1 == "test" && $2 == "result:" {
            for (i = 3; i < NF; i++) {
                if ($(i + 1) == "passed;") ok += $i
                if ($(i + 1) == "failed;") bad += $i
                if ($(i + 1) == "ignored;") ignored += $i
            }
        }
        END { print ok + 0, bad + 0, ignored + 0 }' "$log")
    passed=$((passed + ok))
    failed=$((failed + bad))
    skipped=$((skipped + ignored))
    if [ "$bad" -gt 0 ]; then
        failures+=("$name: $(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log" | sort -u | tr '\n' ' ')")
    elif [ "$code" != 0 ]; then
        failed_one "$name: ended with $code"
    elif [ "$((ok + ignored))" = 0 ]; then
        failed_one "$name: ran no test"
    fi
    counted="$ok passed, $bad failed"
}

summary() {
    say "times"
    printf '%s\n' "${timings[@]}"
    if [ ${#failures[@]} -gt 0 ]; then
        say "failed"
        printf '%s\n' "${failures[@]}"
    fi
    if [ "$failed" != 0 ] || $keep; then
        say "logs: $run"
    else
        rm -rf "$run"
    fi
    [ ${#left_out[@]} -eq 0 ] || echo "left out by --without $without: ${left_out[*]}"
    echo "$passed passed, $failed failed$([ "$skipped" = 0 ] || echo ", $skipped skipped")"
    [ "$failed" = 0 ]
}
