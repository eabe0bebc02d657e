//! The load itself: workers that keep a number of requests in flight, and what they saw.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use citadel_proto::v1::{IssueBatchResponse, IssueSvidResponse, X509Svid, issue_result};
use prost::Message as _;
use prost::bytes::Bytes;
use tokio::time::Instant;
use tonic::Code;

use super::args::Path;
use super::received::Received;
use super::wire::{Call, CallError, Caller, Line};
use crate::exit::Failure;
use crate::progress::Progress;

/// A request without an answer in this time counts as failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// After a refusal, so that a server that refuses early is not asked in a tight loop.
const PAUSE: Duration = Duration::from_millis(5);

/// Requests and the connection that they go over.
pub(crate) struct Lane {
    pub(crate) line: Arc<Line>,
    pub(crate) calls: Arc<[Call]>,
    /// Which call is next; lanes that share their calls share it too.
    pub(crate) next: Arc<AtomicUsize>,
}

/// What to run.
pub(crate) struct Load {
    pub(crate) path: Path,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) concurrency: usize,
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
    pub(crate) received: Option<Received>,
}

/// What the workers saw while it was measured.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Of each call that ended while it was measured, in microseconds, sorted.
    pub(crate) latencies: Vec<u32>,
    /// When each of them began and ended.
    pub(crate) times: Vec<(Instant, Instant)>,
    /// What went wrong from start to end, and how often: calls, and items of batches.
    pub(crate) errors: BTreeMap<String, u64>,
}

/// Shared by the workers.
struct Shared {
    load: Load,
    /// Certificates since the start, warm-up too.
    certificates: AtomicU64,
    first: OnceLock<X509Svid>,
    stopped: AtomicBool,
    measure_from: Instant,
    end: Instant,
}

/// A load that runs.
pub(crate) struct Running {
    shared: Arc<Shared>,
    workers: Vec<tokio::task::JoinHandle<Result<Seen, Failure>>>,
}

impl Load {
    /// Starts the workers. The measured time begins after the warm-up.
    pub(crate) fn start(self) -> Running {
        let now = Instant::now();
        let measure_from = now + self.warm_up;
        let shared = Arc::new(Shared {
            end: measure_from + self.duration,
            measure_from,
            certificates: AtomicU64::new(0),
            first: OnceLock::new(),
            stopped: AtomicBool::new(false),
            load: self,
        });
        let workers = (0..shared.load.concurrency)
            .map(|number| tokio::spawn(Arc::clone(&shared).work(number)))
            .collect();
        Running { shared, workers }
    }
}

impl Running {
    /// Waits until the measured time begins.
    pub(crate) async fn warmed_up(&self) {
        tokio::time::sleep_until(self.shared.measure_from).await;
    }

    /// Certificates that arrived since the start.
    pub(crate) fn certificates(&self) -> u64 {
        self.shared.certificates.load(Ordering::Relaxed)
    }

    /// Sends nothing more, before the time is over.
    #[cfg(test)]
    fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }

    /// Waits until the measured time is over, and shows how it goes.
    pub(crate) async fn measured(&self, progress: &Progress) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        let (mut then, mut before) = (Instant::now(), self.certificates());
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(self.shared.end) => return,
                now = second.tick() => {
                    let count = self.certificates();
                    let passed = now.saturating_duration_since(then).as_secs_f64();
                    #[allow(clippy::cast_precision_loss)]
                    let rate = if passed > 0.0 { (count - before) as f64 / passed } else { 0.0 };
                    let elapsed = now.saturating_duration_since(self.shared.measure_from);
                    progress.at(elapsed.as_secs(), format!("s, {rate:.0} certificates/s"));
                    (then, before) = (now, count);
                }
            }
        }
    }

    /// Waits for the answers that are on their way, and gathers what was seen.
    pub(crate) async fn finish(self) -> Result<(Seen, Option<X509Svid>), Failure> {
        let mut seen = Seen::default();
        for worker in self.workers {
            let part = worker
                .await
                .map_err(|_| Failure::local("a worker panicked"))??;
            seen.latencies.extend(part.latencies);
            seen.times.extend(part.times);
            for (error, count) in part.errors {
                *seen.errors.entry(error).or_default() += count;
            }
        }
        seen.latencies.sort_unstable();
        Ok((seen, self.shared.first.get().cloned()))
    }
}

impl Shared {
    async fn work(self: Arc<Self>, number: usize) -> Result<Seen, Failure> {
        let lane = &self.load.lanes[number % self.load.lanes.len()];
        let mut caller: Caller = lane.line.caller();
        let mut seen = Seen::default();
        while Instant::now() < self.end && !self.stopped.load(Ordering::Relaxed) {
            // A server that is away may come back: the load goes on as soon as it does.
            if let Err(error) = caller.ready(self.end).await {
                seen.error(&error.to_string());
                break;
            }
            let place = lane.next.fetch_add(1, Ordering::Relaxed) % lane.calls.len();
            let start = Instant::now();
            let answer = tokio::time::timeout(CALL_TIMEOUT, caller.call(&lane.calls[place])).await;
            let end = Instant::now();
            match answer {
                Ok(Ok(message)) => {
                    let issued = self.take(message, &mut seen)?;
                    self.certificates.fetch_add(issued, Ordering::Relaxed);
                    if end >= self.measure_from && end <= self.end && issued > 0 {
                        seen.latencies.push(micros(end - start));
                        seen.times.push((start, end));
                    }
                    if issued == 0 {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Ok(Err(error @ CallError::Refused { .. })) => {
                    seen.error(&error.to_string());
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(Err(error)) => seen.error(&error.to_string()),
                Err(_) => seen.error("no answer within 30 s"),
            }
        }
        Ok(seen)
    }

    /// Reads an answer: how many certificates it brought.
    fn take(&self, message: Bytes, seen: &mut Seen) -> Result<u64, Failure> {
        let malformed = |_| Failure::check("the server sent an answer that can't be decoded");
        let mut issued = 0;
        let mut one = |svid: X509Svid| {
            issued += 1;
            if let Some(received) = &self.load.received {
                received.keep(&svid)?;
            }
            if self.first.get().is_none() {
                let _ = self.first.set(svid);
            }
            Ok::<_, Failure>(())
        };
        match self.load.path {
            Path::Token => {
                let answer = IssueSvidResponse::decode(message).map_err(malformed)?;
                match answer.svid {
                    Some(svid) => one(svid)?,
                    None => seen.error("an answer without a certificate"),
                }
            }
            Path::Agent => {
                let answer = IssueBatchResponse::decode(message).map_err(malformed)?;
                for result in answer.results {
                    match result.outcome {
                        Some(issue_result::Outcome::Svid(svid)) => one(svid)?,
                        Some(issue_result::Outcome::Error(error)) => seen.error(&format!(
                            "{:?}: {}",
                            Code::from_i32(error.code),
                            error.message
                        )),
                        None => seen.error("a batch item without a result"),
                    }
                }
            }
        }
        Ok(issued)
    }
}

pub(crate) fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

impl Seen {
    fn error(&mut self, error: &str) {
        /// More kinds than that are one kind: texts with a number in them.
        const KINDS: usize = 20;
        if let Some(count) = self.errors.get_mut(error) {
            *count += 1;
        } else {
            let error = if self.errors.len() < KINDS {
                error
            } else {
                "other errors"
            };
            *self.errors.entry(error.to_owned()).or_default() += 1;
        }
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
