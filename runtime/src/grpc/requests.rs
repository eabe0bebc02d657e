//! Length-prefixed messages of a client ("gRPC over HTTP/2", Requests).

use std::{
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use prost::Message;
use tonic::{Status, body::Body};

/// Before each message: one byte that says whether it is compressed, and its length.
const PREFIX: usize = 5;

/// What all calls of one caller hold of messages that are not whole yet: with the most streams
/// of the most connections that would be gigabytes.
#[derive(Debug)]
pub struct Unfinished {
    bytes: AtomicUsize,
    most: usize,
}

/// The messages of one call.
pub struct Requests<M> {
    body: Body,
    /// What came of a message that is not whole yet, or after one: without memory else.
    received: BytesMut,
    /// Bytes of it that `unfinished` counts.
    counted: usize,
    unfinished: Option<Arc<Unfinished>>,
    max_message: usize,
    messages: PhantomData<fn() -> M>,
}

impl<M: Message + Default> Requests<M> {
    pub(super) fn new(body: Body, max_message: usize, unfinished: Option<Arc<Unfinished>>) -> Self {
        Self {
            body,
            received: BytesMut::new(),
            counted: 0,
            unfinished,
            max_message,
            messages: PhantomData,
        }
    }

    /// The next message; none at the end. Cancel-safe.
    ///
    /// # Errors
    /// A message that is longer than it may be (`OutOfRange`), more unfinished ones of the caller
    /// than it may have (`ResourceExhausted`), one that is compressed, cut off, or none of its
    /// type (`Internal`), and those of the connection. None of them can be gone on after.
    pub async fn next(&mut self) -> Option<Result<M, Status>> {
        self.message().await.transpose()
    }

    /// The message of a call that has one.
    ///
    /// # Errors
    /// As [`Self::next`], and where there is none (`Internal`).
    pub async fn only(&mut self) -> Result<M, Status> {
        let message = self.message().await?;
        message.ok_or_else(|| Status::internal("the request has no message"))
    }

    async fn message(&mut self) -> Result<Option<M>, Status> {
        loop {
            if let Some(message) = take(&mut self.received, self.max_message)? {
                self.count()?;
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await else {
                break;
            };
            // Trailers of a client say nothing.
            let Ok(mut data) = frame?.into_data() else {
                continue;
            };
            let mut message = None;
            if self.received.is_empty() {
                // Mostly a message is whole in one frame, and copied nowhere.
                message = take(&mut data, self.max_message)?;
            }
            self.keep(&data)?;
            if message.is_some() {
                return Ok(message);
            }
        }
        if self.received.is_empty() {
            return Ok(None);
        }
        Err(Status::internal("the stream ended within a message"))
    }

    /// Bytes that are held until the rest of their message comes.
    #[cfg(test)]
    pub(super) fn holds(&self) -> usize {
        self.received.capacity()
    }

    fn keep(&mut self, data: &Bytes) -> Result<(), Status> {
        if data.is_empty() {
            return Ok(());
        }
        self.received.extend_from_slice(data);
        self.count()
    }

    /// Lets go of memory that is not needed, and has what is held counted.
    fn count(&mut self) -> Result<(), Status> {
        if self.received.is_empty() {
            self.received = BytesMut::new();
        }
        let before = std::mem::replace(&mut self.counted, self.received.len());
        match &self.unfinished {
            Some(unfinished) => unfinished.change(before, self.counted),
            None => Ok(()),
        }
    }
}

impl<M> Drop for Requests<M> {
    fn drop(&mut self) {
        if let Some(unfinished) = &self.unfinished {
            let _ = unfinished.change(self.counted, 0);
        }
    }
}

impl Unfinished {
    /// None yet; `most` bytes at once.
    pub fn new(most: usize) -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            most,
        }
    }

    fn change(&self, before: usize, after: usize) -> Result<(), Status> {
        if after <= before {
            self.bytes.fetch_sub(before - after, Ordering::Relaxed);
            return Ok(());
        }
        let grown = after - before;
        let all = self.bytes.fetch_add(grown, Ordering::Relaxed) + grown;
        if all <= self.most {
            return Ok(());
        }
        let most = self.most;
        Err(Status::resource_exhausted(format!(
            "the requests that this caller has begun and not finished have more than {most} bytes"
        )))
    }
}

/// The message that `received` begins with; none while it is not whole.
fn take<M: Message + Default>(
    received: &mut (impl Buf + AsRef<[u8]>),
    max_message: usize,
) -> Result<Option<M>, Status> {
    let Some((prefix, rest)) = received.as_ref().split_first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return Err(Status::internal(
            "a message is marked as compressed, and the call's headers name no compression",
        ));
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > max_message {
        return Err(Status::out_of_range(format!(
            "a message of {length} bytes; {max_message} are taken at most"
        )));
    }
    if rest.len() < length {
        return Ok(None);
    }
    received.advance(PREFIX);
    let message = M::decode(received.take(length))
        .map_err(|error| Status::internal(format!("a message can't be read: {error}")))?;
    Ok(Some(message))
}
