part_etcd() {
    local candidate
    for candidate in "${KUBEBUILDER_ASSETS:+$KUBEBUILDER_ASSETS/etcd}" "$(command -v etcd || true)"; do
        if [ -x "$candidate" ] && at_least "$ETCD" "$(etcd_version "$candidate")"; then
            found ETCD "$candidate"
            return
        fi
    done
    entry "etcd-$ETCD" "unpacking Debian's etcd-server" \
        "or put etcd $ETCD or later on PATH, or in KUBEBUILDER_ASSETS" fill_etcd
    found ETCD "$cache/etcd-$ETCD/usr/bin/etcd"
}

etcd_version() {
    "$1" --version 2>/dev/null | sed -n 's/^etcd Version: //p'
}

fill_etcd() {
    debian "$1" etcd-server
    at_least "$ETCD" "$(etcd_version "$1/usr/bin/etcd")"
}
