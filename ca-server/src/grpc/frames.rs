//! Answers in DATA frames that HTTP/2 gathers with what stands around them.
//!
//! h2 sends a frame of 1 KiB or more by itself, and the trailers behind it in a write of their
//! own: a second TLS record, system call and wakening of the client for each answer. Smaller
//! frames are copied behind the headers, and all leave as one.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Status, body::Body, codegen::Bytes};

/// Bytes of a frame that is gathered: less than h2 chains where writes are not vectored
/// (`TlsConn` says that they are not).
const PIECE: usize = 1000;

/// An answer of more bytes is left as it is: there, copying costs more than a write.
const MOST: usize = 8 * 1024;

/// An answer's body in frames that are gathered.
pub(super) fn gathered(body: Body) -> Body {
    Body::new(Gathered {
        body,
        rest: Bytes::new(),
    })
}

struct Gathered {
    body: Body,
    /// What is left of a frame.
    rest: Bytes,
}

impl HttpBody for Gathered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            let data = match frame.map(|frame| frame.map(Frame::into_data)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Ok(Ok(data))) => data,
            };
            if data.len() <= PIECE || data.len() > MOST {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            self.rest = data;
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.body.size_hint();
        let rest = self.rest.len() as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http::HeaderMap;
    use http_body_util::{BodyExt as _, Full, StreamBody};

    use super::*;

    async fn frames(data: Vec<u8>) -> Vec<usize> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let whole = [
            Frame::data(Bytes::from(data.clone())),
            Frame::trailers(trailers),
        ];
        let whole = whole.map(Ok::<_, Status>);
        let mut body = gathered(Body::new(StreamBody::new(futures::stream::iter(whole))));
        let (mut sizes, mut found) = (Vec::new(), Vec::new());
        while let Some(frame) = body.frame().await {
            match frame.unwrap().into_data() {
                Ok(piece) => {
                    sizes.push(piece.len());
                    found.extend_from_slice(&piece);
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap();
                    assert_eq!(trailers.get("grpc-status").unwrap(), "0");
                }
            }
        }
        assert_eq!(found, data);
        sizes
    }

    #[tokio::test]
    async fn a_small_answer_comes_in_frames_that_are_gathered() {
        let data = |size: usize| (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect();
        assert_eq!(frames(data(1000)).await, [1000]);
        assert_eq!(frames(data(1001)).await, [1000, 1]);
        assert_eq!(frames(data(1830)).await, [1000, 830]);
        assert_eq!(frames(data(8192)).await.len(), 9);
        assert_eq!(
            frames(data(8193)).await,
            [8193],
            "copying that would cost more"
        );
    }

    #[tokio::test]
    async fn its_size_is_known_and_its_end_as_well() {
        let mut body = gathered(Body::new(Full::new(Bytes::from(vec![1; 1500]))));
        assert_eq!(body.size_hint().exact(), Some(1500));
        body.frame().await.unwrap().unwrap();
        assert_eq!(body.size_hint().exact(), Some(500));
        assert!(!body.is_end_stream());
        body.frame().await.unwrap().unwrap();
        assert!(body.is_end_stream());
        assert!(body.frame().await.is_none());
    }
}
