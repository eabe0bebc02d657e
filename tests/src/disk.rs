//! File systems of a test's own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small tmpfs. Dropping it takes it down.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts one of so many megabytes on this folder, which is made.
    pub fn mount(folder: impl Into<PathBuf>, megabytes: u32) -> Self {
        let folder = folder.into();
        std::fs::create_dir_all(&folder).expect("a folder to mount on");
        run(
            &["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"],
            &folder,
        );
        Self(folder)
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Nobody can write to it from now on. Fails while somebody has a file open for that.
    pub fn read_only(&self) {
        run(&["-o", "remount,ro"], &self.0);
    }

    /// The opposite.
    pub fn writable(&self) {
        run(&["-o", "remount,rw"], &self.0);
    }

    /// Takes all room that is left.
    pub fn fill(&self) {
        let mut file = std::fs::File::create(self.ballast()).expect("a file");
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    /// Gives it back.
    pub fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("it was full");
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a test that failed may still have files open there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn run(options: &[&str], folder: &Path) {
    let mounted = Command::new("mount").args(options).arg(folder).status();
    let status = mounted.expect("mount runs");
    assert!(status.success(), "mount {options:?} {}", folder.display());
}
