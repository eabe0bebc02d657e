# What a node has beside the kubelet: containerd, runc and the CNI plugins, from Debian's
# packages, unpacked. containerd finds its shim, and the shim runc, on PATH: one folder has
# them all. `tests/run --without node` leaves them out.

node_programs=(containerd containerd-shim-runc-v2 ctr runc)

part_node() {
    if $without_node; then
        say "without node: no containerd, runc and CNI plugins"
        return
    fi
    entry node-containerd "unpacking Debian's containerd, runc and containernetworking-plugins" \
        "the suite needs them; tests/run --without node leaves it out" fill_node
    found NODE "$cache/node-containerd/bin"
    found CNI "$cache/node-containerd/usr/lib/cni"
}

fill_node() {
    debian "$1" containerd runc containernetworking-plugins
    mkdir "$1/bin"
    local program
    for program in "${node_programs[@]}"; do
        ln -s "$(relative_to_bin "$1" "$program")" "$1/bin/$program"
        [ -x "$1/bin/$program" ]
    done
    [ -x "$1/usr/lib/cni/bridge" ] && [ -x "$1/usr/lib/cni/host-local" ]
}

# relative_to_bin FOLDER PROGRAM: the entry is moved once it is complete.
relative_to_bin() {
    local at
    at=$(find "$1/usr" -type f -executable -name "$2" | head -n 1)
    echo "..${at#"$1"}"
}
