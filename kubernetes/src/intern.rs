//! Strings, label sets and container lists that many records share, kept once.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use crate::records::{Container, Labels};

/// Below this many values no sweep is worth its time.
const FIRST_SWEEP: usize = 1024;

/// Pools of shared values. A value that no record holds any more leaves at the next sweep, which
/// comes whenever a pool has doubled since the last one.
#[derive(Default)]
pub(crate) struct Interner {
    strings: Pool<str>,
    labels: Pool<[(Arc<str>, Arc<str>)]>,
    containers: Pool<[Container]>,
}

impl Interner {
    pub(crate) fn share(&mut self, value: &mut Arc<str>) {
        self.strings.share(value);
    }

    pub(crate) fn share_labels(&mut self, labels: &mut Labels) {
        if self.labels.reuse(&mut labels.0) {
            return;
        }
        labels.0 = labels
            .0
            .iter()
            .map(|(key, value)| (self.strings.shared(key), self.strings.shared(value)))
            .collect();
        self.labels.share(&mut labels.0);
    }

    pub(crate) fn share_containers(&mut self, containers: &mut Arc<[Container]>) {
        if self.containers.reuse(containers) {
            return;
        }
        *containers = containers
            .iter()
            .map(|c| Container {
                name: self.strings.shared(&c.name),
                image: self.strings.shared(&c.image),
            })
            .collect();
        self.containers.share(containers);
    }
}

struct Pool<T: ?Sized> {
    values: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self {
            values: HashSet::new(),
            sweep_at: FIRST_SWEEP,
        }
    }
}

impl<T: ?Sized + Hash + Eq> Pool<T> {
    fn reuse(&self, value: &mut Arc<T>) -> bool {
        if let Some(known) = self.values.get(&**value) {
            *value = known.clone();
            return true;
        }
        false
    }

    fn share(&mut self, value: &mut Arc<T>) {
        if self.reuse(value) {
            return;
        }
        if self.values.len() >= self.sweep_at {
            self.values.retain(|v| Arc::strong_count(v) > 1);
            self.sweep_at = (self.values.len() * 2).max(FIRST_SWEEP);
        }
        self.values.insert(value.clone());
    }

    fn shared(&mut self, value: &Arc<T>) -> Arc<T> {
        let mut value = value.clone();
        self.share(&mut value);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_become_one_and_unused_ones_leave() {
        let mut interner = Interner::default();
        let mut first: Arc<str> = "payments".into();
        let mut second: Arc<str> = "payments".into();
        interner.share(&mut first);
        interner.share(&mut second);
        assert!(Arc::ptr_eq(&first, &second));

        for n in 0..20 * FIRST_SWEEP {
            interner.share(&mut format!("passing-{n}").into());
        }
        assert!(
            interner.strings.values.len() <= FIRST_SWEEP,
            "unused values stay"
        );
        assert!(
            interner.strings.values.contains("payments"),
            "a value in use left"
        );
    }
}
