//! The server under test: an unmodified `citadel-ca` as a process of its own.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::measure::Usage;
use super::program::{self, Program};
use crate::exit::Failure;
use crate::output;

pub(crate) const TRUST_DOMAIN: &str = "bench.example";
/// The name that the server has for its only cluster.
pub(crate) const CLUSTER: &str = "bench";

/// A folder for one server, on a disk.
pub(crate) struct Workplace {
    path: PathBuf,
    /// Removed with it; none where the user chose the place.
    _temporary: Option<TempDir>,
}

/// A running server.
pub(crate) struct Server {
    program: Program,
    pub(crate) grpc: String,
    folder: PathBuf,
}

impl Workplace {
    /// A fresh folder under `chosen` (kept afterwards), or under the first usual place
    /// that is not in memory (removed afterwards).
    pub(crate) fn new(chosen: Option<&Path>, name: &str) -> Result<Self, Failure> {
        let make = |parent: &Path| {
            tempfile::Builder::new()
                .prefix(&format!("citadel-bench-{name}-"))
                .tempdir_in(parent)
        };
        let cannot = |parent: &Path, error: &std::io::Error| {
            Failure::local(format!(
                "can't make a folder in {}: {error}",
                parent.display()
            ))
            .next("Name a folder on a disk with --dir.")
        };
        if let Some(parent) = chosen {
            fs::create_dir_all(parent).map_err(|error| cannot(parent, &error))?;
            if in_memory(parent) {
                output::note(&format!(
                    "citadel: {} is in memory: what is measured there says nothing about a disk",
                    parent.display()
                ));
            }
            let path = make(parent).map_err(|error| cannot(parent, &error))?.keep();
            return Ok(Self {
                path,
                _temporary: None,
            });
        }
        let usual = [
            Some(std::env::temp_dir()),
            Some("/var/tmp".into()),
            std::env::home_dir(),
        ];
        let parent = usual
            .into_iter()
            .flatten()
            .find(|place| place.is_dir() && !in_memory(place));
        let Some(parent) = parent else {
            return Err(
                Failure::local("the usual temporary folders are all in memory")
                    .next("Name a folder on a disk with --dir."),
            );
        };
        let temporary = make(&parent).map_err(|error| cannot(&parent, &error))?;
        Ok(Self {
            path: temporary.path().to_path_buf(),
            _temporary: Some(temporary),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn in_memory(folder: &Path) -> bool {
    statfs(folder).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
}

/// The `citadel-ca` to start: the one that was named, else the one beside this program.
pub(crate) fn binary(named: Option<&Path>) -> Result<PathBuf, Failure> {
    program::beside("citadel-ca", named, "--server-binary")
}

impl Server {
    /// Starts it in `folder`, with `settings` (the store among them) beside the bench's own,
    /// and waits until it is ready.
    pub(crate) async fn start(
        binary: &Path,
        folder: &Path,
        kubeconfig: &Path,
        settings: &Value,
    ) -> Result<Self, Failure> {
        let local = |what: &str, error: &dyn std::fmt::Display| {
            Failure::local(format!("can't {what}: {error}"))
        };
        let data = folder.join("data");
        // There already where a server is started again.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&data)
            .map_err(|error| local("make the server's folder", &error))?;
        let [grpc, admin] = program::free_ports()?;
        let config = folder.join("ca.yaml");
        // JSON is YAML.
        let mut text = json!({
            "trust_domain": TRUST_DOMAIN,
            "listen": grpc,
            "admin_listen": admin,
            "data_dir": data,
            "clusters": [{ "name": CLUSTER, "kubeconfig": kubeconfig }],
        });
        if let (Some(text), Some(settings)) = (text.as_object_mut(), settings.as_object()) {
            text.extend(settings.clone());
        }
        fs::write(&config, text.to_string())
            .map_err(|error| local("write the server's configuration", &error))?;
        let mut program = Program::start("citadel-ca", binary, &config, folder.join("ca.log"))?;
        program.ready(&admin).await?;
        Ok(Self {
            program,
            grpc,
            folder: folder.to_path_buf(),
        })
    }

    pub(crate) fn usage(&self) -> std::io::Result<Usage> {
        self.program.usage()
    }

    /// Where its roots are, PEM.
    pub(crate) fn root_file(&self) -> PathBuf {
        self.folder.join("data/root-cert.pem")
    }

    /// Its roots, PEM.
    pub(crate) fn root_pem(&self) -> Result<Vec<u8>, Failure> {
        let path = self.root_file();
        fs::read(&path)
            .map_err(|error| Failure::local(format!("can't read {}: {error}", path.display())))
    }

    /// The end of its log, for an error that needs it.
    pub(crate) fn log_tail(&self) -> String {
        self.program.log_tail()
    }

    /// Whether it ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.program.has_ended()
    }

    /// Ends it gracefully, and harder when that takes too long.
    pub(crate) async fn stop(self) {
        self.program.stop().await;
    }
}
