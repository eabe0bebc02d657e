//! List and watch: keeps an inventory, or a node's pods, as the API server has them.
//!
//! Written on plain requests and not on the client library's watcher, because three things must be
//! known here which that one keeps to itself: each bookmark (it proves that the watch lives), the
//! start and the end of each list, and the moment at which to give a silent connection up.

use std::borrow::Cow;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::api::ApiError;
use crate::inventory::{Event, Inventory, Kind};
use crate::node_pods::{NodePod, NodePods};
use crate::records::{AccountRecord, NodeRecord, PodRecord};
use crate::transport::{Call, CallError, Lines, Transport};

/// Objects in a page of a list.
const PAGE: u32 = 500;
/// Largest page that is read, in bytes. A larger one is asked for again with fewer objects.
const MAX_PAGE: usize = 64 << 20;
/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// The API server sends a bookmark each minute. Who has heard nothing for longer than this when the
/// API server comes back makes a new list at once, and need not wait for the next bookmark.
const MISSED_A_BOOKMARK: Duration = Duration::from_secs(75);
/// A watch that ends sooner than this, without an event, has failed.
const SHORT_WATCH: Duration = Duration::from_secs(1);

/// What follows the API server of one cluster.
pub(crate) struct Follower<'a> {
    pub(crate) transport: &'a Transport,
    pub(crate) cluster: &'a str,
    pub(crate) page_deadline: Duration,
    pub(crate) silence: Duration,
    /// Which objects alone, as the API's `fieldSelector`; empty for all.
    pub(crate) fields: &'a str,
}

