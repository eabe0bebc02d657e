//! Registration entries, taken over from the configuration while the server runs: at SIGHUP,
//! and soon after the file has other content (a mounted ConfigMap changes without a signal).

use std::{path::PathBuf, sync::Arc, time::Duration};

use citadel_identity::crypto;
use citadel_runtime::{config::ConfigError, shutdown::ShutdownSignal};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    authz::Policy,
    config::{Config, ConfigArgs},
    log,
    metrics::Metrics,
    settings,
    store::{Store, StoreError},
};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Why changed entries were not taken over; those of before stay, all of them.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    /// The file can't be read, or something in it is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// More than entries changed.
    #[error("the configuration changed in more than `entries`: restart the CA for that")]
    NeedsRestart,
    /// The change could not be recorded, so it does not happen.
    #[error("the change could not be recorded: {0}")]
    Store(#[from] StoreError),
    /// The task that reads ended.
    #[error("reading ended early")]
    Ended,
}

/// What follows the configuration.
pub(crate) struct Reload {
    pub(crate) source: ConfigArgs,
    /// [`Config::fixed_digest`] of the configuration that the server runs on.
    pub(crate) fixed_digest: String,
    pub(crate) policy: Arc<Policy>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) metrics: Arc<Metrics>,
}

/// The file's content as it was looked at last: its hash, or why it can't be read.
type Content = Result<[u8; 32], String>;

// === impl Reload ===

impl Reload {
    /// Follows the file until the shutdown. Without a file there is nothing that could change.
    pub(crate) async fn run(self, shutdown: ShutdownSignal) {
        let Some(path) = self.source.config.clone() else {
            return;
        };
        let mut hangup = signal(SignalKind::hangup())
            .inspect_err(|error| tracing::warn!(%error, "SIGHUP can't be handled"))
            .ok();
        // The server's own start has read it; what changed since is seen by its revision.
        let mut seen = None;
        loop {
            let asked = tokio::select! {
                () = shutdown.wait() => return,
                () = received(&mut hangup) => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            let content = content(path.clone()).await;
            if !asked && seen.as_ref() == Some(&content) {
                continue;
            }
            match self.take_over().await {
                Ok(taken) => {
                    seen = Some(content);
                    if asked && !taken {
                        tracing::info!("SIGHUP: the configuration is as it was");
                    }
                }
                Err(error) => {
                    self.metrics.reloaded(false);
                    tracing::error!(%error, "changed entries are not taken over; those of before stay");
                    // A store may be back at the next look.
                    seen = (!matches!(error, ReloadError::Store(_))).then_some(content);
                }
            }
        }
    }

    /// Whether there was something else than before.
    async fn take_over(&self) -> Result<bool, ReloadError> {
        let source = self.source.clone();
        let config: Config = tokio::task::spawn_blocking(move || source.load())
            .await
            .map_err(|_| ReloadError::Ended)??;
        if config.fixed_digest != self.fixed_digest {
            return Err(ReloadError::NeedsRestart);
        }
        let registered = settings::registered(&config);
        let before = self.policy.registered().revision;
        if registered.revision == before {
            return Ok(false);
        }
        // On record before anybody gets something by it.
        let change = log::policy_changed(before, registered.revision);
        self.store.append(vec![change]).await?;
        self.metrics.reloaded(true);
        tracing::info!(
            entries = registered.entries.len(),
            revision = registered.revision,
            before,
            "entries of the changed configuration are in force"
        );
        self.policy.register(registered);
        Ok(true)
    }
}

async fn content(path: PathBuf) -> Content {
    tokio::fs::read(path)
        .await
        .map(|bytes| crypto::sha256(&bytes))
        .map_err(|error| error.to_string())
}

async fn received(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => {
            hangup.recv().await;
        }
        None => std::future::pending().await,
    }
}
