//! Who is at the other end. The folder of the socket is closed to other users already; this
//! holds where it was opened by mistake, or reached through a mount.

use std::{io, os::unix::net::UnixStream};

use nix::{
    sys::socket::{getsockopt, sockopt},
    unistd::geteuid,
};

use crate::{
    attest::{
        cgroup::{CgroupError, CgroupRoot, PodCgroup},
        proc::Proc,
    },
    pods::{PodState, Pods},
};

/// What the kernel shows of a user that the agent's user namespace does not know. Everybody
/// may be it.
const OVERFLOW_UID: u32 = 65_534;

/// The other end is nobody to hand secrets to, or to take them from.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The kernel does not tell who it is.
    #[error("the kernel does not tell who the other agent is: {0}")]
    Credentials(#[source] io::Error),
    /// Another user.
    #[error("the other agent's user is {theirs}, this one's is {own}")]
    OtherUser {
        /// Of the other end.
        theirs: u32,
        /// Of this process.
        own: u32,
    },
    /// `/proc` does not tell where it runs.
    #[error("the other agent's cgroup can't be read: {0}")]
    Proc(#[source] io::Error),
    /// See [`CgroupError`].
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// One of them is in a pod, or they are in pods of different accounts.
    #[error("the other agent runs elsewhere: {theirs}; this one: {own}")]
    Elsewhere {
        /// Of the other end.
        theirs: String,
        /// Of this process.
        own: String,
    },
}

/// Who this process is, to hold the other end against.
#[derive(Clone)]
pub(crate) struct Own {
    pub proc: Proc,
    pub cgroup_root: CgroupRoot,
    /// The pods of this node, where they are known.
    pub pods: Pods,
}

/// The same user. That is all the successor asks of who handed it something: who can be this
/// user can give it another configuration too.
pub(crate) fn is_same_user(stream: &UnixStream) -> Result<i32, PeerError> {
    let credentials = getsockopt(stream, sockopt::PeerCredentials);
    let credentials = credentials.map_err(|errno| PeerError::Credentials(errno.into()))?;
    let (theirs, own) = (credentials.uid(), geteuid().as_raw());
    if theirs != own || own == OVERFLOW_UID {
        return Err(PeerError::OtherUser { theirs, own });
    }
    Ok(credentials.pid())
}

impl Own {
    /// The same user, and a process of the host if this one is, or in a pod of the same
    /// account if this one is in a pod. A pid that is taken again meanwhile changes the
    /// second half alone.
    pub(crate) fn may_succeed(&self, stream: &UnixStream) -> Result<i32, PeerError> {
        let pid = is_same_user(stream)?;
        let own = self.place(std::process::id().cast_signed())?;
        let theirs = self.place(pid)?;
        if self.is_same_place(own.as_ref(), theirs.as_ref()) {
            return Ok(pid);
        }
        Err(PeerError::Elsewhere {
            theirs: describe(theirs.as_ref()),
            own: describe(own.as_ref()),
        })
    }

    fn place(&self, pid: i32) -> Result<Option<PodCgroup>, PeerError> {
        let cgroup = self.proc.cgroup(pid).map_err(PeerError::Proc)?;
        Ok(self.cgroup_root.pod_of(&cgroup)?)
    }

    fn is_same_place(&self, own: Option<&PodCgroup>, theirs: Option<&PodCgroup>) -> bool {
        let (own, theirs) = match (own, theirs) {
            (None, None) => return true,
            (Some(own), Some(theirs)) => (own, theirs),
            _ => return false,
        };
        let state = |pod: &PodCgroup| {
            self.pods
                .follow(&pod.uid)
                .map(|state| state.borrow().clone())
        };
        match (state(own), state(theirs)) {
            (Some(PodState::Live(own)), Some(PodState::Live(theirs))) => {
                let account = |pod: &citadel_kubernetes::NodePod| {
                    let record = &pod.record;
                    (record.namespace.clone(), record.account.clone())
                };
                account(&own) == account(&theirs)
            }
            // Not known, or not known yet: the user has to do.
            (_, theirs) => !matches!(theirs, Some(PodState::Gone)),
        }
    }
}

fn describe(pod: Option<&PodCgroup>) -> String {
    pod.map_or_else(|| "the host".to_owned(), |pod| format!("pod {}", pod.uid))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const POD: &str = "7f3c1a52-0b4e-4c1d-9a57-1f2e3d4c5b6a";

    fn own(cgroup: &str) -> (Own, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let process = dir.path().join(std::process::id().to_string());
        std::fs::create_dir(&process).unwrap();
        std::fs::write(process.join("cgroup"), cgroup).unwrap();
        let own = Own {
            proc: Proc::new(dir.path()),
            cgroup_root: CgroupRoot::new("/"),
            pods: Pods::default(),
        };
        (own, dir)
    }

    #[test]
    fn one_of_the_host_and_one_in_a_pod_are_none_of_each_others() {
        let in_pod = format!("0::/kubepods/burstable/pod{POD}/{}\n", "ab".repeat(32));
        let (own, _dir) = own(&in_pod);
        let pod = own.place(std::process::id().cast_signed()).unwrap();
        assert!(pod.is_some());
        assert!(own.is_same_place(None, None));
        assert!(own.is_same_place(pod.as_ref(), pod.as_ref()));
        assert!(!own.is_same_place(None, pod.as_ref()));
        assert!(!own.is_same_place(pod.as_ref(), None));
        let (ours, _theirs) = UnixStream::pair().unwrap();
        own.may_succeed(&ours).unwrap();
    }

    #[test]
    fn who_can_t_be_seen_gets_nothing() {
        let (own, dir) = own("0::/\n");
        std::fs::remove_dir_all(dir.path()).unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(matches!(own.may_succeed(&ours), Err(PeerError::Proc(_))));
    }
}
