//! Counts refusals, and writes one line for each to the log and to the audit log, within
//! bounds: who is refused must not be able to fill the disk.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use citadel_runtime::LineLimit;
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::Instant;

use super::{front::code_name, refusal::Refusal};
use crate::{
    admission::Lane,
    audit::AuditLog,
    log::{caller_facts, without_empty},
    metrics::Metrics,
};

/// Lines in [`LineLimit::WINDOW`] for one caller and one code: as many as a batch has items.
const PER_CALLER: u32 = 256;
/// Lines in [`LineLimit::WINDOW`] in all.
const IN_ALL: u32 = 2048;
/// Callers and codes told apart at once.
const CALLERS: usize = 4096;
/// The most of a reason that is written, characters.
const REASON: usize = 500;

/// Shared by all services.
pub(crate) struct Refusals {
    metrics: Arc<Metrics>,
    lines: Mutex<Lines>,
    audit: Option<AuditLog>,
}

#[derive(Default)]
struct Lines {
    all: LineLimit,
    /// By code too, so that a flood of one kind of refusal hides no other.
    callers: HashMap<(Lane, &'static str), LineLimit>,
    /// Left out since the last line, of whoever.
    left_out: u64,
}

impl Refusals {
    pub(crate) fn new(metrics: Arc<Metrics>, audit: Option<AuditLog>) -> Self {
        Self {
            metrics,
            lines: Mutex::default(),
            audit,
        }
    }

    /// Counts a refusal, of a request or of one item, and logs it unless this caller, or all
    /// together, had their lines. What is left out is counted in the next line.
    pub(super) fn record(
        &self,
        rpc: &'static str,
        lane: &Lane,
        peer: SocketAddr,
        refusal: &Refusal,
    ) {
        let code = code_name(refusal.code);
        self.metrics.request(rpc, code);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(left_out) = lines.take(lane, code, Instant::now()) else {
            return;
        };
        drop(lines);
        if let Some(audit) = &self.audit
            && !audit.write(line(rpc, lane, peer, refusal, left_out))
        {
            self.lines
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .left_out += 1;
        }
        // What the reason quotes may be as long as the request.
        tracing::warn!(
            target: "citadel::refused",
            rpc,
            %peer,
            code,
            reason = format_args!("{:.REASON$}", refusal.reason),
            left_out,
            "refused"
        );
    }
}

/// A line of the audit log: the field names of the issuance log, what is empty left out.
fn line(
    rpc: &'static str,
    lane: &Lane,
    peer: SocketAddr,
    refusal: &Refusal,
    left_out: u64,
) -> String {
    let caller = refusal.caller.as_deref().map(caller_facts);
    let node = match lane {
        Lane::Node(node) => node.as_str(),
        Lane::Peer(_) | Lane::Own => "",
    };
    let line = json!({
        "time": OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
        "kind": "refused",
        "rpc": rpc,
        "address": peer.to_string(),
        "agent_of": node,
        "caller": caller,
        "code": code_name(refusal.code),
        "reason": format!("{:.REASON$}", refusal.reason),
        "left_out": left_out,
    });
    without_empty(line).to_string()
}

impl Lines {
    fn take(&mut self, lane: &Lane, code: &'static str, now: Instant) -> Option<u64> {
        let key = (lane.clone(), code);
        if self.callers.len() >= CALLERS && !self.callers.contains_key(&key) {
            self.callers.retain(|_, limit| !limit.is_over(now));
        }
        let known = self.callers.len() < CALLERS || self.callers.contains_key(&key);
        // Where there are too many callers to tell apart, the limit of all is the limit.
        let may_log = !known
            || self
                .callers
                .entry(key)
                .or_default()
                .take(now, PER_CALLER)
                .is_some();
        if !may_log || self.all.take(now, IN_ALL).is_none() {
            self.left_out += 1;
            return None;
        }
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(number: u32) -> Lane {
        Lane::Node(number.to_string())
    }

    #[test]
    fn a_flood_of_one_caller_leaves_lines_to_others_and_is_counted() {
        let mut lines = Lines::default();
        let now = Instant::now();
        let flood = (0..1000).filter(|_| lines.take(&lane(1), "Unavailable", now).is_some());
        assert_eq!(flood.count(), PER_CALLER as usize);
        let left_out = 1000 - u64::from(PER_CALLER);
        assert_eq!(lines.take(&lane(2), "Unavailable", now), Some(left_out));
        assert_eq!(lines.take(&lane(1), "Unauthenticated", now), Some(0));
        assert_eq!(lines.take(&lane(1), "Unavailable", now), None);
        let later = now + LineLimit::WINDOW;
        assert_eq!(lines.take(&lane(1), "Unavailable", later), Some(1));
    }

    #[test]
    fn many_callers_together_have_a_limit_too_and_are_forgotten() {
        let mut lines = Lines::default();
        let now = Instant::now();
        let mut take = |number: u32, now| lines.take(&lane(number), "Unavailable", now);
        let logged = (0..10_000).filter(|number| take(*number, now).is_some());
        assert_eq!(logged.count(), IN_ALL as usize);
        let left_out = 10_000 - u64::from(IN_ALL);
        assert_eq!(take(20_000, now + LineLimit::WINDOW), Some(left_out));
        assert_eq!(lines.callers.len(), 1);
    }
}
