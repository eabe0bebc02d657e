//! What the holders of a node have shown of the trust bundle, in sum. Pure.

use std::collections::BTreeMap;

use super::stream::{Content, Stream};
use crate::workload_api;

/// The most bundles that a sum tells apart. Each of them was the newest once.
const MAX_BUNDLES: usize = 16;

/// The sum.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// By hash: who has shown it last.
    pub bundles: BTreeMap<String, OfBundle>,
    /// Holders that have not shown the current one.
    pub behind: u32,
    /// Of those the one whose SVID ends first.
    pub earliest_behind: Option<Behind>,
    /// False where somebody was not counted.
    pub complete: bool,
}

/// Holders of one bundle, by their grade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OfBundle {
    /// Acknowledged over SDS.
    pub grade_a: u32,
    /// Renewed after it was sent over the Workload API.
    pub grade_b: u32,
}

/// A holder that has not shown the current bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// Its identity.
    pub spiffe_id: String,
    /// Its certificate, lowercase hex.
    pub serial: String,
    /// When that ends, seconds since the epoch.
    pub not_after: i64,
    /// Where there is one.
    pub pod_uid: Option<String>,
    /// What it has shown.
    pub bundle: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    A,
    B,
}

/// All streams of one process.
#[derive(Default)]
struct Process<'s> {
    svids: Vec<&'s Content>,
    /// What each stream that carries the bundle has shown; `None` for nothing yet.
    shown: Vec<Option<(Grade, &'s str)>>,
}

impl<'s> Process<'s> {
    fn note(&mut self, stream: &'s Stream) {
        let by_sds = stream.protocol != workload_api::PROTOCOL;
        for resource in &stream.resources {
            // What runs is what was taken; over the Workload API what was sent.
            let runs_on = if by_sds {
                resource.acknowledged.as_ref()
            } else {
                Some(&resource.sent)
            };
            match &*resource.sent.content {
                Content::Svid { .. } => {
                    let svid = runs_on.unwrap_or(&resource.sent);
                    self.svids.push(&svid.content);
                }
                Content::OwnBundle(_) => {
                    let grade = if by_sds { Grade::A } else { Grade::B };
                    let shown = resource.acknowledged.as_ref();
                    self.shown
                        .push(shown.and_then(|taken| match &*taken.content {
                            Content::OwnBundle(hash) => Some((grade, hash.as_str())),
                            Content::Svid { .. } | Content::Other => None,
                        }));
                }
                Content::Other => {}
            }
        }
    }

    /// The one bundle that all of its streams have shown, at the lowest of their grades.
    fn has_shown(&self) -> Option<(Grade, &'s str)> {
        let (mut grade, hash) = (*self.shown.first()?)?;
        for shown in &self.shown {
            let (other, same) = (*shown)?;
            if same != hash {
                return None;
            }
            grade = grade.max(other);
        }
        Some((grade, hash))
    }
}

/// `current` is the hash of the bundle that holders ought to have.
pub(super) fn of<'s>(
    streams: impl Iterator<Item = &'s Stream>,
    current: &str,
    complete: bool,
) -> Summary {
    // Envoy takes certificate and roots on a stream each: a holder is the process.
    let mut processes: BTreeMap<(i32, &str), Process<'s>> = BTreeMap::new();
    for stream in streams {
        let process = processes.entry((stream.pid, &*stream.peer)).or_default();
        process.note(stream);
    }
    let mut summary = Summary {
        complete,
        ..Summary::default()
    };
    for process in processes.values().filter(|it| !it.svids.is_empty()) {
        let shown = process.has_shown();
        if let Some((grade, hash)) = shown {
            let of = summary.bundles.entry(hash.to_owned()).or_default();
            match grade {
                Grade::A => of.grade_a += 1,
                Grade::B => of.grade_b += 1,
            }
        }
        if shown.is_none_or(|(_, hash)| hash != current) {
            summary.behind += 1;
            let bundle = shown.map(|(_, hash)| hash);
            for svid in &process.svids {
                summary.note_behind(svid, bundle);
            }
        }
    }
    while summary.bundles.len() > MAX_BUNDLES {
        let rest = summary
            .bundles
            .keys()
            .find(|hash| *hash != current)
            .cloned();
        let Some(rest) = rest else { break };
        summary.bundles.remove(&rest);
    }
    summary
}

impl Summary {
    fn note_behind(&mut self, svid: &Content, bundle: Option<&str>) {
        let Content::Svid {
            spiffe_id,
            serial,
            not_after,
            pod_uid,
        } = svid
        else {
            return;
        };
        if self
            .earliest_behind
            .as_ref()
            .is_some_and(|known| known.not_after <= *not_after)
        {
            return;
        }
        self.earliest_behind = Some(Behind {
            spiffe_id: spiffe_id.clone(),
            serial: serial.clone(),
            not_after: *not_after,
            pod_uid: pod_uid.clone(),
            bundle: bundle.map(str::to_owned),
        });
    }
}
