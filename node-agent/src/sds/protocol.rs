//! The state of one `StreamSecrets` stream (state of the world), and what it has in common
//! with one of `DeltaSecrets`. No I/O, no clock: what arrived and what is ready goes in,
//! what to send comes out.

use std::sync::Arc;

use citadel_identity::crypto;

/// The most names that one stream may ask for.
pub const MAX_NAMES: usize = 128;

/// The longest name, in bytes: a SPIFFE ID at its longest.
pub const MAX_NAME: usize = 2048;

/// What a client sent, without Envoy's types.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The version that the client holds; empty where it holds none.
    pub version: String,
    /// The nonce of the response that this answers; empty where it answers none.
    pub nonce: String,
    /// The names that the client wants from now on.
    pub names: Vec<String>,
    /// Envoy's reason, where it refused the response.
    pub refused: Option<String>,
}

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// More than [`MAX_NAMES`].
    #[error("more than {MAX_NAMES} resource names on one stream")]
    TooManyNames,
    /// Longer than [`MAX_NAME`].
    #[error("a resource name is longer than {MAX_NAME} bytes")]
    NameTooLong,
}

/// What is ready: a version for each name that can be served right now.
///
/// Two equal versions of a name mean equal content, on any stream, at any time.
pub trait Ready {
    /// The version of what `name` stands for; `None` if it is unknown, not ready, or
    /// not for this caller.
    fn version_of(&self, name: &str) -> Option<String>;

    /// True where the CA's own word is that there is nothing of this name for this caller
    /// (any more). Never because something is late, unreachable or expired.
    fn is_gone(&self, name: &str) -> bool;
}

/// The names of responses, unlike those of any other stream.
#[derive(Debug)]
pub(super) struct Nonces {
    prefix: String,
    used: u64,
}

impl Nonces {
    pub(super) fn new(seed: [u8; 4]) -> Self {
        Self {
            prefix: hex::encode(seed),
            used: 0,
        }
    }

    pub(super) fn next(&mut self) -> String {
        self.used += 1;
        format!("{}-{}", self.prefix, self.used)
    }
}

/// Whether these names may stand in one request.
pub(super) fn check_names<'n>(
    names: impl ExactSizeIterator<Item = &'n String>,
) -> Result<(), ProtocolError> {
    if names.len() > MAX_NAMES {
        return Err(ProtocolError::TooManyNames);
    }
    for name in names {
        if name.len() > MAX_NAME {
            return Err(ProtocolError::NameTooLong);
        }
    }
    Ok(())
}

/// A response to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Derived from the content: equal content has an equal version.
    pub version: String,
    /// Never used before on this stream.
    pub nonce: String,
    /// What to include: every name of the subscription that is ready.
    pub names: Vec<String>,
}

/// What a request meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// The first request, or one that answers no response.
    Subscribed,
    /// The last response was taken.
    Acknowledged,
    /// The last response was refused, for this reason. Told once a response.
    Refused(String),
    /// It answers a response that is not the last one: nothing was done.
    Stale,
}

/// Names with their versions, in the order of the names. A stream has one or two, and there
/// are thousands of streams: a tree's nodes would be most of what one takes.
type Versions = Box<[(Arc<str>, Arc<str>)]>;

/// The state of a stream.
#[derive(Debug)]
pub struct Stream {
    nonces: Nonces,
    /// In their order, each once.
    subscribed: Box<[Arc<str>]>,
    /// What the client was sent, and not sent anything newer.
    sent: Versions,
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    nonce: String,
    version: String,
    resources: Versions,
    answer: Answer,
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Awaited,
    Taken,
    Refused,
}

impl Stream {
    /// `seed` makes the nonces of this stream unlike those of any other.
    pub fn new(seed: [u8; 4]) -> Self {
        Self {
            nonces: Nonces::new(seed),
            subscribed: Box::default(),
            sent: Box::default(),
            last: None,
        }
    }

    /// Takes a request. Call [`Self::push`] after it, unless it was stale.
    pub fn request(&mut self, request: Request) -> Result<Meaning, ProtocolError> {
        check_names(request.names.iter())?;
        let meaning = match &mut self.last {
            Some(last) if request.nonce == last.nonce => last.answered(request.refused),
            Some(last) if request.nonce.is_empty() => {
                // A client that answered everything and now starts over holds nothing.
                // While an answer is awaited it just has not seen our response yet.
                if last.answer != Answer::Awaited && request.version != last.version {
                    self.sent = Box::default();
                }
                Meaning::Subscribed
            }
            None if request.nonce.is_empty() => Meaning::Subscribed,
            // An older nonce, one of another stream, or one made up.
            Some(_) | None => return Ok(Meaning::Stale),
        };
        self.subscribe(request.names);
        Ok(meaning)
    }

