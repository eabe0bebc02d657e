# Runs the end-to-end suites, each as a process of its own in a network
# namespace of its own, where its fixed ports collide with nobody's. A suite
# NAME@STORE is the module NAME with its CAs on STORE. Sourced by tests/run.

namespaces=()
declare -A suite_of=() started_at=()

suites_table() {
    grep -v '^ *\(#\|$\)' tests/suites/run.conf
}

suite_line() {
    suites_table | awk -v name="$1" '$1 == name'
}

run_suites() {
    check_table || return 0
    note_left_out
    # Both are read first, so that no suite eats them as its input.
    local loads besides
    mapfile -t loads < <(suites_of load)
    mapfile -t besides < <(suites_of beside)
    local jobs=${CITADEL_TEST_JOBS:-$(nproc)} load=0 beside=0
    while [ $((load + beside)) -lt $((${#loads[@]} + ${#besides[@]})) ]; do
        while [ ${#suite_of[@]} -ge "$jobs" ]; do reap; done
        if [ "$load" -lt ${#loads[@]} ] && ! any_running "${loads[@]:0:$load}"; then
            # shellcheck disable=SC2086 # name, threads, minutes
            launch ${loads[load++]}
        elif [ "$beside" -lt ${#besides[@]} ]; then
            # shellcheck disable=SC2086
            launch ${besides[beside++]}
        else
            reap
        fi
    done
    while [ ${#suite_of[@]} -gt 0 ]; do reap; done
    run_at_once "$jobs" calm
    run_at_once 1 alone
}

# run_at_once JOBS WHEN: the suites of one kind, so many at once.
run_at_once() {
    local line lines
    mapfile -t lines < <(suites_of "$2")
    for line in ${lines[@]+"${lines[@]}"}; do
        while [ ${#suite_of[@]} -ge "$1" ]; do reap; done
        # shellcheck disable=SC2086
        launch $line
    done
    while [ ${#suite_of[@]} -gt 0 ]; do reap; done
}

# suites_of WHEN: name, threads and minutes of those that this run is about.
suites_of() {
    local name when set threads minutes needs
    while read -r name when set threads minutes needs; do
        [ "$when" != "$1" ] || ! wanted "$name" "$set" || echo "$name $threads $minutes"
    done < <(suites_that_can_run)
}

# any_running LINE…: whether a suite of these lines runs now.
any_running() {
    local line
    for line; do
        [[ " ${suite_of[*]} " != *" ${line%% *} "* ]] || return 0
    done
    return 1
}

# wanted NAME SET
wanted() {
    if [ ${#only[@]} -gt 0 ]; then
        [[ " ${only[*]} " == *" $1 "* ]]
    else
        ! $quick || [ "$2" = quick ]
    fi
}

# suites_that_can_run: the table without what --without leaves out.
suites_that_can_run() {
    suites_table | awk -v without="$without" 'without == "" || $6 != without'
}

# note_left_out: names in the last lines what --without leaves out.
note_left_out() {
    local name when set threads minutes needs
    [ -n "$without" ] || return 0
    while read -r name when set threads minutes needs; do
        [ "$needs" != "$without" ] || ! wanted "$name" "$set" || left_out+=("$name")
    done < <(suites_table)
}

# check_table: a suite that nobody runs would be skipped in silence.
check_table() {
    local difference
    difference=$(diff <(suites_table | sed 's/[@ ].*//' | sort -u) \
        <("$e2e" --list --format terse | sed -n 's/^\([^:]*\)::.*: test$/\1/p' | sort -u)) && return
    echo "tests/suites/run.conf (<) and the suites that exist (>) differ:" >&2
    grep '^[<>]' <<<"$difference" >&2
    failed_one "tests/suites/run.conf is not complete"
    return 1
}

launch() {
    local name=$1 threads=$2 minutes=$3
    local namespace=citadel-$$-$name folder=$run/$name module=${name%@*} store=sqlite
    [ "$module" = "$name" ] || store=${name#*@}
    mkdir -p "$folder"
    ip netns add "$namespace"
    namespaces+=("$namespace")
    ip -n "$namespace" link set lo up
    say "suite $name"
    local tests
    mapfile -t tests < <(tests_of "$module")
    # nsenter, not `ip netns exec`, which mounts another /sys and so hides the
    # cgroups that some suites work with.
    CITADEL_TEST_DIR=$folder CITADEL_TEST_STORE=$store CITADEL_TEST_CGROUP=$namespace RUST_BACKTRACE=0 \
        timeout --kill-after=10 "${minutes}m" nsenter --net="/var/run/netns/$namespace" \
        "$e2e" --test-threads="$threads" ${options[@]+"${options[@]}"} --exact "$module::" "${tests[@]}" \
        >"$folder/log" 2>&1 </dev/null &
    suite_of[$!]=$name
    started_at[$name]=$SECONDS
}

# tests_of MODULE: by their whole names, since a filter also finds the name
# inside of others. All those of --filter have to be part of a test's name.
tests_of() {
    local names filter
    names=$("$e2e" --list --format terse | sed -n "s/^\($1::.*\): test$/\1/p")
    for filter in ${filters[@]+"${filters[@]}"}; do
        names=$(grep -F -- "$filter" <<<"$names")
    done
    [ -z "$names" ] || echo "$names"
}

# reap: waits for one suite and reports it.
reap() {
    local pid code=0
    wait -n -p pid "${!suite_of[@]}" || code=$?
    local name=${suite_of[$pid]}
    unset "suite_of[$pid]"
    end_namespace "citadel-$$-$name"
    local took=$((SECONDS - started_at[$name])) before=$failed
    count "suite $name" "$run/$name/log" "$code"
    search_logs "$name"
    timed "suite $name" "$took"
    if [ "$failed" != "$before" ]; then
        say "suite $name: $counted in $took s; the end of $run/$name/log:"
        tail -n 100 "$run/$name/log"
    else
        say "suite $name: $counted in $took s"
        $keep || only_log "$run/$name"
    fi
}

# only_log FOLDER: what a suite that passed had on disk (a store, a database, an API
# server's etcd for each test) is of no use to anybody; all together it is 16 GB.
only_log() {
    find "$1" -mindepth 1 -maxdepth 1 ! -name log -exec rm -rf {} +
}

# search_logs NAME: no key and no token that the suite made may be in its logs.
search_logs() {
    local found
    if found=$("$scan" "$run/$1"); then
        passed=$((passed + 1))
    else
        failed_one "suite $1: secrets in its logs"
        echo "$found" >&2
    fi
    say "suite $1: $(tail -n 1 <<<"$found")"
}

# end_namespace NAME: whatever still runs in it was started by its suite.
end_namespace() {
    local pids
    pids=$(ip netns pids "$1" 2>/dev/null) || true
    # shellcheck disable=SC2086 # one word a process
    [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
    ip netns del "$1" 2>/dev/null || true
    end_cgroups "$1"
}

# end_cgroups NAME: those of a node that the suite had. What runs in them ended with the
# suite, or is about to.
end_cgroups() {
    local cgroup tries
    for cgroup in /sys/fs/cgroup/"$1" /sys/fs/cgroup/*/"$1"; do
        for ((tries = 0; tries < 50; tries++)); do
            [ -d "$cgroup" ] || break
            find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null || true
            [ ! -d "$cgroup" ] || sleep 0.1
        done
    done
}

end_suites() {
    local namespace
    for namespace in ${namespaces[@]+"${namespaces[@]}"}; do
        end_namespace "$namespace"
    done
}
