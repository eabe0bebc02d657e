//! The state of one `DeltaSecrets` stream. No I/O, no clock: what arrived and what is ready
//! goes in, what to send comes out.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::protocol::{MAX_NAMES, Nonces, ProtocolError, Ready, check_names, version_of_all};

/// The most responses whose answers are awaited. A client that reads on and answers nothing
/// has no use for more: the answer to an older one is as good as none.
const MAX_AWAITED: usize = 32;

/// What a client sent, without Envoy's types.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The nonce of the response that this answers; empty where it answers none.
    pub nonce: String,
    /// The names that the client wants from now on as well.
    pub subscribe: Vec<String>,
    /// The names that it does not want any more.
    pub unsubscribe: Vec<String>,
    /// In the first request of a stream: what the client holds from one before it.
    pub held: HashMap<String, String>,
    /// Envoy's reason, where it refused the response.
    pub refused: Option<String>,
}

/// A response to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Over all of `resources`; for people who look at the wire.
    pub version: String,
    /// Never used before on this stream.
    pub nonce: String,
    /// What to include, with its version: what the client does not hold yet.
    pub resources: BTreeMap<String, String>,
    /// What the client is to forget.
    pub removed: Vec<String>,
}

/// What a request meant, beside its change of the subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// It answers nothing, or nothing that is awaited.
    Subscribed,
    /// A response with these resources was taken.
    Acknowledged(BTreeMap<String, String>),
    /// A response with these resources was refused, for this reason.
    Refused(BTreeMap<String, String>, String),
}

/// The state of a stream.
#[derive(Debug)]
pub struct Stream {
    nonces: Nonces,
    begun: bool,
    subscribed: BTreeSet<String>,
    /// What the client was sent, or brought with it, and not sent anything newer.
    sent: BTreeMap<String, String>,
    /// Names of what the client brought with it and that was not ready yet to compare.
    brought: BTreeSet<String>,
    /// What the client asked for again though it was sent it: it may have lost it.
    again: BTreeSet<String>,
    /// Each with its nonce, the oldest first.
    awaited: VecDeque<(String, BTreeMap<String, String>)>,
}

impl Stream {
    /// `seed` makes the nonces of this stream unlike those of any other.
    pub fn new(seed: [u8; 4]) -> Self {
        Self {
            nonces: Nonces::new(seed),
            begun: false,
            subscribed: BTreeSet::new(),
            sent: BTreeMap::new(),
            brought: BTreeSet::new(),
            again: BTreeSet::new(),
            awaited: VecDeque::new(),
        }
    }

    /// Takes a request. Call [`Self::push`] after it.
    ///
    /// Subscriptions change whatever the nonce is: they are increments, and none may get
    /// lost. After an error the stream has to end.
    pub fn request(&mut self, request: Request) -> Result<Meaning, ProtocolError> {
        check_names(request.subscribe.iter())?;
        check_names(request.unsubscribe.iter())?;
        let meaning = self.answer(&request);
        for name in &request.unsubscribe {
            self.subscribed.remove(name);
            // A name that is asked for again later must be sent again.
            self.sent.remove(name);
            self.brought.remove(name);
            self.again.remove(name);
        }
        for name in request.subscribe {
            // An answer is no question for what it answers: that would make a loop.
            if self.begun && !meaning.is_about(&name) {
                self.again.insert(name.clone());
            }
            self.subscribed.insert(name);
        }
        if self.subscribed.len() > MAX_NAMES {
            return Err(ProtocolError::TooManyNames);
        }
        if !std::mem::replace(&mut self.begun, true) {
            let wanted = |(name, _): &(String, String)| self.subscribed.contains(name);
            self.sent.extend(request.held.into_iter().filter(wanted));
            self.brought = self.sent.keys().cloned().collect();
        }
        Ok(meaning)
    }

    fn answer(&mut self, request: &Request) -> Meaning {
        let answers = |(nonce, _): &(String, _)| *nonce == request.nonce;
        let Some(at) = self.awaited.iter().position(answers) else {
            return Meaning::Subscribed;
        };
        let Some((_, resources)) = self.awaited.remove(at) else {
            return Meaning::Subscribed;
        };
        match &request.refused {
            Some(reason) => Meaning::Refused(resources, reason.clone()),
            None => Meaning::Acknowledged(resources),
        }
    }

    /// The response that is due, if any: what is ready and this client does not hold, and
    /// what it holds and is gone. What was refused is not sent again until its content
    /// changes.
    pub fn push(&mut self, ready: &impl Ready) -> Option<Push> {
        let mut resources = BTreeMap::new();
        let mut removed = Vec::new();
        for name in &self.subscribed {
            let held = self.sent.get(name);
            match ready.version_of(name) {
                Some(version) if held != Some(&version) || self.again.contains(name) => {
                    resources.insert(name.clone(), version);
                }
                None if held.is_some() && ready.is_gone(name) => removed.push(name.clone()),
                Some(_) | None => {}
            }
        }
        if resources.is_empty() && removed.is_empty() {
            return None;
        }
        for name in &removed {
            self.sent.remove(name);
        }
        self.again.retain(|name| !resources.contains_key(name));
        self.sent.extend(resources.clone());
        let nonce = self.nonces.next();
        if self.awaited.len() >= MAX_AWAITED {
            self.awaited.pop_front();
        }
        self.awaited.push_back((nonce.clone(), resources.clone()));
        Some(Push {
            version: version_of_all(&resources),
            nonce,
            resources,
            removed,
        })
    }

    /// Whether `name` is asked for.
    pub fn asks_for(&self, name: &str) -> bool {
        self.subscribed.contains(name)
    }

    /// What the client says that it holds since an earlier stream, once the version is what
    /// `ready` has as well: it is not sent, and so never acknowledged, on this one.
    pub fn brought(&mut self, ready: &impl Ready) -> BTreeMap<String, String> {
        let known = |name: &String| ready.version_of(name);
        let brought = std::mem::take(&mut self.brought);
        let (now, later): (Vec<_>, Vec<_>) =
            brought.into_iter().partition(|name| known(name).is_some());
        self.brought = later.into_iter().collect();
        now.into_iter()
            .filter_map(|name| Some((self.sent.get(&name)?.clone(), name)))
            .filter(|(version, name)| known(name).as_ref() == Some(version))
            .map(|(version, name)| (name, version))
            .collect()
    }

    /// The names asked for.
    pub fn subscribed(&self) -> impl Iterator<Item = &str> {
        self.subscribed.iter().map(String::as_str)
    }
}

impl Meaning {
    fn is_about(&self, name: &str) -> bool {
        match self {
            Self::Subscribed => false,
            Self::Acknowledged(resources) | Self::Refused(resources, _) => {
                resources.contains_key(name)
            }
        }
    }
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
