//! Ending in order: signals stop the intake, what was accepted is finished, and a deadline
//! bounds the wait.

use std::{future::Future, io, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The owner's side: triggers the shutdown and waits for the tasks that must end.
/// Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    stop: CancellationToken,
    hurry: CancellationToken,
    tasks: TaskTracker,
}

/// The side of those who must notice: cheap to clone, one for each task.
#[derive(Clone, Debug)]
pub struct ShutdownSignal(CancellationToken);

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every task ended by itself.
    Complete,
    /// The deadline passed with this many tasks left.
    DeadlinePassed {
        /// Tasks that had not ended.
        tasks: usize,
    },
    /// A second signal ended the wait with this many tasks left.
    Hurried {
        /// Tasks that had not ended.
        tasks: usize,
    },
}

impl Shutdown {
    /// Nothing is triggered yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Triggers on SIGTERM and SIGINT; a second signal ends [`Self::drain`] at once.
    ///
    /// # Errors
    /// The signal handlers could not be installed.
    pub fn on_signals(&self) -> io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                if shutdown.stop.is_cancelled() {
                    tracing::warn!(signal = name, "second signal: not waiting any longer");
                    shutdown.hurry.cancel();
                    return;
                }
                tracing::info!(signal = name, "shutting down");
                shutdown.trigger();
            }
        });
        Ok(())
    }

    /// Begins the shutdown. Again: no effect.
    pub fn trigger(&self) {
        self.stop.cancel();
    }

    /// A handle that notices the shutdown.
    pub fn signal(&self) -> ShutdownSignal {
        ShutdownSignal(self.stop.clone())
    }

    /// Runs a task that [`Self::drain`] waits for. The task must watch a
    /// [`ShutdownSignal`] and end by itself; it is not aborted.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Triggers the shutdown and waits until every task of [`Self::spawn`] has ended, at most
    /// `deadline`.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.trigger();
        self.tasks.close();
        tokio::select! {
            biased;
            () = self.tasks.wait() => Drained::Complete,
            () = self.hurry.cancelled() => Drained::Hurried { tasks: self.tasks.len() },
            () = tokio::time::sleep(deadline) => Drained::DeadlinePassed { tasks: self.tasks.len() },
        }
    }
}

impl ShutdownSignal {
    /// A signal that never comes, for tools and tests that own no [`Shutdown`].
    pub fn never() -> Self {
        Self(CancellationToken::new())
    }

    /// Resolves once the shutdown has begun, at once if it already has.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }

    /// Like [`Self::wait`], as a future that borrows nothing.
    pub fn wait_owned(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.0.clone().cancelled_owned()
    }

    /// Whether the shutdown has begun.
    pub fn is_triggered(&self) -> bool {
        self.0.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_the_tasks() {
        let shutdown = Shutdown::new();
        let signal = shutdown.signal();
        let task = shutdown.spawn(async move {
            signal.wait().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            7
        });
        assert!(!shutdown.signal().is_triggered());
        assert_eq!(
            shutdown.drain(Duration::from_secs(5)).await,
            Drained::Complete
        );
        assert_eq!(task.await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_at_its_deadline() {
        let shutdown = Shutdown::new();
        shutdown.spawn(std::future::pending::<()>());
        let begun = tokio::time::Instant::now();
        let ended = shutdown.drain(Duration::from_secs(5)).await;
        assert_eq!(ended, Drained::DeadlinePassed { tasks: 1 });
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test]
    async fn signals_trigger_and_a_second_one_hurries() {
        let shutdown = Shutdown::new();
        shutdown.on_signals().unwrap();
        shutdown.spawn(std::future::pending::<()>());
        kill(Pid::this(), Signal::SIGTERM).unwrap();
        let waited = Duration::from_secs(20);
        tokio::time::timeout(waited, shutdown.signal().wait())
            .await
            .unwrap();
        kill(Pid::this(), Signal::SIGINT).unwrap();
        let ended = shutdown.drain(Duration::from_mins(10));
        assert_eq!(
            tokio::time::timeout(waited, ended).await.unwrap(),
            Drained::Hurried { tasks: 1 }
        );
    }
}
