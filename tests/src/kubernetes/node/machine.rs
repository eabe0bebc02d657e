//! What kubelets, containerd and CNI plugins change of a machine that is theirs alone.

use std::collections::BTreeMap;
use std::path::Path;

/// Kernel settings that the kubelet insists on.
const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Folders that are made at fixed places.
const FOLDERS: [&str; 5] = [
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/log/containers",
    "/run/containerd",
    "/run/citadel",
];

/// The machine at one moment, outside of any node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    settings: BTreeMap<&'static str, String>,
    folders: BTreeMap<&'static str, bool>,
    /// How many file systems are mounted.
    mounts: usize,
}

impl Machine {
    /// Looks at it.
    pub fn look() -> Self {
        let setting = |name: &&'static str| {
            let value = std::fs::read_to_string(format!("/proc/sys/{name}"));
            (*name, value.unwrap_or_default())
        };
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
        Self {
            settings: SETTINGS.iter().map(setting).collect(),
            folders: FOLDERS
                .iter()
                .map(|folder| (*folder, Path::new(folder).exists()))
                .collect(),
            mounts: mounts.lines().count(),
        }
    }
}
