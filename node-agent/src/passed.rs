//! Sockets that a supervisor has opened and passes (`sd_listen_fds(3)`): they outlive the
//! agent, so that no connect is refused while it is started again.

use std::{collections::HashMap, env, os::unix::net::UnixListener as StdUnixListener, path::Path};

use citadel_proto::agent::SocketKind;
use listenfd::ListenFd;
use tokio::net::UnixListener;

use crate::socket::{self, BoundSocket, SocketError};

/// The most sockets that are looked at.
const MAX_SOCKETS: usize = 8;

/// Unix sockets that were passed to this process, by what they are for.
#[derive(Debug, Default)]
pub struct Passed(HashMap<SocketKind, StdUnixListener>);

impl Passed {
    /// Those that the environment speaks of. The names (`FileDescriptorName=`) are
    /// `workloads` and `administrators`; the first one with another name is for workloads.
    ///
    /// Takes the variables away, so it has to come before there are threads.
    pub fn from_env() -> Self {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = ListenFd::from_env();
        let mut found = HashMap::new();
        for number in 0..passed.len().min(MAX_SOCKETS) {
            let name = names.next().unwrap_or_default();
            match passed.take_unix_listener(number) {
                Ok(Some(listener)) => {
                    let kind = kind_of(name);
                    found.entry(kind).or_insert(listener);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(
                    %error,
                    name,
                    "a socket that was passed is not a Unix socket that listens"
                ),
            }
        }
        Self(found)
    }

    /// The one for this, if there is one. Its file is the supervisor's: it stays.
    ///
    /// # Errors
    /// It is bound to another path than the configuration's: workloads would look for the
    /// agent in vain.
    pub(crate) fn take(
        &mut self,
        kind: SocketKind,
        path: &Path,
    ) -> Result<Option<(UnixListener, BoundSocket)>, SocketError> {
        let Some(listener) = self.0.remove(&kind) else {
            return Ok(None);
        };
        let bound = listener.local_addr();
        let bound = bound
            .ok()
            .and_then(|at| at.as_pathname().map(Path::to_owned));
        let placed = bound
            .as_deref()
            .filter(|bound| *bound == path)
            .and_then(socket::of_supervisor)
            .ok_or_else(|| SocketError::OtherPath {
                path: path.to_owned(),
                passed: bound.unwrap_or_default(),
            })?;
        let adopted = listener
            .set_nonblocking(true)
            .and_then(|()| UnixListener::from_std(listener));
        let listener = adopted.map_err(|error| SocketError::Io {
            path: path.to_owned(),
            doing: "watching the socket that was passed",
            error,
        })?;
        Ok(Some((listener, placed)))
    }
}

fn kind_of(name: &str) -> SocketKind {
    match name {
        "administrators" => SocketKind::Administrators,
        _ => SocketKind::Workloads,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn passed(kind: SocketKind, path: &Path) -> Passed {
        let listener = StdUnixListener::bind(path).unwrap();
        Passed(HashMap::from([(kind, listener)]))
    }

    #[tokio::test]
    async fn the_file_of_a_socket_that_was_passed_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let mut sockets = passed(SocketKind::Workloads, &path);
        assert!(
            sockets
                .take(SocketKind::Administrators, &path)
                .unwrap()
                .is_none()
        );
        let (_listener, placed) = sockets.take(SocketKind::Workloads, &path).unwrap().unwrap();
        drop(placed);
        assert!(path.exists());
        assert!(
            sockets
                .take(SocketKind::Workloads, &path)
                .unwrap()
                .is_none()
        );
    }

    #[tokio::test]
    async fn one_at_another_path_than_the_configuration_s_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let mut sockets = passed(SocketKind::Workloads, &path);
        let other = dir.path().join("other.sock");
        let refused = sockets.take(SocketKind::Workloads, &other).unwrap_err();
        assert!(
            matches!(refused, SocketError::OtherPath { .. }),
            "{refused}"
        );
        assert!(refused.to_string().contains("ListenStream"), "{refused}");
    }
}
