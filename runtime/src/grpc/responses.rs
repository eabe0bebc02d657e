//! Length-prefixed messages to a client ("gRPC over HTTP/2", Responses).

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::HeaderMap;
use http_body::{Body, Frame};
use prost::Message;
use tonic::Status;
use zeroize::Zeroizing;

/// A response's body: the messages, then how it ended.
pub(super) struct Responses<S> {
    messages: S,
    ended: bool,
}

impl<S> Responses<S> {
    pub(super) fn new(messages: S) -> Self {
        Self {
            messages,
            ended: false,
        }
    }
}

impl<S, M> Body for Responses<S>
where
    S: Stream<Item = Result<M, Status>> + Unpin,
    M: Message,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let message = ready!(this.messages.poll_next_unpin(cx));
        let status = match message {
            Some(Ok(message)) => match framed(&message) {
                Some(frame) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
                None => Status::internal("the answer is longer than a message may be"),
            },
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        this.ended = true;
        Poll::Ready(Some(Ok(Frame::trailers(trailers(&status)))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// Of exactly its length, and wiped once it is written: there may be a key in it.
fn framed(message: &impl Message) -> Option<Bytes> {
    let length = message.encoded_len();
    let prefix = u32::try_from(length).ok()?.to_be_bytes();
    let mut frame = Zeroizing::new(Vec::with_capacity(1 + prefix.len() + length));
    frame.push(0);
    frame.extend_from_slice(&prefix);
    message.encode(&mut *frame).ok()?;
    Some(Bytes::from_owner(frame))
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    // Its details are what can't be written; this agent gives none.
    if status.add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", (tonic::Code::Internal as i32).into());
    }
    trailers
}
