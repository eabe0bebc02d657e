//! What the agents report of their workloads: who has shown which trust bundle. Kept in this
//! process alone, the newest report of each node; with several servers each has those of the
//! agents that are connected to it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use citadel_identity::limits;
use citadel_proto::v1::{Holder, HoldersReport};
use time::OffsetDateTime;

/// The most nodes.
const MAX_NODES: usize = 20_000;

/// The most bundles of one report.
const MAX_BUNDLES: usize = 16;

/// A report says something of certificates for as long as one may live; after that nothing.
const KEPT_FOR: Duration = Duration::from_hours(25);

/// The longest hash or serial in hex, and the longest UID of a pod, bytes.
const MAX_HEX: usize = 64;
const MAX_POD_UID: usize = 253;

/// Which node: cluster and name.
pub(crate) type NodeKey = (String, String);

/// A report, and when it came.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) at: OffsetDateTime,
    pub(crate) report: HoldersReport,
}

/// Holders in all reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) nodes: u64,
    /// Reports of agents that could not keep count of all.
    pub(crate) incomplete: u64,
    /// Who has shown the bundle of now, by grade.
    pub(crate) current_a: u64,
    pub(crate) current_b: u64,
    /// Who has not.
    pub(crate) behind: u64,
}

/// Why a report is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReportError {
    #[error("report: missing")]
    Missing,
    #[error("report.bundles: at most {MAX_BUNDLES}")]
    TooManyBundles,
    #[error("report: a hash, serial, ID or UID in it is longer than any is")]
    TooLong,
    #[error("this server keeps the reports of at most {MAX_NODES} nodes")]
    Full,
}

/// The newest report of each node.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    nodes: Mutex<BTreeMap<NodeKey, Received>>,
}

impl Holders {
    /// Puts a report in place of the node's last one.
    pub(crate) fn note(
        &self,
        node: NodeKey,
        report: Option<HoldersReport>,
        now: OffsetDateTime,
    ) -> Result<(), ReportError> {
        let report = report.ok_or(ReportError::Missing)?;
        check(&report)?;
        let mut nodes = self.nodes();
        if nodes.len() >= MAX_NODES && !nodes.contains_key(&node) {
            nodes.retain(|_, received| now - received.at < KEPT_FOR);
            if nodes.len() >= MAX_NODES {
                return Err(ReportError::Full);
            }
        }
        nodes.insert(node, Received { at: now, report });
        Ok(())
    }

    /// All that are not too old to say anything, by cluster and node.
    pub(crate) fn list(&self, now: OffsetDateTime) -> Vec<(NodeKey, Received)> {
        let mut nodes = self.nodes();
        nodes.retain(|_, received| now - received.at < KEPT_FOR);
        let each = nodes.iter();
        each.map(|(node, received)| (node.clone(), received.clone()))
            .collect()
    }

