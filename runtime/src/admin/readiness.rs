//! Which part is ready, and why another is not.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tokio::sync::watch;

/// The readiness of all parts. Clones share one state; no part means ready.
#[derive(Clone, Debug)]
pub struct Readiness {
    parts: Arc<Mutex<Vec<PartStatus>>>,
    ready: watch::Sender<bool>,
}

/// Where one part reports whether it is ready.
#[derive(Clone, Debug)]
pub struct PartHandle {
    all: Readiness,
    index: usize,
}

/// One part as `/readyz` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartStatus {
    /// Its name, such as `store`.
    pub part: &'static str,
    /// Why it is not ready; `None` when it is.
    pub reason: Option<String>,
    /// It is not ready, and the program serves without it.
    pub degraded: bool,
}

impl Readiness {
    /// No parts yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a part, not ready yet. The same name again gives the same part.
    pub fn part(&self, name: &'static str) -> PartHandle {
        let mut parts = self.lock();
        let index = parts
            .iter()
            .position(|status| status.part == name)
            .unwrap_or_else(|| {
                parts.push(PartStatus {
                    part: name,
                    reason: Some("starting".to_owned()),
                    degraded: false,
                });
                self.ready.send_replace(false);
                parts.len() - 1
            });
        PartHandle {
            all: self.clone(),
            index,
        }
    }

    /// All parts, in the order in which they were added.
    pub fn parts(&self) -> Vec<PartStatus> {
        self.lock().clone()
    }

    /// Whether the program serves: each part is ready, or it does without.
    pub fn is_ready(&self) -> bool {
        self.lock().iter().all(PartStatus::serves)
    }

    /// [`Self::is_ready`], as it changes.
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PartStatus>> {
        // The list is whole after every statement, so a panic elsewhere left nothing half done.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartHandle {
    /// The part works.
    pub fn set_ready(&self) {
        self.set(None, false);
    }

    /// The part does not work; `reason` is shown to anyone who asks, so it holds no secret.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()), false);
    }

    /// The part does not work, and the rest is worth being asked all the same.
    pub fn set_degraded(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()), true);
    }

    fn set(&self, reason: Option<String>, degraded: bool) {
        let mut parts = self.all.lock();
        let Some(status) = parts.get_mut(self.index) else {
            return;
        };
        if status.reason == reason && status.degraded == degraded {
            return;
        }
        match &reason {
            None => tracing::info!(part = status.part, "ready"),
            Some(reason) if degraded => tracing::warn!(part = status.part, %reason, "degraded"),
            Some(reason) => tracing::warn!(part = status.part, %reason, "not ready"),
        }
        status.reason = reason;
        status.degraded = degraded;
        let ready = parts.iter().all(PartStatus::serves);
        // Under the lock, so that the last word is the latest state's.
        self.all
            .ready
            .send_if_modified(|was| std::mem::replace(was, ready) != ready);
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            parts: Arc::default(),
            ready: watch::Sender::new(true),
        }
    }
}

impl PartStatus {
    /// Whether the part works, or the program serves without it.
    pub fn serves(&self) -> bool {
        self.reason.is_none() || self.degraded
    }
}

impl fmt::Display for PartStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            None => write!(f, "{}: ready", self.part),
            Some(reason) if self.degraded => write!(f, "{}: degraded: {reason}", self.part),
            Some(reason) => write!(f, "{}: not ready: {reason}", self.part),
        }
    }
}
