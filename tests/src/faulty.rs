//! Disks whose writes and syncs fail on demand (`tests/testbed/faulty.c`).

use std::path::PathBuf;

use crate::dir::TestDir;
use crate::parts::part;

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Each write.
    Write,
    /// `fsync` and `fdatasync`.
    Sync,
}

/// The switch of one program's faults.
#[derive(Clone, Debug)]
pub struct Faulty(PathBuf);

impl Faulty {
    /// One that is off. The program gets [`Self::env`].
    pub fn new(dir: &TestDir) -> Self {
        Self(dir.join("faulty"))
    }

    /// What the program has to find in its environment.
    pub fn env(&self) -> [(&'static str, String); 2] {
        let plain = |path: &PathBuf| path.to_str().expect("a plain path").to_owned();
        [
            ("LD_PRELOAD", plain(&part("FAULTY"))),
            ("FAULTY", plain(&self.0)),
        ]
    }

    /// From now on these calls fail with this error on files with `part` in their path.
    pub fn fail(&self, call: Call, error: nix::errno::Errno, part: &str) {
        let call = match call {
            Call::Write => "write",
            Call::Sync => "sync",
        };
        // The program reads it at any instant: whole or not at all.
        let new = self.0.with_extension("new");
        std::fs::write(&new, format!("{call} {} {part}\n", error as i32)).expect("a file");
        std::fs::rename(new, &self.0).expect("a renamed file");
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        std::fs::remove_file(&self.0).expect("it failed before");
    }
}
