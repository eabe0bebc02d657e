//! containerd with runc and the CNI plugins.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::sandbox::Sandbox;
use crate::dir::TestDir;
use crate::image::Image;
use crate::parts::part;
use crate::process::{Launch, Process};

const START: Duration = Duration::from_secs(30);
/// An image of some 50 MB is read, unpacked and its layer mounted.
const IMPORT: Duration = Duration::from_secs(60);

/// Its socket, in the sandbox.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";

/// What holds a pod's namespaces.
const PAUSE: &str = "citadel.test/pause:1";

pub(super) struct Containerd {
    process: Process,
    dir: TestDir,
    wrapper: Vec<String>,
}

impl Containerd {
    pub(super) async fn start(sandbox: &Sandbox) -> Self {
        let dir = TestDir::new("cri");
        dir.write("containerd.toml", config(&dir));
        std::fs::create_dir(dir.join("cni")).expect("a folder");
        dir.write("cni/10-bridge.conflist", NETWORK);
        let path = std::env::var("PATH").expect("a PATH");
        let wrapper = sandbox.wrapper();
        let process = Launch::new("containerd", part("NODE").join("containerd"))
            .arg("--config")
            .arg(dir.join("containerd.toml"))
            .env("PATH", format!("{}:{path}", part("NODE").display()))
            .wrapped(&wrapper)
            .start(&dir);
        let socket = sandbox.path(Path::new(SOCKET));
        let listens = async || tokio::net::UnixStream::connect(&socket).await.is_ok();
        process.ready(START, listens).await;
        let started = Self {
            process,
            dir,
            wrapper,
        };
        let pause = Image::new(PAUSE)
            .tool("sleep")
            .entrypoint(&["sleep", "infinity"]);
        started.import(&pause.archive(&TestDir::new("pause"))).await;
        started
    }

    /// Takes in an image's archive.
    pub(super) async fn import(&self, archive: &Path) {
        let ctr = self
            .ctr()
            .args(["images", "import"])
            .arg(archive)
            .in_new_files()
            .start(&self.dir);
        let status = ctr.wait(IMPORT).await;
        assert!(status.success(), "ctr images import: {}", ctr.log());
    }

    fn ctr(&self) -> Launch {
        Launch::new("ctr", part("NODE").join("ctr"))
            .args(["--address", SOCKET, "--namespace", "k8s.io"])
            .wrapped(&self.wrapper)
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.is_running()
    }
}

/// Pods on one bridge, and nothing beyond it: the suite's network has no way out.
const NETWORK: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [{
    "type": "bridge",
    "bridge": "cni0",
    "isDefaultGateway": true,
    "ipMasq": false,
    "hairpinMode": true,
    "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.88.0.0/16" }]] }
  }]
}"#;

fn config(dir: &TestDir) -> String {
    let root: PathBuf = dir.join("root");
    let runc = part("NODE").join("runc");
    let cni = part("CNI");
    format!(
        r#"version = 2
root = "{root}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
address = "{SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "{conf}"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
Root = "/run/runc"
SystemdCgroup = false
"#,
        root = root.display(),
        cni = cni.display(),
        conf = dir.join("cni").display(),
        runc = runc.display(),
    )
}
