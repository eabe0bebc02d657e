# The API server, the programs of a node and kubectl, compiled from the Go
# module proxy into one binary: there is no package of them that a plain
# machine can fetch.

kubernetes_programs=(kube-apiserver kubectl kube-controller-manager kube-scheduler kubelet)

part_kubernetes() {
    local program missing=false
    declare -A at=()
    for program in "${kubernetes_programs[@]}"; do
        at[$program]=$(kubernetes_here "$program")
        [ -n "${at[$program]}" ] || missing=true
    done
    if $missing; then
        local name
        name=kubernetes-$KUBERNETES-$(fingerprint "$here"/kubernetes/*.go "$here"/kubernetes/go.*)
        entry "$name" "compiling Kubernetes' programs (about 12 min on 2 cores)" \
            "or put ${kubernetes_programs[*]} ${KUBERNETES%.*} in a folder that KUBEBUILDER_ASSETS names" \
            fill_kubernetes
        for program in "${kubernetes_programs[@]}"; do
            at[$program]=${at[$program]:-$cache/$name/$program}
        done
    fi
    found KUBE_APISERVER "${at[kube-apiserver]}"
    found KUBECTL "${at[kubectl]}"
    found KUBE_CONTROLLER_MANAGER "${at[kube-controller-manager]}"
    found KUBE_SCHEDULER "${at[kube-scheduler]}"
    found KUBELET "${at[kubelet]}"
}

# kubernetes_here PROGRAM: the machine's own, if it is of our minor version.
kubernetes_here() {
    local candidate
    for candidate in "${KUBEBUILDER_ASSETS:+$KUBEBUILDER_ASSETS/$1}" "$(command -v "$1" || true)"; do
        if [ -x "$candidate" ] && is_kubernetes "$candidate" "${KUBERNETES%.*}."; then
            echo "$candidate"
            return
        fi
    done
}

# is_kubernetes FILE VERSION-OR-ITS-BEGINNING
is_kubernetes() {
    local version
    case $1 in
    *kubectl) version=$("$1" version --client 2>/dev/null) ;;
    *) version=$("$1" --version 2>/dev/null) ;;
    esac
    [[ $version == *" v$2"* ]]
}

fill_kubernetes() {
    local stamp=k8s.io/component-base/version
    local minor=${KUBERNETES#*.}
    go_build kubernetes "$1/kubernetes" -ldflags "-s -w \
        -X $stamp.gitVersion=v$KUBERNETES -X $stamp.gitMajor=${KUBERNETES%%.*} -X $stamp.gitMinor=${minor%.*}"
    local program
    for program in "${kubernetes_programs[@]}"; do
        ln -s kubernetes "$1/$program"
        is_kubernetes "$1/$program" "$KUBERNETES"
    done
}
