//! Folders for what a test leaves behind.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::parts::variable;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A folder of one test, inside the suite's. It stays until `tests/run`
/// removes it, since the logs in it explain a failure.
#[derive(Clone, Debug)]
pub struct TestDir(PathBuf);

impl TestDir {
    /// Makes one. Keep `name` short: sockets go in here, and a socket's path
    /// has 108 bytes.
    pub fn new(name: &str) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = suite_dir().join(format!("{number}-{name}"));
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    /// A folder that outlives the suite, made if it is missing.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path inside of it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file into it.
    pub fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }
}

/// The suite's folder.
pub(crate) fn suite_dir() -> PathBuf {
    variable("CITADEL_TEST_DIR").into()
}

/// Copies a folder with all that is in it, owners and modes too, to a place where nothing is.
pub fn copy_folder(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .expect("cp");
    assert!(status.success(), "{} can't be copied", from.display());
}
