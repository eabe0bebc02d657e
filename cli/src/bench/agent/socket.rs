//! gRPC on the agent's socket, as little as a load needs: the agent shares the cores with
//! it, so what it costs counts.

use std::path::Path;

use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use prost::Message;
use prost::bytes::{Buf as _, Bytes, BytesMut};
use tokio::net::UnixStream;

use crate::bench::wire::frame;
use crate::exit::Failure;

/// Larger than any answer here, so that nothing waits for room.
const WINDOW: u32 = 1 << 20;

/// A message's prefix: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// One connection. It ends when this and its calls are dropped.
#[derive(Clone)]
pub(super) struct Connection {
    send: SendRequest<Bytes>,
}

/// One call: messages both ways.
pub(super) struct Call {
    send: SendStream<Bytes>,
    answer: Option<ResponseFuture>,
    body: Option<RecvStream>,
    read: BytesMut,
}

impl Connection {
    pub(super) async fn open(socket: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket).await.map_err(|error| {
            Failure::unavailable(format!("can't connect to the agent's socket: {error}"))
        })?;
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(stream)
            .await
            .map_err(|error| broken(&error))?;
        tokio::spawn(async move {
            // Each call on it says what happened.
            let _ = connection.await;
        });
        Ok(Self { send })
    }

    /// Begins a call of `/package.Service/Method` with its first message, or its only one.
    pub(super) async fn call(
        &self,
        method: &'static str,
        first: &impl Message,
        is_last: bool,
    ) -> Result<Call, Failure> {
        let uri = Uri::builder()
            .scheme("http")
            .authority("localhost")
            .path_and_query(method)
            .build()
            .unwrap_or_default();
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        headers.insert("workload.spiffe.io", HeaderValue::from_static("true"));
        let mut ready = self
            .send
            .clone()
            .ready()
            .await
            .map_err(|error| broken(&error))?;
        let (answer, mut send) = ready
            .send_request(request, false)
            .map_err(|error| broken(&error))?;
        send.send_data(frame(first), is_last)
            .map_err(|error| broken(&error))?;
        Ok(Call {
            send,
            answer: Some(answer),
            body: None,
            read: BytesMut::new(),
        })
    }
}

impl Call {
    /// The next message.
    pub(super) async fn next(&mut self) -> Result<Bytes, Failure> {
        if let Some(answer) = self.answer.take() {
            let answer = answer.await.map_err(|error| broken(&error))?;
            refused(answer.headers())?;
            self.body = Some(answer.into_body());
        }
        let body = self
            .body
            .as_mut()
            .ok_or_else(|| Failure::check("the call has ended"))?;
        loop {
            if let Some(length) = self.read.get(1..PREFIX) {
                let length = length
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                if self.read.len() >= PREFIX + length {
                    self.read.advance(PREFIX);
                    return Ok(self.read.split_to(length).freeze());
                }
            }
            let Some(data) = body.data().await else {
                let trailers = body.trailers().await.map_err(|error| broken(&error))?;
                refused(&trailers.unwrap_or_default())?;
                return Err(Failure::unavailable("the agent ended a stream"));
            };
            let data = data.map_err(|error| broken(&error))?;
            // The window never runs out, since it is given back here.
            let _ = body.flow_control().release_capacity(data.len());
            self.read.extend_from_slice(&data);
        }
    }

    /// One more message to the agent.
    pub(super) fn send(&mut self, message: &impl Message) -> Result<(), Failure> {
        let sent = self.send.send_data(frame(message), false);
        sent.map_err(|error| broken(&error))
    }
}

fn broken(error: &h2::Error) -> Failure {
    Failure::unavailable(format!("a connection to the agent broke: {error}"))
}

fn refused(headers: &HeaderMap) -> Result<(), Failure> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(code) => Err(Failure::denied(format!(
            "the agent refused: code {code}, {}",
            text("grpc-message").unwrap_or_default()
        ))),
    }
}
