# Servers that read their certificates from files: nginx and HAProxy, from Debian's packages,
# unpacked, with the libraries that few machines have. Of the machine if they are there.

servers=(nginx haproxy)

part_servers() {
    if command -v nginx >/dev/null && command -v haproxy >/dev/null; then
        local both
        both=$(dirname "$(command -v nginx)")
        if [ -x "$both/haproxy" ]; then
            found SERVERS "$both"
            return
        fi
    fi
    entry servers "unpacking Debian's nginx and haproxy" "or install both" fill_servers
    found SERVERS "$cache/servers/bin"
}

fill_servers() {
    debian "$1" nginx haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1
    mkdir "$1/bin"
    local program libraries
    libraries=$(dirname "$(find "$1/usr/lib" -name 'liblua5.3.so.0')")
    for program in "${servers[@]}"; do
        cat >"$1/bin/$program" <<WRAPPER
#!/bin/sh
here=\$(dirname "\$(dirname "\$0")")
export LD_LIBRARY_PATH="\$here/${libraries#"$1/"}"
exec "\$here/usr/sbin/$program" "\$@"
WRAPPER
        chmod +x "$1/bin/$program"
    done
    "$1/bin/nginx" -v
    "$1/bin/haproxy" -v
}
