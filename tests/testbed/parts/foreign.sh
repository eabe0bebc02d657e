# The client and server on go-spiffe.

part_foreign() {
    local name
    name=foreign-$(fingerprint "$here"/foreign/*.go "$here"/foreign/go.*)
    entry "$name" "compiling the go-spiffe program" "see the log" fill_foreign
    found FOREIGN "$cache/$name/foreign"
}

fill_foreign() {
    go_build foreign "$1/foreign"
}
