//! Where `citadel dev` keeps its state, and its sockets, whose paths must be short.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::endpoint::MAX_SOCKET_PATH;
use crate::exit::Failure;

/// In the data folder: taken by the `citadel dev` that uses it, with its pid inside.
const LOCK: &str = "dev.lock";
/// In the data folder: the trust domain that it was made for.
const TRUST_DOMAIN: &str = "trust-domain";
const AGENT_SOCKET: &str = "agent.sock";

/// The folders of one `citadel dev`; taken for as long as it lives.
#[derive(Debug)]
pub(crate) struct Place {
    /// State that is kept between starts.
    pub(crate) data: PathBuf,
    /// Sockets and what else is of this run only.
    pub(crate) run: PathBuf,
    _lock: Flock<fs::File>,
}

impl Place {
    /// Makes or opens the data folder (mode 0700) and takes it.
    pub(crate) fn take(chosen: Option<&Path>, trust_domain: &str) -> Result<Self, Failure> {
        let data = match chosen {
            Some(path) => std::path::absolute(path).map_err(|error| cannot("use", path, &error))?,
            None => default_data(|name| std::env::var_os(name).map(PathBuf::from))?,
        };
        private_folder(&data)?;
        let lock = lock(&data)?;
        same_trust_domain(&data, trust_domain)?;
        let run = run_folder(&data)?;
        Ok(Self {
            data,
            run,
            _lock: lock,
        })
    }

    /// The agent's socket for administrators. Its path fits where that of the other does.
    pub(crate) fn agent_admin_socket(&self) -> PathBuf {
        self.run.join("admin/sock")
    }

    /// The agent's socket.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.run.join(AGENT_SOCKET)
    }
}

/// `$XDG_STATE_HOME/citadel/dev`, else `~/.local/state/citadel/dev`.
fn default_data(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, Failure> {
    // The standard says: relative paths there are invalid.
    let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .ok_or_else(|| {
            Failure::local("neither XDG_STATE_HOME nor HOME says where to keep state")
                .next("Name a folder with --data-dir.")
        })?;
    Ok(state.join("citadel/dev"))
}

/// A folder of this user alone: CA keys lie in it.
fn private_folder(path: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| cannot("make", path, &error))?;
    let found = fs::metadata(path).map_err(|error| cannot("read", path, &error))?;
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(
            Failure::local(format!("{} belongs to another user", path.display()))
                .next("Name a folder of your own with --data-dir."),
        );
    }
    if found.mode() & 0o022 != 0 {
        return Err(
            Failure::local(format!("other users may write to {}", path.display())).next(format!(
                "`chmod go-w {}`, or name another folder with --data-dir.",
                path.display()
            )),
        );
    }
    Ok(())
}

fn lock(data: &Path) -> Result<Flock<fs::File>, Failure> {
    let path = data.join(LOCK);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| cannot("open", &path, &error))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let pid = std::process::id().to_string();
            lock.set_len(0)
                .and_then(|()| lock.rewind())
                .and_then(|()| lock.write_all(pid.as_bytes()))
                .map_err(|error| cannot("write", &path, &error))?;
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            Err(Failure::local(format!(
                "another `citadel dev` (process {}) uses {}",
                pid.trim(),
                data.display()
            ))
            .next("Use the one that runs, end it, or name another folder with --data-dir."))
        }
        Err((_, error)) => Err(cannot("lock", &path, &error.into())),
    }
}

/// A folder's CA is of one trust domain for ever.
fn same_trust_domain(data: &Path, trust_domain: &str) -> Result<(), Failure> {
    let path = data.join(TRUST_DOMAIN);
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == trust_domain => Ok(()),
        Ok(found) => Err(Failure::usage(format!(
            "{} is of the trust domain {}, not {trust_domain}",
            data.display(),
            found.trim()
        ))
        .next(format!(
            "Start with --trust-domain {}, or name another folder with --data-dir.",
            found.trim()
        ))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fs::write(&path, format!("{trust_domain}\n"))
                .map_err(|error| cannot("write", &path, &error))
        }
        Err(error) => Err(cannot("read", &path, &error)),
    }
}