impl Follower<'_> {
    /// The three watches of an inventory, for ever. `recovered` fires when the API server is back
    /// after an outage.
    pub(crate) async fn keep_all(&self, inventory: &Inventory, recovered: &watch::Sender<()>) {
        tokio::join!(
            self.keep::<PodRecord, _>(inventory, recovered.subscribe()),
            self.keep::<AccountRecord, _>(inventory, recovered.subscribe()),
            self.keep::<NodeRecord, _>(inventory, recovered.subscribe()),
        );
    }

    /// One watch, for ever.
    pub(crate) async fn keep<T: Watched, S: Sink<T>>(
        &self,
        sink: &S,
        mut recovered: watch::Receiver<()>,
    ) {
        let mut backoff = Backoff::default();
        loop {
            recovered.mark_unchanged();
            let mut version = tokio::select! {
                listed = self.list::<T, S>(sink) => match listed {
                    Ok(version) => version,
                    Err(error) => {
                        self.report::<T>("list", &error, &backoff);
                        backoff.wait(&mut recovered).await;
                        continue;
                    }
                },
                // What is under way may hang on a connection that is dead.
                Ok(()) = recovered.changed() => continue,
            };
            backoff.reset();
            self.watch_until_lost::<T, S>(sink, &mut version, &mut backoff, &mut recovered)
                .await;
        }
    }

    /// One complete list; the version to watch from.
    async fn list<T: Watched, S: Sink<T>>(&self, sink: &S) -> Result<String, ApiError> {
        let began = now();
        let (mut limit, mut next, mut count) = (PAGE, String::new(), 0);
        sink.apply(Event::ListStarted, began);
        loop {
            let path = format!(
                "{}?limit={limit}&continue={}{}",
                T::PATH,
                query_escaped(&next),
                self.selection(),
            );
            let call = Call::get(&path, self.page_deadline, MAX_PAGE);
            let body = match self.transport.call(call).await {
                Err(CallError::TooLarge) if limit > 1 => {
                    limit = (limit / 4).max(1);
                    continue;
                }
                // The list took longer than the API server keeps its snapshot.
                Err(CallError::Expired) => {
                    return Err(ApiError::Unreachable(
                        "the list expired between two pages".into(),
                    ));
                }
                answer => answer.map_err(CallError::into_api)?,
            };
            let page = decode_page::<T>(&body)?;
            count += page.records.len();
            if page.skipped > 0 {
                tracing::warn!(cluster = %self.cluster, resource = T::KIND.as_str(), count = page.skipped, "objects of the list can't be read and count as absent");
            }
            sink.apply(Event::Page(page.records), now());
            if page.next.is_empty() {
                let ended = now();
                sink.apply(Event::ListFinished, ended);
                tracing::info!(cluster = %self.cluster, resource = T::KIND.as_str(), count, took_ms = ended.saturating_duration_since(began).as_millis(), "listed");
                return Ok(page.version);
            }
            next = page.next;
        }
    }

    /// Watches from `version`, reopening as long as nothing was missed; returns when a new list is
    /// needed.
    async fn watch_until_lost<T: Watched, S: Sink<T>>(
        &self,
        sink: &S,
        version: &mut String,
        backoff: &mut Backoff,
        recovered: &mut watch::Receiver<()>,
    ) {
        loop {
            recovered.mark_unchanged();
            let opened = now();
            let before = version.clone();
            let ended = tokio::select! {
                ended = self.watch_once::<T, S>(sink, version) => ended,
                Ok(()) = recovered.changed() => Ended::Recovered,
            };
            let progressed = *version != before;
            if progressed {
                backoff.reset();
            }
            match ended {
                Ended::Lost(why) => {
                    tracing::info!(cluster = %self.cluster, resource = T::KIND.as_str(), why, "a new list is needed");
                    if !progressed {
                        // A server that loses every watch at once must not be listed in a loop.
                        backoff.wait(recovered).await;
                    }
                    return;
                }
                Ended::Closed => {
                    if !progressed && now().saturating_duration_since(opened) < SHORT_WATCH {
                        backoff.wait(recovered).await;
                    }
                }
                Ended::Failed(error) => {
                    self.report::<T>("watch", &error, backoff);
                    backoff.wait(recovered).await;
                }
                Ended::Recovered => {
                    backoff.reset();
                    if sink.staleness(now()) > MISSED_A_BOOKMARK {
                        return;
                    }
                }
            }
        }
    }

    async fn watch_once<T: Watched, S: Sink<T>>(&self, sink: &S, version: &mut String) -> Ended {
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}{}",
            T::PATH,
            query_escaped(version),
            jittered(Duration::from_hours(1)).as_secs(),
            self.selection(),
        );
        let mut lines: Lines = match self.transport.open(&path, self.page_deadline).await {
            Ok(lines) => lines,
            Err(CallError::Expired) => return Ended::Lost("the version is no longer kept"),
            Err(error) => return Ended::Failed(error.into_api()),
        };
        loop {
            let line = match tokio::time::timeout(self.silence, lines.next()).await {
                Err(_) => return Ended::Lost("the watch is silent"),
                Ok(Err(error)) => return Ended::Failed(error),
                Ok(Ok(None)) => return Ended::Closed,
                Ok(Ok(Some(line))) => line,
            };
            match decode_event::<T>(&line) {
                Ok(Change {
                    event,
                    version: reached,
                }) => {
                    sink.apply(event, now());
                    *version = reached;
                }
                Err(EventError::Expired) => return Ended::Lost("the version is no longer kept"),
                Err(EventError::Server(code)) => {
                    return Ended::Failed(ApiError::Unreachable(format!(
                        "the watch ended with status {code}"
                    )));
                }
                // The event could have been the end of something: only a list can tell.
                Err(EventError::Malformed) => return Ended::Lost("an event can't be read"),
            }
        }
    }

    /// What is added to a query.
    fn selection(&self) -> String {
        match self.fields {
            "" => String::new(),
            fields => format!("&fieldSelector={}", query_escaped(fields)),
        }
    }

    fn report<T: Watched>(&self, what: &str, error: &ApiError, backoff: &Backoff) {
        let resource = T::KIND.as_str();
        if backoff.failures == 0 {
            tracing::warn!(cluster = %self.cluster, resource, what, %error, "the API server can't be followed");
        } else {
            tracing::debug!(cluster = %self.cluster, resource, what, %error, "the API server still can't be followed");
        }
    }
}

/// How a watch came to its end.
enum Ended {
    /// Something may have been missed.
    Lost(&'static str),
    /// The server ended it, as it does after a while.
    Closed,
    Failed(ApiError),
    /// The API server is back after an outage.
    Recovered,
}

// === what is watched ===

pub(crate) trait Watched: DeserializeOwned {
    const KIND: Kind;
    const PATH: &'static str;
}

impl Watched for PodRecord {
    const KIND: Kind = Kind::Pods;
    const PATH: &'static str = "/api/v1/pods";
}

impl Watched for NodePod {
    const KIND: Kind = Kind::Pods;
    const PATH: &'static str = "/api/v1/pods";
}

impl Watched for AccountRecord {
    const KIND: Kind = Kind::Accounts;
    const PATH: &'static str = "/api/v1/serviceaccounts";
}

impl Watched for NodeRecord {
    const KIND: Kind = Kind::Nodes;
    const PATH: &'static str = "/api/v1/nodes";
}

/// What a watch feeds.
pub(crate) trait Sink<T> {
    fn apply(&self, event: Event<T>, now: Instant);

    /// The age of what it knows.
    fn staleness(&self, now: Instant) -> Duration;
}

impl Sink<PodRecord> for Inventory {
    fn apply(&self, event: Event<PodRecord>, now: Instant) {
        self.apply_pod(event, now);
    }

    fn staleness(&self, now: Instant) -> Duration {
        self.staleness_of(Kind::Pods, now)
    }
}

impl Sink<AccountRecord> for Inventory {
    fn apply(&self, event: Event<AccountRecord>, now: Instant) {
        self.apply_account(event, now);
    }

