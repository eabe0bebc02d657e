//! An SVID as files, with the names of spiffe-helper: `svid.pem` (chain, leaf
//! first), `svid_key.pem` (mode 0600), `svid_bundle.pem`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::update::Svid;
use crate::certificate;
use crate::exit::Failure;

pub(crate) const CERTIFICATE: &str = "svid.pem";
pub(crate) const KEY: &str = "svid_key.pem";
pub(crate) const BUNDLE: &str = "svid_bundle.pem";

/// A folder that holds one SVID.
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Uses `path`; makes it with mode 0700 where it is missing.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| cannot(path, "make the folder", &error))?;
        Ok(Self {
            path: path.to_path_buf(),
        })
    }

    pub(crate) fn display(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Replaces the three files. All are complete on disk under temporary names
    /// before the first takes its own, so that a failure on the way leaves the
    /// old set whole; each changes in one step, so that no reader sees half a file.
    pub(crate) fn write(&self, svid: &Svid) -> Result<(), Failure> {
        svid.key_belongs().map_err(|problem| {
            Failure::check(format!(
                "nothing is written to {}: {problem}",
                self.path.display()
            ))
        })?;
        let key = certificate::key_to_pem(&svid.key);
        // The bundle first: it must be there when the new certificate is used.
        let files = [
            self.stage(
                BUNDLE,
                0o644,
                certificate::to_pem(&svid.authorities).as_bytes(),
            )?,
            self.stage(KEY, 0o600, key.as_bytes())?,
            self.stage(
                CERTIFICATE,
                0o644,
                certificate::to_pem(&svid.chain).as_bytes(),
            )?,
        ];
        for file in files {
            file.publish()?;
        }
        // The new names are durable only when the folder is.
        File::open(&self.path)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| cannot(&self.path, "sync the folder", &error))
    }

    fn stage(&self, name: &str, mode: u32, content: &[u8]) -> Result<Staged, Failure> {
        let target = self.path.join(name);
        let temporary = self.path.join(format!(
            ".{name}.{}",
            hex::encode(rand::random::<[u8; 8]>())
        ));
        let staged = Staged { temporary, target };
        staged
            .fill(mode, content)
            .map_err(|error| cannot(&staged.temporary, "write", &error))?;
        Ok(staged)
    }
}

/// A complete file that waits for its name; removed when it never gets it.
struct Staged {
    temporary: PathBuf,
    target: PathBuf,
}

impl Staged {
    fn fill(&self, mode: u32, content: &[u8]) -> io::Result<()> {
        // create_new: never through a link that somebody else put there.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&self.temporary)?;
        file.write_all(content)?;
        file.sync_all()
    }

    fn publish(&self) -> Result<(), Failure> {
        fs::rename(&self.temporary, &self.target)
            .map_err(|error| cannot(&self.target, "replace", &error))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already where it was published.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn cannot(path: &Path, what: &str, error: &io::Error) -> Failure {
    Failure::local(format!("can't {what} {}: {error}", path.display()))
        .next("Choose a folder with --write that this user may write to.")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::testing::TestCa;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn files_have_their_names_modes_and_content() {
        let ca = TestCa::new();
        let svid = ca.svid("spiffe://example.org/a");
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        Folder::open(&path).unwrap().write(&svid).unwrap();
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("svid_key.pem")), 0o600);
        assert_eq!(mode(&path.join("svid.pem")), 0o644);
        assert_eq!(mode(&path.join("svid_bundle.pem")), 0o644);
        let read = |name: &str| certificate::read(&fs::read(path.join(name)).unwrap());
        assert_eq!(read("svid.pem").unwrap(), svid.chain);
        assert_eq!(read("svid_bundle.pem").unwrap(), svid.authorities);
        let mut names: Vec<_> = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["svid.pem", "svid_bundle.pem", "svid_key.pem"]);
    }

    #[test]
    fn a_key_file_that_was_open_to_all_is_replaced_by_one_that_is_not() {
        let ca = TestCa::new();
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join(KEY);
        fs::write(&key, "old").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let svid = ca.svid("spiffe://example.org/a");
        Folder::open(folder.path()).unwrap().write(&svid).unwrap();
        assert_eq!(mode(&key), 0o600);
    }

    #[test]
    fn a_key_that_does_not_fit_is_not_written_and_the_old_set_stays() {
        let ca = TestCa::new();
        let folder = tempfile::tempdir().unwrap();
        let first = ca.svid("spiffe://example.org/a");
        let opened = Folder::open(folder.path()).unwrap();
        opened.write(&first).unwrap();
        let mut mixed = ca.svid("spiffe://example.org/a");
        mixed.key = ca.svid("spiffe://example.org/a").key.clone();
        let failure = opened.write(&mixed).unwrap_err();
        assert!(failure.to_string().contains("does not fit"), "{failure}");
        let left = fs::read(folder.path().join(CERTIFICATE)).unwrap();
        assert_eq!(certificate::read(&left).unwrap(), first.chain);
    }

    #[test]
    fn a_failure_on_the_way_leaves_no_temporary_file() {
        let ca = TestCa::new();
        let folder = tempfile::tempdir().unwrap();
        // A folder in the certificate's place can't be replaced by a file.
        fs::create_dir(folder.path().join(CERTIFICATE)).unwrap();
        let svid = ca.svid("spiffe://example.org/a");
        Folder::open(folder.path())
            .unwrap()
            .write(&svid)
            .unwrap_err();
        let hidden = fs::read_dir(folder.path())
            .unwrap()
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with('.')
            })
            .count();
        assert_eq!(hidden, 0);
    }
}
