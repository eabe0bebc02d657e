//! How much each caller may have unanswered at once.

use std::{collections::HashMap, sync::Arc};

/// Places by principal, and in all.
#[derive(Debug)]
pub(super) struct Quota {
    each: usize,
    all: usize,
    total: Arc<()>,
    of: HashMap<Arc<str>, Arc<()>>,
}

/// A place that is taken; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    _own: Arc<()>,
    _total: Arc<()>,
}

impl Quota {
    pub(super) fn new(each: usize, all: usize) -> Self {
        Self {
            each,
            all,
            total: Arc::default(),
            of: HashMap::new(),
        }
    }

    /// `None` if this principal, or all of them, have as many as they may.
    pub(super) fn take(&mut self, principal: &Arc<str>) -> Option<Place> {
        let own = self.of.entry(Arc::clone(principal)).or_default();
        // Every place holds one of each, beside the one here.
        let taken = |counter| Arc::strong_count(counter) - 1;
        (taken(own) < self.each && taken(&self.total) < self.all).then(|| Place {
            _own: Arc::clone(own),
            _total: Arc::clone(&self.total),
        })
    }

    /// Forgets who has none.
    pub(super) fn sweep(&mut self) {
        self.of.retain(|_, own| Arc::strong_count(own) > 1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn places_are_counted_by_principal_and_in_all() {
        let mut quota = Quota::new(2, 3);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let first = quota.take(&a).unwrap();
        let second = quota.take(&a).unwrap();
        assert!(quota.take(&a).is_none());
        let _third = quota.take(&b).unwrap();
        assert!(quota.take(&b).is_none());
        drop(first);
        let _fourth = quota.take(&b).unwrap();
        drop(second);
        quota.sweep();
        assert_eq!(quota.of.len(), 1);
    }
}
