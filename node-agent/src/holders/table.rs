//! The streams and what is kept of them, within a bound. Time is passed in.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use time::OffsetDateTime;

use super::stream::{Content, Resource, Stream, StreamId, Version};

/// Resources of one stream for which room is made one by one.
const FEW: usize = 4;

pub(super) struct Table {
    streams: BTreeMap<StreamId, Stream>,
    next_id: StreamId,
    resources: usize,
    limit: usize,
    /// By stream, what came when the table was full.
    untracked: BTreeMap<StreamId, usize>,
}

impl Table {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            streams: BTreeMap::new(),
            next_id: 1,
            resources: 0,
            limit,
            untracked: BTreeMap::new(),
        }
    }

    pub(super) fn open(&mut self, stream: Stream) -> StreamId {
        let id = self.next_id;
        self.next_id += 1;
        self.streams.insert(id, stream);
        id
    }

    pub(super) fn close(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(&id) {
            self.resources -= stream.resources.len();
        }
        self.untracked.remove(&id);
    }

    pub(super) fn sent(
        &mut self,
        id: StreamId,
        name: &str,
        version: &str,
        content: Arc<Content>,
        at: OffsetDateTime,
    ) {
        let full = self.resources >= self.limit;
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let sent = Version {
            text: version.to_owned(),
            content,
            at,
        };
        match stream.resources.iter_mut().find(|it| it.name == name) {
            Some(resource) => resource.send(sent),
            None if full => *self.untracked.entry(id).or_default() += 1,
            None => {
                // Most streams have one resource or two.
                if stream.resources.len() < FEW {
                    stream.resources.reserve_exact(1);
                }
                stream.resources.push(Resource::new(name, sent));
                self.resources += 1;
            }
        }
    }

    pub(super) fn acknowledged(
        &mut self,
        id: StreamId,
        name: &str,
        version: &str,
        at: OffsetDateTime,
    ) -> Option<Duration> {
        self.resource(id, name)?.take(version, at)
    }

    pub(super) fn refused(&mut self, id: StreamId, name: &str, version: &str, reason: &str) {
        if let Some(resource) = self.resource(id, name) {
            resource.refuse(version, reason);
        }
    }

    pub(super) fn keep(&mut self, id: StreamId, wanted: impl Fn(&str) -> bool) {
        if let Some(stream) = self.streams.get_mut(&id) {
            let before = stream.resources.len();
            stream.resources.retain(|resource| wanted(&resource.name));
            self.resources -= before - stream.resources.len();
        }
    }

    /// The oldest first.
    pub(super) fn streams(&self) -> impl Iterator<Item = (StreamId, &Stream)> {
        self.streams.iter().map(|(id, stream)| (*id, stream))
    }

    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    pub(super) fn untracked(&self) -> usize {
        self.untracked.values().sum()
    }

    fn resource(&mut self, id: StreamId, name: &str) -> Option<&mut Resource> {
        let stream = self.streams.get_mut(&id)?;
        stream.resources.iter_mut().find(|it| it.name == name)
    }
}
