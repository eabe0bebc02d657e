//! A load on a CA, and what is left of it: the certificates that arrived, and the log.

use std::collections::HashSet;
use std::path::Path;

use citadel_proto::log::entry::Kind;
use citadel_tests::citadel::Ca;
use citadel_tests::client::Admin;
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::parts::program;
use citadel_tests::process::{Launch, Process};

/// Each asks in its own name, again and again.
const PODS: usize = 40;

/// Longer than any test takes; the load ends with it.
const LOAD: &str = "10m";

/// `citadel bench issue` against this CA with these roots, with as many callers as pods,
/// which have a namespace of this name. It waits for a server that is away.
pub(crate) async fn start_load(
    dir: &TestDir,
    ca: &Ca,
    bundle: &Path,
    received: &Path,
    namespace: &str,
) -> Process {
    let api = ApiServer::shared().await;
    api.create_node(namespace).await;
    let mut tokens = String::new();
    for number in 0..PODS {
        let pod = format!("web-{number}");
        api.create_workload(namespace, "web", &pod, namespace).await;
        tokens.push_str(&api.token(namespace, "web", &pod).await);
        tokens.push('\n');
    }
    let tokens = dir.write(format!("tokens-{namespace}"), tokens);
    Launch::new(&format!("bench-{namespace}"), program("citadel"))
        .args([
            "bench",
            "issue",
            "--path",
            "token",
            "--concurrency",
            "16",
            "--duration",
            LOAD,
        ])
        .args(["--target", &ca.grpc().to_string()])
        .args(["--target-admin", &ca.admin().to_string()])
        .args(["--trust-domain", "example.org"])
        .arg("--trust-bundle")
        .arg(bundle)
        .arg("--tokens")
        .arg(tokens)
        .arg("--received")
        .arg(received)
        .start(dir)
}

/// The serials of the certificates that arrived, by the names of their files.
pub(crate) fn names_in(received: &Path) -> HashSet<String> {
    let Ok(files) = std::fs::read_dir(received) else {
        return HashSet::new();
    };
    let names = files.map(|file| {
        file.expect("an entry")
            .file_name()
            .into_string()
            .expect("hex")
    });
    names
        .filter_map(|name| name.strip_suffix(".pem").map(str::to_owned))
        .collect()
}

/// The CA's log, as far as it has been read.
#[derive(Default)]
pub(crate) struct LogOf {
    pub(crate) size: u64,
    pub(crate) serials: HashSet<String>,
}

impl LogOf {
    /// Reads what is new. Panics at a gap, and at a serial that was there before.
    pub(crate) async fn read_on(&mut self, admin: &Admin) {
        self.read_to(admin, u64::MAX).await;
    }

    /// The same up to this size at least, beside a load that would keep it busy for ever.
    pub(crate) async fn read_to(&mut self, admin: &Admin, size: u64) {
        while self.size < size {
            let entries = admin.read_log(self.size).await;
            if entries.is_empty() {
                assert_eq!(size, u64::MAX, "the log ends at {}", self.size);
                return;
            }
            for (index, entry) in entries {
                assert_eq!(index, self.size, "the log skips an index");
                self.size += 1;
                if let Some(Kind::Issued(issued)) = entry.kind {
                    let serial = hex::encode(issued.serial);
                    assert!(
                        self.serials.insert(serial.clone()),
                        "{serial} was given twice"
                    );
                }
            }
        }
    }
}
