//! Who is on the other end of a connection: attested once, when it is accepted.

use std::{io, os::fd::AsFd, sync::Arc, time::Duration};

use citadel_identity::selector::UnixFacts;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::sync::OnceCell;

use super::{
    cgroup::{CgroupError, CgroupRoot, PodCgroup},
    digest::Digests,
    liveness::{Liveness, LivenessError},
    proc::{Proc, SeenFrom},
};

/// How long an executable's digest may take, with the wait for those before it.
const HASH_DEADLINE: Duration = Duration::from_secs(20);

/// How often it is checked that a connected process is still in its pod.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Why a peer gets nothing.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The kernel does not tell who is connected.
    #[error("the kernel does not tell who is connected: {0}")]
    Credentials(#[source] io::Error),
    /// The peer lives in a pid namespace that the agent does not see.
    #[error("the peer's pid is not visible here: the agent needs the host's pid namespace")]
    InvisiblePid,
    /// See [`LivenessError`].
    #[error(transparent)]
    Liveness(#[from] LivenessError),
    /// `/proc/<pid>` could not be read.
    #[error("/proc of the peer can't be read: {0}")]
    Proc(#[source] io::Error),
    /// See [`CgroupError`].
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The same caller holds too many connections.
    #[error("too many connections of the same caller: {0}")]
    TooMany(String),
}

impl AttestError {
    /// True where the next connection of the same process may well succeed.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::TooMany(_)
                | Self::Credentials(_)
                | Self::Liveness(LivenessError::TooYoung | LivenessError::Kernel(_))
        )
    }
}

/// Where to look, and where the kubelet's cgroups begin.
#[derive(Debug, Clone)]
pub struct Attestor {
    /// The proc file system of the host.
    pub proc: Proc,
    /// The kubelet's `cgroupRoot`.
    pub cgroup_root: CgroupRoot,
    /// Whether the kernel names a peer by a pidfd; else its age tells who it is.
    pub pidfds: bool,
    digests: Arc<Digests>,
}

/// An attested process.
#[derive(Debug)]
pub struct Peer {
    /// Its pid in the agent's namespace.
    pub pid: i32,
    /// The pod, where the process is in one.
    pub pod: Option<PodCgroup>,
    principal: Arc<str>,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    path: Option<String>,
    sha256: OnceCell<Option<String>>,
    attestor: Attestor,
    liveness: Liveness,
}

impl Attestor {
    /// Asks the kernel once what it can.
    pub fn new(proc: Proc, cgroup_root: CgroupRoot) -> Self {
        Self {
            proc,
            cgroup_root,
            pidfds: Liveness::kernel_has_pidfds(),
            digests: Arc::default(),
        }
    }

    /// Attests the peer of `socket`. Reads files: not for an async thread.
    ///
    /// `after` is the tick since boot after which the connection was made, where it is
    /// known: without pidfds it has to be.
    ///
    /// The order matters: take hold of the process, read what `/proc` says, and only
    /// then see that the process held is still alive, so that nothing was read of
    /// another one which took over its pid.
    pub fn attest(&self, socket: &impl AsFd, after: Option<u64>) -> Result<Peer, AttestError> {
        let credentials = getsockopt(&socket.as_fd(), sockopt::PeerCredentials)
            .map_err(|errno| AttestError::Credentials(errno.into()))?;
        let pid = credentials.pid();
        if pid <= 0 {
            return Err(AttestError::InvisiblePid);
        }
        let liveness = if self.pidfds {
            Liveness::by_pidfd(socket)?
        } else {
            Liveness::by_start_time(&self.proc, pid, after.unwrap_or(0))?
        };
        let read = self.read(pid, credentials.uid(), credentials.gid());
        // Asked even when reading failed: a process that has gone explains the failure.
        if !liveness.is_alive() {
            return Err(LivenessError::Ended.into());
        }
        let Read { pod, groups, path } = read?;
        let principal = match &pod {
            Some(pod) => format!("pod {}", pod.uid),
            None => format!("uid {}", credentials.uid()),
        };
        Ok(Peer {
            pid,
            pod,
            principal: principal.into(),
            uid: credentials.uid(),
            gid: credentials.gid(),
            groups,
            path,
            sha256: OnceCell::new(),
            attestor: self.clone(),
            liveness,
        })
    }