    fn subscribe(&mut self, mut names: Vec<String>) {
        names.sort_unstable();
        names.dedup();
        // An answer repeats them.
        if self.subscribed().eq(names.iter().map(String::as_str)) {
            return;
        }
        self.subscribed = names.into_iter().map(Arc::from).collect();
        // A name that is asked for again later must be sent again.
        let sent = std::mem::take(&mut self.sent).into_iter();
        self.sent = sent.filter(|(name, _)| self.asks_for(name)).collect();
    }

    /// The response that is due, if any: when a name of the subscription has content
    /// that this client was not sent. What is not ready holds nothing up, and what was
    /// refused is not sent again until its content changes.
    pub fn push(&mut self, ready: &impl Ready) -> Option<Push> {
        let now: Versions = self
            .subscribed
            .iter()
            .filter_map(|name| Some((Arc::clone(name), ready.version_of(name)?.into())))
            .collect();
        if now
            .iter()
            .all(|(name, version)| version_in(&self.sent, name) == Some(version))
        {
            return None;
        }
        let push = Push {
            version: version_of_all(now.iter().map(|(name, version)| (name, version))),
            nonce: self.nonces.next(),
            names: now.iter().map(|(name, _)| name.to_string()).collect(),
        };
        // A secret that is gone for now was not taken away from the client: it comes
        // back only with new content.
        let gone = std::mem::take(&mut self.sent).into_iter();
        let gone = gone.filter(|(name, _)| version_in(&now, name).is_none());
        let mut sent: Vec<_> = now.iter().cloned().chain(gone).collect();
        sent.sort_unstable();
        self.sent = sent.into_boxed_slice();
        self.last = Some(Last {
            nonce: push.nonce.clone(),
            version: push.version.clone(),
            resources: now,
            answer: Answer::Awaited,
        });
        Some(push)
    }

    /// The names asked for.
    pub fn subscribed(&self) -> impl Iterator<Item = &str> {
        self.subscribed.iter().map(|name| &**name)
    }

    /// Whether `name` is asked for.
    pub fn asks_for(&self, name: &str) -> bool {
        let place = self
            .subscribed
            .binary_search_by(|known| (**known).cmp(name));
        place.is_ok()
    }

    /// What the last response held: names and versions.
    pub fn last_sent(&self) -> impl Iterator<Item = (&str, &str)> {
        let resources = self.last.iter().flat_map(|last| &last.resources);
        resources.map(|(name, version)| (&**name, &**version))
    }

    /// The version of the last response, if it was acknowledged.
    pub fn acknowledged(&self) -> Option<&str> {
        self.last
            .as_ref()
            .filter(|last| last.answer == Answer::Taken)
            .map(|last| last.version.as_str())
    }
}

impl Last {
    fn answered(&mut self, refused: Option<String>) -> Meaning {
        let Some(reason) = refused else {
            self.answer = Answer::Taken;
            return Meaning::Acknowledged;
        };
        // A client may repeat its refusal (with other names, say): the reason is news
        // only once.
        let again = self.answer == Answer::Refused;
        self.answer = Answer::Refused;
        if again {
            Meaning::Subscribed
        } else {
            Meaning::Refused(reason)
        }
    }
}

fn version_in<'v>(versions: &'v Versions, name: &str) -> Option<&'v Arc<str>> {
    let place = versions.binary_search_by(|(known, _)| (**known).cmp(name));
    versions.get(place.ok()?).map(|(_, version)| version)
}

/// One version for several resources, the same wherever and whenever it is computed. They
/// come in the order of their names.
pub fn version_of_all(
    resources: impl IntoIterator<Item = (impl AsRef<str>, impl AsRef<str>)>,
) -> String {
    let mut bytes = Vec::new();
    let mut add = |part: &str| {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    };
    for (name, version) in resources {
        add(name.as_ref());
        add(version.as_ref());
    }
    let digest = crypto::sha256(&bytes);
    hex::encode(digest.get(..16).unwrap_or(&digest))
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
