//! A folder whose files change all at once.
//!
//! The files are links into `..data`, itself a link to a folder that holds one set whole. A
//! new set is complete on disk before `..data` is pointed to it, by one rename: whoever opens
//! `svid.pem` and `svid_key.pem` through one look at `..data` has a pair, and nobody ever sees
//! half a file. Kubernetes writes its volumes so.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown, symlink},
    path::{Path, PathBuf},
};

use super::formats::{BUNDLE, CERTIFICATE, COMBINED, Content, KEY, PKCS12};

const DATA: &str = "..data";
/// A set's folder: this, and random hex.
const SET: &str = "..set-";
const NAMES: [&str; 5] = [CERTIFICATE, KEY, BUNDLE, COMBINED, PKCS12];

/// Who may read the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Owner and group; without one, this process's.
    pub owner: Option<(u32, u32)>,
    /// Mode of the files that hold the private key.
    pub key_mode: u32,
    /// Mode of the others.
    pub mode: u32,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            owner: None,
            key_mode: 0o600,
            mode: 0o644,
        }
    }
}

/// A folder that holds one SVID.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
    access: Access,
}

/// Why a folder can't be used, or was not written.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A system call failed.
    #[error("can't {doing} {path}: {error}", path = .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// How it failed.
        #[source]
        error: io::Error,
    },
    /// Somebody else could put a link in a file's place.
    #[error(
        "{path} can be written to by others than its user (mode {mode:03o}, owner {owner}): \
         choose a folder of your own, or take the rights away with `chmod go-w`",
        path = .path.display()
    )]
    OpenToOthers {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its owner.
        owner: u32,
    },
    /// There is no folder.
    #[error("{} is not a folder", .0.display())]
    NoFolder(PathBuf),
}

impl Folder {
    /// Uses `path`; makes it with mode 0700, or 0755 where another user reads the files.
    ///
    /// # Errors
    /// [`FolderError`]; a folder that others may write to is refused.
    pub fn open(path: &Path, access: Access) -> Result<Self, FolderError> {
        let mode = if access.owner.is_some() { 0o755 } else { 0o700 };
        DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(failed("make the folder", path))?;
        let there = fs::metadata(path).map_err(failed("read", path))?;
        if !there.is_dir() {
            return Err(FolderError::NoFolder(path.to_owned()));
        }
        let ours = nix::unistd::geteuid().as_raw();
        if there.mode() & 0o022 != 0 || ![0, ours].contains(&there.uid()) {
            return Err(FolderError::OpenToOthers {
                path: path.to_owned(),
                mode: there.mode() & 0o777,
                owner: there.uid(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            access,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces all files by these.
    ///
    /// # Errors
    /// [`FolderError`]; the old set then is whole still.
    pub fn write(&self, files: &[Content]) -> Result<(), FolderError> {
        let set = NewSet::create(&self.path)?;
        for file in files {
            self.fill(&set.path.join(file.name), file)?;
        }
        sync(&set.path)?;
        let old = fs::read_link(self.path.join(DATA)).ok();
        self.link(&set.name, DATA)?;
        let name = set.keep();
        for known in NAMES {
            let path = self.path.join(known);
            let target = Path::new(DATA).join(known);
            let linked = fs::read_link(&path).is_ok_and(|to| to == target);
            let wanted = files.iter().any(|file| file.name == known);
            if wanted && !linked {
                self.link(&target.to_string_lossy(), known)?;
            } else if linked && !wanted {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        // The new names are durable only when the folder is.
        sync(&self.path)?;
        self.remove_sets(&name, old.as_deref());
        Ok(())
    }

    fn fill(&self, path: &Path, content: &Content) -> Result<(), FolderError> {
        let mode = if content.secret {
            self.access.key_mode
        } else {
            self.access.mode
        };
        // create_new: never through a link that somebody else put there. No more than its own
        // mode at any moment: the owner comes before the content.
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode & 0o600)
                .open(path)?;
            if let Some((uid, gid)) = self.access.owner {
                fchown(&file, Some(uid), Some(gid))?;
            }
            // Beyond what the umask left.
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
            file.write_all(&content.bytes)?;
            file.sync_all()
        };
        write().map_err(failed("write", path))
    }

    /// Points a link to `target`, in one step.
    fn link(&self, target: &str, name: &str) -> Result<(), FolderError> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("..link-{}", random_name()));
        symlink(target, &temporary).map_err(failed("make the link", &temporary))?;
        fs::rename(&temporary, &path).map_err(|error| {
            let _ = fs::remove_file(&temporary);
            failed("replace", &path)(error)
        })
    }

    /// Sets of before, but for the last one: who opened `..data` a moment ago still finds it.
    fn remove_sets(&self, new: &str, last: Option<&Path>) {
        let Ok(there) = fs::read_dir(&self.path) else {
            return;
        };
        for entry in there.flatten() {
            let name = entry.file_name();
            let spared = name == *new || last.is_some_and(|last| last.as_os_str() == name);
            if name.to_string_lossy().starts_with(SET)
                && !spared
                && let Err(error) = fs::remove_dir_all(entry.path())
            {
                tracing::warn!(
                    path = %entry.path().display(), %error,
                    "files of an earlier certificate can't be removed"
                );
            }
        }
    }
}

/// A set's folder; removed unless it is kept.
struct NewSet {
    name: String,
    path: PathBuf,
    kept: bool,
}

impl NewSet {
    fn create(parent: &Path) -> Result<Self, FolderError> {
        let name = format!("{SET}{}", random_name());
        let path = parent.join(&name);
        // The files' own modes say who reads them.
        DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .map_err(failed("make the folder", &path))?;
        Ok(Self {
            name,
            path,
            kept: false,
        })
    }

    fn keep(mut self) -> String {
        self.kept = true;
        std::mem::take(&mut self.name)
    }
}

impl Drop for NewSet {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn random_name() -> String {
    hex::encode(rand::random::<[u8; 8]>())
}

fn sync(path: &Path) -> Result<(), FolderError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("sync", path))
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError + use<> {
    let path = path.to_owned();
    move |error| FolderError::Io { doing, path, error }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