    fn read(&self, pid: i32, uid: u32, gid: u32) -> Result<Read, AttestError> {
        let cgroup = self.proc.cgroup(pid).map_err(AttestError::Proc)?;
        let pod = self.cgroup_root.pod_of(&cgroup)?;
        let groups = self.proc.groups(pid).map_err(AttestError::Proc)?;
        let seen_from = if pod.is_some() {
            SeenFrom::Process
        } else {
            SeenFrom::Host
        };
        // Unreadable without privileges over the process: then it has no path.
        let path = self
            .proc
            .executable_path(pid, seen_from)
            .unwrap_or_else(|error| {
                tracing::debug!(pid, uid, gid, %error, "the path of a peer's executable is hidden");
                None
            });
        Ok(Read { pod, groups, path })
    }
}

struct Read {
    pod: Option<PodCgroup>,
    groups: Vec<u32>,
    path: Option<String>,
}

impl Peer {
    /// Facts for unix selectors; the digest only if `with_digest`, since it costs a
    /// read of the whole executable (once a connection).
    pub async fn unix_facts(self: &Arc<Self>, with_digest: bool) -> UnixFacts {
        let sha256 = if with_digest {
            self.digest().await
        } else {
            None
        };
        UnixFacts {
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.clone(),
            path: self.path.clone(),
            sha256,
        }
    }

    async fn digest(self: &Arc<Self>) -> Option<String> {
        let digest = self.sha256.get_or_try_init(|| async {
            let peer = Arc::clone(self);
            let open = move || {
                let file = peer.attestor.proc.open_executable(peer.pid)?;
                // Opened of the process that is held, not of one that took over its pid.
                if !peer.is_alive() {
                    return Err(io::Error::other("the process has ended"));
                }
                Ok(file)
            };
            let digests = &self.attestor.digests;
            let hashing = digests.sha256_of(&self.principal, open);
            match tokio::time::timeout(HASH_DEADLINE, hashing).await {
                Ok(Ok(digest)) => Ok(Some(digest)),
                Ok(Err(error)) => {
                    tracing::warn!(pid = self.pid, %error, "a peer's executable can't be hashed");
                    Ok(None)
                }
                // Others may just have been before it: whoever asks next tries again.
                Err(elapsed) => {
                    tracing::warn!(pid = self.pid, "hashing a peer's executable took too long");
                    Err(elapsed)
                }
            }
        });
        digest.await.ok().cloned().flatten()
    }

    /// True while the process that connected lives.
    pub fn is_alive(&self) -> bool {
        self.liveness.is_alive()
    }

    /// Resolves when the process that connected has ended, or is not where it was
    /// attested: its pod has gone from under it.
    pub async fn left(&self) {
        loop {
            tokio::select! {
                () = self.liveness.ended() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if !self.is_in_place() {
                return;
            }
        }
    }

    /// True while the process is in the pod and container, or in none, as when it was attested. What
    /// can't be read any more is left to [`Self::is_alive`].
    fn is_in_place(&self) -> bool {
        let Ok(cgroup) = self.attestor.proc.cgroup(self.pid) else {
            return true;
        };
        let now = self.attestor.cgroup_root.pod_of(&cgroup);
        now.is_ok_and(|now| now == self.pod)
    }

    /// Whom limits count: the pod, or the user outside of pods.
    pub fn principal(&self) -> &Arc<str> {
        &self.principal
    }

    /// For log lines.
    pub fn describe(&self) -> String {
        format!("pid {} ({})", self.pid, self.principal)
    }
}
