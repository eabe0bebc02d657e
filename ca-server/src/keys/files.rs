//! Files that hold keys: read only where nobody else could have read or changed them, and
//! written so that a crash leaves a whole file or none.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use citadel_identity::crypto;
use nix::{
    fcntl::{Flock, FlockArg, OFlag},
    unistd::geteuid,
};
use zeroize::Zeroizing;

use super::KeyError;

/// Mode of what holds a private key.
pub(crate) const PRIVATE: u32 = 0o600;
/// Mode of certificates.
pub(crate) const PUBLIC: u32 = 0o644;

/// More than any key or certificate file of ours can hold.
const LARGEST: u64 = 8 << 20;

/// Names of files that are still being written begin so. A dot keeps them out of listings.
const UNFINISHED: &str = ".citadel-new-";

/// The directory, locked: one process at a time makes or loads keys in it.
pub(crate) struct Directory<'a> {
    path: &'a Path,
    lock: Flock<File>,
}

impl<'a> Directory<'a> {
    /// Opens and locks the directory; makes it (mode 0700) where it is missing.
    pub(crate) fn open(path: &'a Path) -> Result<Self, KeyError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(path)
            .map_err(KeyError::io(path, "cannot make the directory"))?;
        let directory =
            File::open(path).map_err(KeyError::io(path, "cannot open the directory"))?;
        let metadata = directory
            .metadata()
            .map_err(KeyError::io(path, "cannot look at the directory"))?;
        // Whoever may write the directory can put another root in place of ours. The group
        // may: a volume's group is how Kubernetes gives it to this process.
        if metadata.mode() & 0o002 != 0 {
            let mode = metadata.mode() & 0o7777;
            let wanted = mode & !0o007;
            let others = "replace the files in it";
            return Err(KeyError::Mode {
                path: path.to_owned(),
                mode,
                others,
                wanted,
            });
        }
        let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock)
            .map_err(|_| KeyError::Busy(path.to_owned()))?;
        let directory = Self { path, lock };
        directory.remove_unfinished();
        Ok(directory)
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// A private file's content, `None` where there is no such file.
    pub(crate) fn read_private(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
        let path = self.path.join(name);
        // The checks are of the opened file, and not through a link: what is judged is what
        // is read.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => {
                return Err(KeyError::NotAFile(path));
            }
            Err(error) => return Err(KeyError::io(&path, "cannot open")(error)),
        };
        let metadata = file
            .metadata()
            .map_err(KeyError::io(&path, "cannot look at it"))?;
        if !metadata.is_file() {
            return Err(KeyError::NotAFile(path));
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            let others = "read or replace the private key";
            return Err(KeyError::Mode {
                path,
                mode,
                others,
                wanted: PRIVATE,
            });
        }
        let own = geteuid().as_raw();
        if metadata.uid() != own && metadata.uid() != 0 {
            return Err(KeyError::Owner {
                path,
                owner: metadata.uid(),
                own,
            });
        }
        read_open(file, &path).map(Some)
    }

    /// A public file's content, `None` where there is no such file.
    pub(crate) fn read_public(&self, name: &str) -> Result<Option<Vec<u8>>, KeyError> {
        read(&self.path.join(name)).map(|content| content.map(|content| content.to_vec()))
    }

    /// Writes a file that does not exist yet. When it returns, content and name are on the
    /// disk; a crash before leaves no file of that name.
    pub(crate) fn create(&self, name: &str, mode: u32, content: &[u8]) -> Result<(), KeyError> {
        let (path, unfinished) = (self.path.join(name), self.unfinished());
        write(&unfinished, mode, content)?;
        // A link, since a rename would replace what has come into being meanwhile.
        let linked = fs::hard_link(&unfinished, &path);
        let _ = fs::remove_file(&unfinished);
        linked.map_err(KeyError::io(&path, "cannot create"))?;
        self.sync()
    }

    /// Replaces a file: after a crash there is the old or the new one.
    pub(crate) fn replace(&self, name: &str, mode: u32, content: &[u8]) -> Result<(), KeyError> {
        let (path, unfinished) = (self.path.join(name), self.unfinished());
        write(&unfinished, mode, content)?;
        fs::rename(&unfinished, &path).map_err(KeyError::io(&path, "cannot replace"))?;
        self.sync()
    }

    fn unfinished(&self) -> std::path::PathBuf {
        self.path.join(format!(
            "{UNFINISHED}{}",
            hex::encode(crypto::random::<8>())
        ))
    }

    fn sync(&self) -> Result<(), KeyError> {
        self.lock
            .sync_all()
            .map_err(KeyError::io(self.path, "cannot write the directory"))
    }

    /// What a crash left behind. Nobody else writes here: the directory is locked.
    fn remove_unfinished(&self) {
        let Ok(entries) = fs::read_dir(self.path) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// A file's content, `None` where there is no such file. Follows links, as Kubernetes makes
/// them in a Secret's volume.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
    match File::open(path) {
        Ok(file) => read_open(file, path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KeyError::io(path, "cannot open")(error)),
    }
}

fn read_open(mut file: File, path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let size = file
        .metadata()
        .map_err(KeyError::io(path, "cannot look at it"))?
        .len();
    if size > LARGEST {
        let error = io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 8 MiB");
        return Err(KeyError::io(path, "cannot read")(error));
    }
    // Room for all of it: a growing buffer would leave copies of the key behind.
    let room = usize::try_from(size).unwrap_or_default() + 1;
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    Read::by_ref(&mut file)
        .take(LARGEST)
        .read_to_end(&mut content)
        .map_err(KeyError::io(path, "cannot read"))?;
    Ok(content)
}

fn write(path: &Path, mode: u32, content: &[u8]) -> Result<(), KeyError> {
    let failed = || KeyError::io(path, "cannot write");
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(PRIVATE)
        .open(path)
        .map_err(failed())?;
    // Exactly this mode, whatever the umask and the directory's ACLs make of it.
    file.set_permissions(fs::Permissions::from_mode(mode))
        .map_err(failed())?;
    file.write_all(content).map_err(failed())?;
    file.sync_all().map_err(failed())
}
