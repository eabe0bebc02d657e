//! What kubelets, containerd and CNI plugins change of a machine that is theirs alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::dir::suite_dir;

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
    /// Where file systems are mounted.
    mounts: BTreeSet<String>,
}

impl Machine {
    /// Looks at it.
    pub fn look() -> Self {
        let setting = |name: &&'static str| {
            let value = std::fs::read_to_string(format!("/proc/sys/{name}"));
            (*name, value.unwrap_or_default())
        };
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
        // The mount point is the fifth field (proc(5)).
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        Self {
            settings: SETTINGS.iter().map(setting).collect(),
            folders: FOLDERS
                .iter()
                .map(|folder| (*folder, Path::new(folder).exists()))
                .collect(),
            mounts: points
                .filter(|at| !of_other_suites(at))
                .map(str::to_owned)
                .collect(),
        }
    }
}

/// Suites beside this one come and go: with their network namespaces, and with disks of
/// their own in their folders.
fn of_other_suites(point: &str) -> bool {
    let own = suite_dir();
    let of_run = own
        .parent()
        .is_some_and(|run| Path::new(point).starts_with(run));
    point.starts_with("/run/netns/") || (of_run && !Path::new(point).starts_with(&own))
}