    /// In sum; `current` is the hash of the bundle that the server hands out now.
    pub(crate) fn sums(&self, current: &str, now: OffsetDateTime) -> Sums {
        let mut nodes = self.nodes();
        nodes.retain(|_, received| now - received.at < KEPT_FOR);
        let mut sums = Sums {
            nodes: nodes.len() as u64,
            ..Sums::default()
        };
        for Received { report, .. } in nodes.values() {
            sums.incomplete += u64::from(!report.complete);
            let (grade_a, grade_b, behind) = counts(report, current);
            sums.current_a += grade_a;
            sums.current_b += grade_b;
            sums.behind += behind;
        }
        sums
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeKey, Received>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many holders of a node have shown the bundle with this hash, by grade A and B, and how
/// many have not.
pub fn counts(report: &HoldersReport, current: &str) -> (u64, u64, u64) {
    // By its own bundle of now an agent says who is behind: all others have shown it.
    let (own_a, own_b) = shown(report, &report.bundle_sha256);
    let all = u64::from(report.behind) + own_a + own_b;
    let (grade_a, grade_b) = shown(report, current);
    (grade_a, grade_b, all.saturating_sub(grade_a + grade_b))
}

/// Who has shown this bundle, by grade.
fn shown(report: &HoldersReport, bundle: &str) -> (u64, u64) {
    let of = report.bundles.iter().find(|of| of.bundle_sha256 == bundle);
    of.map_or((0, 0), |of| (of.grade_a.into(), of.grade_b.into()))
}

fn check(report: &HoldersReport) -> Result<(), ReportError> {
    if report.bundles.len() > MAX_BUNDLES {
        return Err(ReportError::TooManyBundles);
    }
    let hashes = report.bundles.iter().map(|of| &of.bundle_sha256);
    let hashes_fit = hashes
        .chain([&report.bundle_sha256])
        .all(|hash| hash.len() <= MAX_HEX);
    let holder_fits = |holder: &Holder| {
        holder.spiffe_id.len() <= limits::SPIFFE_ID_BYTES
            && holder.serial.len() <= MAX_HEX
            && holder.pod_uid.len() <= MAX_POD_UID
            && holder.bundle_sha256.len() <= MAX_HEX
    };
    if !hashes_fit || !report.earliest_behind.as_ref().is_none_or(holder_fits) {
        return Err(ReportError::TooLong);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use citadel_proto::v1::BundleHolders;

    use super::*;

    fn node(number: usize) -> NodeKey {
        ("default".into(), format!("node-{number}"))
    }

    fn report(has: &str, bundles: &[(&str, u32, u32)], behind: u32) -> HoldersReport {
        let of = |&(hash, grade_a, grade_b): &(&str, u32, u32)| BundleHolders {
            bundle_sha256: hash.into(),
            grade_a,
            grade_b,
        };
        HoldersReport {
            bundle_sha256: has.into(),
            bundles: bundles.iter().map(of).collect(),
            behind,
            earliest_behind: None,
            complete: true,
        }
    }

    #[test]
    fn the_newest_report_of_each_node_counts() {
        let holders = Holders::default();
        let now = OffsetDateTime::UNIX_EPOCH;
        let note = |number, report| holders.note(node(number), Some(report), now).unwrap();
        note(1, report("old", &[("old", 9, 9)], 0));
        // In place of that: two have shown the new one, three the old one, one nothing.
        note(1, report("new", &[("new", 2, 0), ("old", 3, 0)], 4));
        // An agent that has not got the new one yet: all of its holders are behind.
        note(2, report("old", &[("old", 5, 1)], 2));
        // One that has yet another, whose holders have shown ours.
        note(3, report("next", &[("new", 0, 4), ("next", 1, 0)], 4));
        let sums = holders.sums("new", now);
        let expected = Sums {
            nodes: 3,
            incomplete: 0,
            current_a: 2,
            current_b: 4,
            behind: 4 + 8 + 1,
        };
        assert_eq!(sums, expected);
        assert_eq!(holders.list(now).len(), 3);
        // Whatever it said is over.
        assert_eq!(holders.sums("new", now + KEPT_FOR).nodes, 0);
    }

    #[test]
    fn what_is_too_large_is_refused_and_the_last_report_stays() {
        let holders = Holders::default();
        let now = OffsetDateTime::UNIX_EPOCH;
        let note = |number, report| holders.note(node(number), report, now);
        note(0, Some(report("a", &[], 1))).unwrap();
        let many = vec![("a", 1, 1); MAX_BUNDLES + 1];
        let long = "x".repeat(5000);
        let holder = Holder {
            spiffe_id: long.clone(),
            ..Holder::default()
        };
        let with_holder = HoldersReport {
            earliest_behind: Some(holder),
            ..HoldersReport::default()
        };
        for (bad, error) in [
            (None, ReportError::Missing),
            (Some(report("a", &many, 0)), ReportError::TooManyBundles),
            (Some(report(&long, &[], 0)), ReportError::TooLong),
            (Some(with_holder), ReportError::TooLong),
        ] {
            assert_eq!(note(0, bad), Err(error));
        }
        assert_eq!(holders.sums("a", now).behind, 1);
        for number in 1..MAX_NODES {
            note(number, Some(HoldersReport::default())).unwrap();
        }
        let one_more = || Some(HoldersReport::default());
        assert_eq!(note(MAX_NODES, one_more()), Err(ReportError::Full));
        note(0, one_more()).unwrap();
        holders
            .note(node(MAX_NODES), one_more(), now + KEPT_FOR)
            .unwrap();
    }
}
