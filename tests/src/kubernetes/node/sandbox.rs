//! A node's own view of this machine; see `tests/testbed/node/sandbox`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::dir::TestDir;
use crate::parts::variable;
use crate::process::{Launch, Process};

/// From start until its file systems are mounted.
const START: Duration = Duration::from_secs(10);

/// The namespaces of mounts, processes and cgroups that the node's programs run in. What
/// runs in it ends with it; `tests/run` removes its cgroups.
pub(super) struct Sandbox {
    process: Process,
    cgroup: String,
}

impl Sandbox {
    pub(super) async fn start(dir: &TestDir) -> Self {
        let cgroup = variable("CITADEL_TEST_CGROUP")
            .into_string()
            .expect("a plain name");
        let process = Launch::new("sandbox", script("sandbox"))
            .arg(&cgroup)
            .arg(dir.path())
            .start(dir);
        process
            .ready(START, async || dir.join("ready").exists())
            .await;
        Self { process, cgroup }
    }

    /// A wrapper for [`Launch::wrapped`]: the program runs in here.
    pub(super) fn wrapper(&self) -> Vec<String> {
        let enter = script("enter");
        vec![
            enter.to_str().expect("a plain path").to_owned(),
            self.process.pid().to_string(),
            self.cgroup.clone(),
        ]
    }

    /// A running container.
    pub(super) fn container(&self, id: &str) -> Container {
        let cgroups: Vec<PathBuf> = hierarchies()
            .into_iter()
            .filter_map(|place| find(&place.join(&self.cgroup), id))
            .collect();
        assert!(!cgroups.is_empty(), "container {id} has no cgroup");
        Container {
            cgroups,
            sandbox: self.process.pid(),
        }
    }

    /// A path of the node's own file systems, seen from outside.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.process.pid()));
        root.join(path.strip_prefix("/").expect("an absolute path"))
    }
}

/// A container's cgroups, in every hierarchy that has them.
#[derive(Clone, Debug)]
pub struct Container {
    cgroups: Vec<PathBuf>,
    sandbox: i32,
}

impl Container {
    /// The pids of its processes, outside.
    pub fn pids(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.cgroups[0].join("cgroup.procs"));
        let text = text.expect("a live container");
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// `/proc/<pid>/status` of its first process.
    pub fn status(&self) -> String {
        let pid = self.pids()[0];
        std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process")
    }

    /// A wrapper for [`Launch::wrapped`]: the program counts as one of this container, and
    /// sees the node's file systems.
    pub fn wrapper(&self) -> Vec<String> {
        let enter = r#"pid=$1; shift
for place in $0; do echo $$ >"$place/cgroup.procs"; done
exec nsenter --mount="/proc/$pid/ns/mnt" --pid="/proc/$pid/ns/pid_for_children" --wd="$PWD" -- "$@""#;
        let places: Vec<_> = self
            .cgroups
            .iter()
            .map(|c| c.to_str().expect("a path"))
            .collect();
        vec![
            "sh".into(),
            "-c".into(),
            enter.into(),
            places.join(" "),
            self.sandbox.to_string(),
        ]
    }
}

/// Where hierarchies are mounted, the one of v2 too.
fn hierarchies() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let of_line = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let place = mount.split(' ').nth(4)?;
        kind.starts_with("cgroup").then(|| PathBuf::from(place))
    };
    table.lines().filter_map(of_line).collect()
}

/// The folder of that name below `folder`.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.into_iter().find_map(|entry| {
        if entry.file_name() == name {
            return Some(entry.path());
        }
        find(&entry.path(), name)
    })
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testbed/node")
        .join(name)
}
