//! The kernel's queue of connections, and since when it holds what it holds.

use std::{
    io,
    os::unix::net::{UnixListener as StdListener, UnixStream as StdStream},
    time::Duration,
};

use tokio::{
    io::unix::{AsyncFd, AsyncFdReadyGuard},
    net::UnixListener,
};

use crate::attest::proc::Proc;

/// How often the queue is looked at on kernels that name no process by a pidfd. A
/// process has to be older than the last look that found the queue empty, so this is
/// also how old a process is before it may connect.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Takes connections out of the queue.
pub(super) struct Backlog {
    listener: AsyncFd<StdListener>,
    /// Tells ticks; none where pidfds make a process's age of no interest.
    clock: Option<Proc>,
    empty_at: u64,
}

impl Backlog {
    // `new` is deprecated because some types' descriptors can change under it; that of a
    // listener can't, and the replacement is unsafe.
    #[expect(deprecated)]
    pub(super) fn new(listener: UnixListener, clock: Option<Proc>) -> io::Result<Self> {
        Ok(Self {
            listener: AsyncFd::new(listener.into_std()?)?,
            clock,
            // Nothing is known yet: what is in the queue now may have been for long.
            empty_at: 0,
        })
    }

    /// The next connection, and the tick since boot after which it was made: the queue
    /// was empty then. (How long a connection has waited the kernel does not say.)
    /// `None` where there is no clock.
    pub(super) async fn accept(&mut self) -> io::Result<(StdStream, Option<u64>)> {
        let mut ready: Option<AsyncFdReadyGuard<'_, _>> = None;
        loop {
            // Read first, so that the queue is found empty at this tick or later.
            let now = self
                .clock
                .as_ref()
                .map(|proc| proc.now_ticks().unwrap_or(0));
            match self.listener.get_ref().accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    return Ok((stream, now.map(|_| self.empty_at)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            self.empty_at = now.unwrap_or(0);
            if let Some(mut seen) = ready.take() {
                seen.clear_ready();
            }
            ready = tokio::select! {
                seen = self.listener.readable() => Some(seen?),
                () = tokio::time::sleep(LOOK_EVERY), if now.is_some() => None,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::{path::PathBuf, pin::pin};

    use super::*;
    use crate::{
        attest::{
            AttestError, Attestor,
            cgroup::CgroupRoot,
            liveness::{Liveness, LivenessError},
        },
        socket::{self, BoundSocket},
    };

    /// A proc file system whose time, and the start of this process in it, a test sets.
    struct Machine {
        backlog: Backlog,
        attestor: Attestor,
        socket: PathBuf,
        proc: PathBuf,
        _bound: BoundSocket,
        _dir: tempfile::TempDir,
    }

    impl Machine {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let proc = dir.path().join("proc");
            let process = proc.join(std::process::id().to_string());
            std::fs::create_dir_all(&process).unwrap();
            std::fs::write(process.join("cgroup"), "0::/\n").unwrap();
            std::fs::write(process.join("status"), "Groups:\t\n").unwrap();
            let socket = dir.path().join("agent.sock");
            let (listener, bound) = socket::bind(&socket, socket::Audience::Workloads).unwrap();
            let mut attestor = Attestor::new(Proc::new(&proc), CgroupRoot::new("/"));
            attestor.pidfds = false;
            let backlog = Backlog::new(listener, Some(attestor.proc.clone())).unwrap();
            let machine = Self {
                backlog,
                attestor,
                socket,
                proc,
                _bound: bound,
                _dir: dir,
            };
            machine.set_time(100);
            machine
        }

        fn set_time(&self, seconds: u64) {
            std::fs::write(self.proc.join("uptime"), format!("{seconds}.00 1.00\n")).unwrap();
        }

        fn set_start(&self, ticks: u64) {
            let stat = format!("1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 {ticks} 20\n");
            let process = self.proc.join(std::process::id().to_string());
            std::fs::write(process.join("stat"), stat).unwrap();
        }

        /// Looks at the queue and finds it empty.
        async fn look(&mut self) {
            let mut accepting = pin!(self.backlog.accept());
            assert!(futures::poll!(&mut accepting).is_pending());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_waited_is_not_paired_with_a_younger_process() {
        let mut machine = Machine::new();
        machine.look().await;
        // Connected at about 100 s; the agent is busy until 200 s, and meanwhile, at
        // 150 s, another process has got the pid.
        let _client = StdStream::connect(&machine.socket).unwrap();
        machine.set_time(200);
        machine.set_start(15_000);
        let (stream, after) = machine.backlog.accept().await.unwrap();
        assert_eq!(after, Some(10_000));
        let refused = machine.attestor.attest(&stream, after).unwrap_err();
        assert!(
            matches!(refused, AttestError::Liveness(LivenessError::TooYoung)),
            "{refused}"
        );
        assert!(refused.is_transient());
        // One that was there before the queue was seen empty is the one that connected.
        machine.set_start(9_999);
        let peer = machine.attestor.attest(&stream, after).unwrap();
        assert!(peer.is_alive());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_queued_before_the_first_look_is_believed_of_nobody() {
        let mut machine = Machine::new();
        let _client = StdStream::connect(&machine.socket).unwrap();
        machine.set_start(1);
        let (stream, after) = machine.backlog.accept().await.unwrap();
        machine.attestor.attest(&stream, after).unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_agent_keeps_looking_so_that_young_processes_are_served() {
        let mut machine = Machine::new();
        let uptime = machine.proc.join("uptime");
        let mut accepting = Box::pin(machine.backlog.accept());
        assert!(futures::poll!(&mut accepting).is_pending());
        std::fs::write(&uptime, "500.00 1.00\n").unwrap();
        tokio::time::advance(LOOK_EVERY * 2).await;
        assert!(futures::poll!(&mut accepting).is_pending());
        let _client = StdStream::connect(&machine.socket).unwrap();
        let (stream, after) = accepting.await.unwrap();
        assert_eq!(after, Some(50_000));
        machine.set_start(49_999);
        machine.attestor.attest(&stream, after).unwrap();
    }

    #[tokio::test]
    async fn where_the_kernel_has_pidfds_nobody_looks_at_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let (listener, _bound) = socket::bind(&path, socket::Audience::Workloads).unwrap();
        let mut backlog = Backlog::new(listener, None).unwrap();
        let _client = StdStream::connect(&path).unwrap();
        let (stream, after) = backlog.accept().await.unwrap();
        assert_eq!(after, None);
        // And without pidfds a connection of unknown age is nobody's.
        if !Liveness::kernel_has_pidfds() {
            let attestor = Attestor::new(Proc::new("/proc".as_ref()), CgroupRoot::new("/"));
            attestor.attest(&stream, after).unwrap_err();
        }
    }
}
