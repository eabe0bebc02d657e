part_cargo_deny() {
    local candidate
    candidate=$(command -v cargo-deny || true)
    if [ -n "$candidate" ] && [ "$("$candidate" --version)" = "cargo-deny $CARGO_DENY" ]; then
        found CARGO_DENY "$candidate"
        return
    fi
    entry "cargo-deny-$CARGO_DENY" "compiling it (about 5 min on 2 cores)" \
        "or cargo install --locked cargo-deny@$CARGO_DENY" fill_cargo_deny
    found CARGO_DENY "$cache/cargo-deny-$CARGO_DENY/bin/cargo-deny"
}

# It runs for a second: optimising it thoroughly would cost minutes.
fill_cargo_deny() {
    CARGO_TARGET_DIR=$1/target CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=64 CARGO_PROFILE_RELEASE_DEBUG=0 \
        cargo install --locked --root "$1" "cargo-deny@$CARGO_DENY"
    rm -rf "$1/target"
}
