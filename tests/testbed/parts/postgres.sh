# PostgreSQL: the folder with its programs. Of the machine if it is new enough, else Debian's
# packages, unpacked.

postgres_programs=(postgres initdb psql pg_basebackup)

part_postgres() {
    local candidate
    for candidate in "${CITADEL_TEST_POSTGRES:-}" "$(postgres_on_path)" $(postgres_of_debian); do
        if is_postgres "$candidate"; then
            found POSTGRES "$candidate"
            return
        fi
    done
    if [ -n "${CITADEL_TEST_POSTGRES:-}" ]; then
        fail "CITADEL_TEST_POSTGRES ($CITADEL_TEST_POSTGRES) has no ${postgres_programs[*]} of $POSTGRES or later"
    fi
    local name=postgres-$POSTGRES-${#postgres_programs[@]}
    entry "$name" "unpacking Debian's packages" \
        "apt-get install postgresql, or name the folder with its programs in CITADEL_TEST_POSTGRES" \
        fill_postgres
    found POSTGRES "$cache/$name/bin"
}

# postgres_on_path: the folder that the program really lies in, beside its siblings.
postgres_on_path() {
    local program
    program=$(command -v postgres) && dirname "$(readlink -f "$program")"
}

# postgres_of_debian: newest first; these folders are not on PATH.
postgres_of_debian() {
    printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV
}

# is_postgres FOLDER
is_postgres() {
    local program
    for program in "${postgres_programs[@]}"; do
        [ -x "$1/$program" ] || return 1
    done
    at_least "$POSTGRES" "$("$1/postgres" --version | sed -n 's/^postgres (PostgreSQL) \([0-9.]*\).*/\1/p')"
}

# Its programs find their files by where they lie; only the client's library needs a word.
fill_postgres() {
    debian "$1" "postgresql-$POSTGRES" "postgresql-client-$POSTGRES" libpq5
    mkdir "$1/bin"
    local program libraries
    libraries=$(dirname "$(find "$1/usr/lib" -name 'libpq.so.5' | head -n 1)")
    libraries=${libraries#"$1/"}
    for program in "${postgres_programs[@]}"; do
        cat >"$1/bin/$program" <<WRAPPER
#!/bin/sh
here=\$(dirname "\$(dirname "\$0")")
export LD_LIBRARY_PATH="\$here/$libraries"
exec "\$here/usr/lib/postgresql/$POSTGRES/bin/$program" "\$@"
WRAPPER
        chmod +x "$1/bin/$program"
    done
    is_postgres "$1/bin"
}
