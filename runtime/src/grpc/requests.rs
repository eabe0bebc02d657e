//! Length-prefixed messages of a client ("gRPC over HTTP/2", Requests).

use std::marker::PhantomData;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use prost::Message;
use tonic::{Status, body::Body};

/// Before each message: one byte that says whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The messages of one call.
pub struct Requests<M> {
    body: Body,
    /// What came of a message that is not whole yet, or after one: without memory else.
    received: BytesMut,
    max_message: usize,
    messages: PhantomData<fn() -> M>,
}

impl<M: Message + Default> Requests<M> {
    pub(super) fn new(body: Body, max_message: usize) -> Self {
        Self {
            body,
            received: BytesMut::new(),
            max_message,
            messages: PhantomData,
        }
    }

    /// The next message; none at the end. Cancel-safe.
    ///
    /// # Errors
    /// A message that is longer than it may be (`OutOfRange`), compressed, cut off, or none of
    /// its type (`Internal`), and those of the connection. None of them can be gone on after.
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
        if let Some(message) = take(&mut self.received, self.max_message)? {
            self.let_go();
            return Ok(Some(message));
        }
        while let Some(frame) = self.body.frame().await {
            // Trailers of a client say nothing.
            let Ok(mut data) = frame?.into_data() else {
                continue;
            };
            if self.received.is_empty() {
                // Mostly a message is whole in one frame, and copied nowhere.
                let message = take(&mut data, self.max_message)?;
                self.keep(&data);
                if message.is_some() {
                    return Ok(message);
                }
            } else {
                self.keep(&data);
                if let Some(message) = take(&mut self.received, self.max_message)? {
                    self.let_go();
                    return Ok(Some(message));
                }
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

    fn keep(&mut self, data: &Bytes) {
        if !data.is_empty() {
            self.received.extend_from_slice(data);
        }
    }

    fn let_go(&mut self) {
        if self.received.is_empty() {
            self.received = BytesMut::new();
        }
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