/// `DATA/run` where a socket in it has a path that fits, else a folder with a short name.
fn run_folder(data: &Path) -> Result<PathBuf, Failure> {
    let beside = data.join("run");
    if fits(&beside) {
        private_folder(&beside)?;
        return Ok(beside);
    }
    // The same for each start of this data folder.
    let digest = citadel_identity::crypto::sha256(data.as_os_str().as_encoded_bytes());
    let name = format!("citadel-dev-{}", hex::encode(&digest[..6]));
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let parents = [
        runtime.filter(|path| path.is_absolute()),
        Some(PathBuf::from("/tmp")),
    ];
    for parent in parents.into_iter().flatten() {
        let short = parent.join(&name);
        if parent.is_dir() && fits(&short) && private_folder(&short).is_ok() {
            return Ok(short);
        }
    }
    Err(Failure::local(format!(
        "{} is too long for a socket's path ({MAX_SOCKET_PATH} bytes at most), and there is no \
         shorter place for it",
        data.join("run").join(AGENT_SOCKET).display()
    ))
    .next("Name a folder with a shorter path with --data-dir."))
}

fn fits(folder: &Path) -> bool {
    folder.join(AGENT_SOCKET).as_os_str().len() <= MAX_SOCKET_PATH
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::local(format!("can't {what} {}: {error}", path.display()))
        .next("Name another folder with --data-dir.")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_second_dev_on_the_same_folder_is_refused_and_names_the_first() {
        let parent = tempfile::tempdir().unwrap();
        let data = parent.path().join("state");
        let first = Place::take(Some(&data), "example.org").unwrap();
        let refused = Place::take(Some(&data), "example.org").unwrap_err();
        let pid = std::process::id().to_string();
        assert!(refused.to_string().contains(&pid), "{refused}");
        assert_eq!(refused.exit(), Exit::Local);
        drop(first);
        Place::take(Some(&data), "example.org").unwrap();
    }

    #[test]
    fn the_folder_is_made_for_its_user_alone() {
        let parent = tempfile::tempdir().unwrap();
        let data = parent.path().join("a/b");
        let place = Place::take(Some(&data), "example.org").unwrap();
        assert_eq!(
            fs::metadata(&place.data).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert_eq!(place.agent_socket(), data.join("run/agent.sock"));
        drop(place);
        fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = Place::take(Some(&data), "example.org").unwrap_err();
        assert!(refused.to_string().contains("chmod"), "{refused}");
    }

    #[test]
    fn another_trust_domain_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        drop(Place::take(Some(parent.path()), "example.org").unwrap());
        let refused = Place::take(Some(parent.path()), "example.com").unwrap_err();
        assert!(
            refused.to_string().contains("--trust-domain example.org"),
            "{refused}"
        );
        assert_eq!(refused.exit(), Exit::Usage);
    }

    #[test]
    fn a_long_path_gets_its_sockets_in_a_short_place() {
        let parent = tempfile::tempdir().unwrap();
        let data = parent.path().join("x".repeat(120));
        let place = Place::take(Some(&data), "example.org").unwrap();
        assert!(place.agent_socket().as_os_str().len() <= MAX_SOCKET_PATH);
        assert!(!place.run.starts_with(&data));
        fs::remove_dir_all(&place.run).unwrap();
    }

    #[test]
    fn the_default_follows_the_xdg_standard() {
        let variables = |state: Option<&str>, home: Option<&str>| {
            let (state, home) = (state.map(PathBuf::from), home.map(PathBuf::from));
            default_data(move |name| {
                if name == "HOME" {
                    home.clone()
                } else {
                    state.clone()
                }
            })
        };
        assert_eq!(
            variables(Some("/s"), Some("/h")).unwrap(),
            Path::new("/s/citadel/dev")
        );
        let from_home = variables(Some("relative"), Some("/h")).unwrap();
        assert_eq!(from_home, Path::new("/h/.local/state/citadel/dev"));
        variables(None, None).unwrap_err();
    }
}
