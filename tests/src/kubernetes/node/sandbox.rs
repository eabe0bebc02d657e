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

    /// A path of the node's own file systems, seen from outside.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.process.pid()));
        root.join(path.strip_prefix("/").expect("an absolute path"))
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testbed/node")
        .join(name)
}