    fn staleness(&self, now: Instant) -> Duration {
        self.staleness_of(Kind::Accounts, now)
    }
}

impl Sink<NodeRecord> for Inventory {
    fn apply(&self, event: Event<NodeRecord>, now: Instant) {
        self.apply_node(event, now);
    }

    fn staleness(&self, now: Instant) -> Duration {
        self.staleness_of(Kind::Nodes, now)
    }
}

impl Sink<NodePod> for NodePods {
    fn apply(&self, event: Event<NodePod>, now: Instant) {
        NodePods::apply(self, event, now);
    }

    fn staleness(&self, now: Instant) -> Duration {
        NodePods::staleness(self, now)
    }
}

// === decoding ===

struct Page<T> {
    records: Vec<T>,
    /// Objects that are not as the API defines them.
    skipped: usize,
    /// Empty at the last page.
    next: String,
    version: String,
}

fn decode_page<T: DeserializeOwned>(body: &[u8]) -> Result<Page<T>, ApiError> {
    #[derive(Deserialize)]
    struct List<'a> {
        metadata: ListMeta,
        #[serde(borrow, default)]
        items: Option<Vec<&'a RawValue>>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ListMeta {
        resource_version: String,
        #[serde(default)]
        r#continue: String,
    }

    let list: List<'_> = serde_json::from_slice(body)
        .map_err(|_| ApiError::Malformed("the list is not as the API defines it".into()))?;
    let items = list.items.unwrap_or_default();
    let mut records = Vec::with_capacity(items.len());
    records.extend(
        items
            .iter()
            .filter_map(|item| serde_json::from_str::<T>(item.get()).ok()),
    );
    Ok(Page {
        skipped: items.len() - records.len(),
        records,
        next: list.metadata.r#continue,
        version: list.metadata.resource_version,
    })
}

struct Change<T> {
    event: Event<T>,
    /// The version after it.
    version: String,
}

#[derive(Debug, PartialEq, Eq)]
enum EventError {
    Expired,
    Server(u16),
    Malformed,
}

fn decode_event<T: DeserializeOwned>(line: &[u8]) -> Result<Change<T>, EventError> {
    #[derive(Deserialize)]
    struct Line<'a> {
        #[serde(borrow, rename = "type")]
        kind: Cow<'a, str>,
        #[serde(borrow)]
        object: &'a RawValue,
    }

    #[derive(Deserialize)]
    struct Versioned {
        metadata: Version,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        resource_version: String,
    }

    #[derive(Deserialize)]
    struct Status {
        #[serde(default)]
        code: u16,
    }

    fn part<'a, T: Deserialize<'a>>(object: &'a RawValue) -> Result<T, EventError> {
        serde_json::from_str(object.get()).map_err(|_| EventError::Malformed)
    }

    let line: Line<'_> = serde_json::from_slice(line).map_err(|_| EventError::Malformed)?;
    let event = match &*line.kind {
        "ADDED" | "MODIFIED" => Event::Applied(part(line.object)?),
        "DELETED" => Event::Deleted(part(line.object)?),
        "BOOKMARK" => Event::Bookmark,
        "ERROR" => {
            return Err(match part::<Status>(line.object)?.code {
                410 => EventError::Expired,
                code => EventError::Server(code),
            });
        }
        _ => return Err(EventError::Malformed),
    };
    let version = part::<Versioned>(line.object)?.metadata.resource_version;
    if version.is_empty() {
        return Err(EventError::Malformed);
    }
    Ok(Change { event, version })
}

/// Versions and tokens to continue are opaque: any character may be in them.
fn query_escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            escaped.push(char::from(byte));
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            escaped.push('%');
            escaped.push(char::from(HEX[usize::from(byte >> 4)]));
            escaped.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    escaped
}

// === waiting ===

#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits longer each time, but not longer than until the API server is back.
    async fn wait(&mut self, recovered: &mut watch::Receiver<()>) {
        let (first, longest) = BACKOFF;
        let wait = first
            .saturating_mul(1 << self.failures.min(16))
            .min(longest);
        self.failures = self.failures.saturating_add(1);
        tokio::select! {
            () = tokio::time::sleep(jittered(wait)) => {}
            Ok(()) = recovered.changed() => self.reset(),
        }
    }
}

/// Between half of `longest` and all of it, so that replicas do not come back in step.
fn jittered(longest: Duration) -> Duration {
    // Each RandomState has keys of its own.
    let random = RandomState::new().build_hasher().finish();
    let half = longest / 2;
    let span = u64::try_from(half.as_nanos())
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    half + Duration::from_nanos(random % span)
}

/// Tokio's clock, which tests can hold.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
