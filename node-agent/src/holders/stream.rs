//! What is kept of one stream.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use time::OffsetDateTime;
use tokio::time::Instant;

/// The most versions of one resource whose answers are awaited.
const MAX_AWAITED: usize = 4;

/// Names a stream; never used twice.
pub type StreamId = u64;

/// A stream and what its client has.
#[derive(Debug, Clone)]
pub struct Stream {
    /// `sds`, `sds_delta` or `workload_api`.
    pub protocol: &'static str,
    /// The process at the other end.
    pub pid: i32,
    /// Its pod, or its user.
    pub peer: Arc<str>,
    /// By this machine's clock.
    pub opened: OffsetDateTime,
    /// By name.
    pub resources: Vec<Resource>,
}

/// What a resource is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// An X.509-SVID.
    Svid {
        /// Whose.
        spiffe_id: String,
        /// Lowercase hex.
        serial: String,
        /// Its end by the CA's clock, seconds since the epoch.
        not_after: i64,
        /// Where there is one.
        pod_uid: Option<String>,
    },
    /// Roots, those of the agent's own trust domain among them: their hash.
    OwnBundle(String),
    /// Roots of another trust domain, or what was read of a file.
    Other,
}

/// A resource as one client has it.
#[derive(Debug, Clone)]
pub struct Resource {
    /// As the client names it.
    pub name: String,
    /// The newest version that was sent, and when.
    pub sent: Version,
    /// The newest version that the client took, and when.
    pub acknowledged: Option<Version>,
    /// Why it refused the newest one.
    pub refused: Option<String>,
    awaited: VecDeque<(Version, Instant)>,
}

/// A version of a resource.
#[derive(Debug, Clone)]
pub struct Version {
    /// As it was told to the client.
    pub text: String,
    /// What it is; one copy for all streams that were sent it.
    pub content: Arc<Content>,
    /// When it was sent or taken.
    pub at: OffsetDateTime,
}

impl Resource {
    pub(super) fn new(name: &str, sent: Version) -> Self {
        let mut resource = Self {
            name: name.to_owned(),
            sent: sent.clone(),
            acknowledged: None,
            refused: None,
            // Of most resources one answer is awaited at a time.
            awaited: VecDeque::with_capacity(1),
        };
        resource.send(sent);
        resource
    }

    pub(super) fn send(&mut self, version: Version) {
        if self.awaited.len() >= MAX_AWAITED {
            self.awaited.pop_front();
        }
        self.awaited.push_back((version.clone(), Instant::now()));
        self.sent = version;
        self.refused = None;
    }

    /// The client took `version`; how long that took, if it is news.
    pub(super) fn take(&mut self, version: &str, at: OffsetDateTime) -> Option<Duration> {
        let place = self.place_of(version)?;
        let (taken, sent) = self.awaited.drain(..=place).next_back()?;
        self.acknowledged = Some(Version { at, ..taken });
        if self.sent.text == version {
            self.refused = None;
        }
        Some(sent.elapsed())
    }

    /// The client refused `version`.
    pub(super) fn refuse(&mut self, version: &str, reason: &str) {
        if let Some(place) = self.place_of(version) {
            self.awaited.remove(place);
        }
        if self.sent.text == version {
            self.refused = Some(reason.to_owned());
        }
    }

    fn place_of(&self, version: &str) -> Option<usize> {
        // The newest, where the same one was sent twice.
        self.awaited
            .iter()
            .rposition(|(awaited, _)| awaited.text == version)
    }
}
