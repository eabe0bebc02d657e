# Small tools. Those that a package unpacks to are fetched; those that belong
# to the system have to be there.

part_tools() {
    local missing=()
    local tool
    for tool in openssl python3 ip nsenter unshare setpriv flock timeout cc strip tar; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        fail "not on PATH: ${missing[*]}" \
            "on Debian: apt-get install openssl python3 python3-pip iproute2 util-linux coreutils gcc binutils tar"
    fi
    found OPENSSL "$(command -v openssl)"

    if command -v strace >/dev/null; then
        found STRACE "$(command -v strace)"
    else
        entry strace "unpacking Debian's package" "or install strace" fill_strace
        found STRACE "$cache/strace/usr/bin/strace"
    fi

    if command -v socat >/dev/null; then
        found SOCAT "$(command -v socat)"
    else
        entry socat "unpacking Debian's package" "or install socat" fill_socat
        found SOCAT "$cache/socat/socat"
    fi

    if command -v systemd-socket-activate >/dev/null && command -v systemd-analyze >/dev/null; then
        found SYSTEMD_SOCKET_ACTIVATE "$(command -v systemd-socket-activate)"
        found SYSTEMD_ANALYZE "$(command -v systemd-analyze)"
    else
        entry systemd "unpacking Debian's package" "or install systemd" fill_systemd
        found SYSTEMD_SOCKET_ACTIVATE "$cache/systemd/systemd-socket-activate"
        found SYSTEMD_ANALYZE "$cache/systemd/systemd-analyze"
    fi

    # The library, not the wrapper: a suite preloads it into one process.
    entry libfaketime "unpacking Debian's package" \
        "libfaketime is taken from Debian's package only" fill_faketime
    found FAKETIME "$(find "$cache/libfaketime" -name 'libfaketime.so.1')"

    # Ours, and preloaded in the same way.
    local faulty
    faulty=faulty-$(fingerprint "$here/faulty.c")
    entry "$faulty" "compiling" "a C compiler has to make a shared library" fill_faulty
    found FAULTY "$cache/$faulty/faulty.so"
}

fill_strace() {
    debian "$1" strace
    "$1/usr/bin/strace" --version
}

# With the libraries that few machines have.
fill_socat() {
    debian "$1" socat libwrap0 libnsl2 libtirpc3
    local libraries
    libraries=$(dirname "$(find "$1/usr/lib" -name 'libwrap.so.0')")
    cat >"$1/socat" <<WRAPPER
#!/bin/sh
here=\$(dirname "\$0")
export LD_LIBRARY_PATH="\$here/${libraries#"$1/"}"
exec "\$here/usr/bin/socat" "\$@"
WRAPPER
    chmod +x "$1/socat"
    "$1/socat" -V
}

# Its tools alone; nothing of it is started.
fill_systemd() {
    debian "$1" systemd libsystemd-shared
    local name libraries
    libraries=$(dirname "$(find "$1/usr/lib" "$1/lib" -name 'libsystemd-shared-*.so' | head -n 1)")
    for name in systemd-socket-activate systemd-analyze; do
        cat >"$1/$name" <<WRAPPER
#!/bin/sh
here=\$(dirname "\$0")
export LD_LIBRARY_PATH="\$here/${libraries#"$1/"}"
export SYSTEMD_UNIT_PATH="\$here/lib/systemd/system:\$here/usr/lib/systemd/system:"
exec "\$here/usr/bin/$name" "\$@"
WRAPPER
        chmod +x "$1/$name"
    done
    "$1/systemd-socket-activate" --version
    "$1/systemd-analyze" --version
}

fill_faketime() {
    debian "$1" libfaketime
    [ -n "$(find "$1" -name libfaketime.so.1)" ]
}

fill_faulty() {
    cc -Wall -Wextra -O2 -shared -fPIC -o "$1/faulty.so" "$here/faulty.c" -ldl
}
