//! The Unix socket: bound so that nobody sees it half made, and a socket that another
//! agent serves is never taken away.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream as StdStream,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::net::UnixListener;

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Everybody: attestation decides.
    Workloads,
    /// Root and the agent's own user.
    Administrators,
}

impl Audience {
    fn socket_mode(self) -> u32 {
        match self {
            Self::Workloads => 0o777,
            Self::Administrators => 0o600,
        }
    }

    fn folder_mode(self) -> u32 {
        match self {
            Self::Workloads => 0o755,
            Self::Administrators => 0o700,
        }
    }
}

/// Why the socket can't be bound.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers there.
    #[error("{}: another process already serves this socket; stop it, or choose another `socket`", .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket has this name.
    #[error("{}: is there and is not a socket; remove it, or choose another `socket`", .0.display())]
    NotASocket(PathBuf),
    /// Anyone could replace the socket.
    #[error("{}: anyone may write into this folder, so anyone could pose as the agent; choose a folder of its own", .0.display())]
    OpenFolder(PathBuf),
    /// The path must be absolute: workloads find it by that.
    #[error("{}: not an absolute path with a file name", .0.display())]
    NotAbsolute(PathBuf),
    /// A supervisor passes a socket with another path.
    #[error("{}: the socket that was passed is {}; write the same path for ListenStream= and in the configuration", .path.display(), .passed.display())]
    OtherPath {
        /// The configuration's.
        path: PathBuf,
        /// The socket's.
        passed: PathBuf,
    },
    /// The system refused.
    #[error("{}: {doing}: {error}", .path.display())]
    Io {
        /// Which path.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        error: io::Error,
    },
}

/// A bound socket; its file is removed when this is dropped, unless another process has
/// put its own in place or has taken this one over.
#[derive(Debug)]
pub struct BoundSocket {
    path: PathBuf,
    identity: Identity,
}

/// Which file a socket has. Clones share whether it is left where it is.
#[derive(Debug, Clone)]
pub struct Identity {
    inode: (u64, u64),
    left: Arc<AtomicBool>,
}

impl Identity {
    fn of(there: &fs::Metadata) -> Self {
        Self {
            inode: (there.dev(), there.ino()),
            left: Arc::default(),
        }
    }

    /// Device and inode.
    pub fn inode(&self) -> (u64, u64) {
        self.inode
    }

    /// Whether it is.
    pub fn is_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// The file is another process's from now on.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
    }
}

/// The file of a socket that a supervisor has opened: it stays.
pub fn of_supervisor(path: &Path) -> Option<BoundSocket> {
    let identity = Identity::of(&fs::symlink_metadata(path).ok()?);
    identity.leave();
    Some(BoundSocket {
        path: path.to_owned(),
        identity,
    })
}

/// The file of a socket that another process has handed over, if `path` is that very file.
pub fn adopt(path: &Path, inode: (u64, u64)) -> Option<BoundSocket> {
    let there = fs::symlink_metadata(path).ok()?;
    let identity = Identity::of(&there);
    (there.file_type().is_socket() && identity.inode == inode).then(|| BoundSocket {
        path: path.to_owned(),
        identity,
    })
}

/// Binds `path`. A folder that is missing is made for this audience.
pub fn bind(path: &Path, audience: Audience) -> Result<(UnixListener, BoundSocket), SocketError> {
    let (Some(folder), Some(name), true) = (path.parent(), path.file_name(), path.is_absolute())
    else {
        return Err(SocketError::NotAbsolute(path.to_owned()));
    };
    let failed = |doing| {
        move |error| SocketError::Io {
            path: path.to_owned(),
            doing,
            error,
        }
    };
    if !folder.exists() {
        DirBuilder::new()
            .recursive(true)
            .mode(audience.folder_mode())
            .create(folder)
            .map_err(failed("creating the folder"))?;
        // The umask may have taken the x that workloads need.
        fs::set_permissions(folder, Permissions::from_mode(audience.folder_mode()))
            .map_err(failed("setting the folder's mode"))?;
    }
    let mode = fs::metadata(folder)
        .map_err(failed("reading the folder"))?
        .mode();
    // The sticky bit of /tmp keeps others from replacing the socket.
    if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        return Err(SocketError::OpenFolder(folder.to_owned()));
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("looking for a socket")(error)),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => match StdStream::connect(path) {
            // Left behind by an agent that was killed: replaced below.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("asking who serves it")(error)),
            Ok(_) => return Err(SocketError::InUse(path.to_owned())),
        },
    }
    // Made under another name with its final mode, then moved into place at once.
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = folder.join(temporary);
    let _ = fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary).map_err(failed("binding"))?;
    let placed = fs::set_permissions(&temporary, Permissions::from_mode(audience.socket_mode()))
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| fs::symlink_metadata(path));
    match placed {
        Ok(there) => {
            let bound = BoundSocket {
                path: path.to_owned(),
                identity: Identity::of(&there),
            };
            Ok((listener, bound))
        }
        Err(error) => {
            let _ = fs::remove_file(&temporary);
            Err(failed("putting the socket in place")(error))
        }
    }
}

impl BoundSocket {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its file.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let ours = || {
            fs::symlink_metadata(&self.path)
                .is_ok_and(|there| (there.dev(), there.ino()) == self.identity.inode)
        };
        if !self.identity.is_left() && ours() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[tokio::test]
    async fn folder_and_socket_have_the_modes_that_workloads_need() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/agent.sock");
        let (_listener, bound) = bind(&path, Audience::Workloads).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(path.parent().unwrap()), 0o755);
        assert_eq!(mode(&path), 0o777);
        StdStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn administrators_have_a_folder_and_a_socket_to_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin/agent.sock");
        let (_listener, _bound) = bind(&path, Audience::Administrators).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&path), 0o600);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let (listener, bound) = bind(&path, Audience::Workloads).unwrap();
        assert!(matches!(
            bind(&path, Audience::Workloads),
            Err(SocketError::InUse(_))
        ));
        // Killed: the listener is gone, the file is not.
        std::mem::forget(bound);
        drop(listener);
        let (_listener, bound) = bind(&path, Audience::Workloads).unwrap();
        StdStream::connect(&path).unwrap();
        drop(bound);
    }

    #[tokio::test]
    async fn a_successors_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let (first_listener, first) = bind(&path, Audience::Workloads).unwrap();
        drop(first_listener);
        let (_second_listener, _second) = bind(&path, Audience::Workloads).unwrap();
        drop(first);
        StdStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn what_is_unsafe_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(matches!(
            bind(&file, Audience::Workloads),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            bind(&open.join("s"), Audience::Workloads),
            Err(SocketError::OpenFolder(_))
        ));
        assert!(matches!(
            bind(Path::new("s"), Audience::Workloads),
            Err(SocketError::NotAbsolute(_))
        ));
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(
            bind(&long, Audience::Workloads),
            Err(SocketError::Io { .. })
        ));
    }
}
