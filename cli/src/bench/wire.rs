//! gRPC over TLS, as little as a load generator needs: requests that are encoded
//! beforehand, on HTTP/2 connections that are kept and, where they break, made again.
//! The server under test shares the cores with it, so what it costs counts.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use prost::bytes::{BufMut as _, Bytes, BytesMut};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tonic::{Code, Status};

/// A server that does not answer at all in this time is taken for gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Why a call brought no answer.
#[derive(Debug, Clone)]
pub(crate) enum CallError {
    /// The server said no.
    Refused { code: Code, message: String },
    /// The connection broke or could not be made.
    Broken(String),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { code, message } => write!(f, "{code:?}: {message}"),
            Self::Broken(reason) => f.write_str(reason),
        }
    }
}

/// One request, ready to be sent again and again.
#[derive(Clone)]
pub(crate) struct Call {
    method: Uri,
    authorization: Option<HeaderValue>,
    body: Bytes,
}

impl Call {
    /// `method` is `/package.Service/Method`.
    pub(crate) fn new(
        method: &'static str,
        authorization: Option<HeaderValue>,
        message: &impl Message,
    ) -> Self {
        // The server is found by its address, and known by its SPIFFE ID: the name in
        // the request decides nothing.
        let method = Uri::builder()
            .scheme("https")
            .authority("citadel-ca")
            .path_and_query(method)
            .build()
            .unwrap_or_default();
        Self {
            method,
            authorization,
            body: frame(message),
        }
    }
}

/// A gRPC message with its prefix: not compressed, length.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(5 + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // Growing a BytesMut can't fail.
    let _ = message.encode(&mut framed);
    framed.freeze()
}

/// `Bearer …`, marked so that HPACK never puts it into its table: no two are alike.
pub(crate) fn bearer(token: &str) -> Result<HeaderValue, http::Error> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A connection that its users share; any of them makes it anew when it broke.
pub(crate) struct Line {
    address: String,
    tls: TlsConnector,
    current: Mutex<Current>,
    /// Why the last attempt to connect failed, for whoever runs out of time.
    trouble: std::sync::Mutex<Option<CallError>>,
}

struct Current {
    /// Counts connections, so that a broken one is replaced once and not by each user.
    generation: u64,
    send: Option<SendRequest<Once>>,
}

/// One user's handle of a line.
pub(crate) struct Caller {
    line: Arc<Line>,
    generation: u64,
    send: Option<SendRequest<Once>>,
}

impl Line {
    /// `address` is `host:port`; `tls` verifies by SPIFFE ID, whatever the name.
    pub(crate) fn new(address: &str, tls: Arc<rustls::ClientConfig>) -> Arc<Self> {
        Arc::new(Self {
            address: address.to_owned(),
            tls: TlsConnector::from(tls),
            current: Mutex::new(Current {
                generation: 0,
                send: None,
            }),
            trouble: std::sync::Mutex::default(),
        })
    }

    pub(crate) fn caller(self: &Arc<Self>) -> Caller {
        Caller {
            line: Arc::clone(self),
            generation: 0,
            send: None,
        }
    }

    fn set_trouble(&self, error: CallError) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn trouble(&self) -> CallError {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = || CallError::Broken(format!("{} does not answer", self.address));
        trouble.clone().unwrap_or_else(silent)
    }

    async fn connect(&self) -> Result<SendRequest<Once>, CallError> {
        let broken = |what: &str, error: &dyn std::fmt::Display| {
            CallError::Broken(format!("{what} {}: {error}", self.address))
        };
        let stream = TcpStream::connect(&self.address)
            .await
            .map_err(|error| broken("can't connect to", &error))?;
        // Without it small frames wait for acknowledgements.
        stream
            .set_nodelay(true)
            .map_err(|error| broken("can't set up", &error))?;
        let peer = stream
            .peer_addr()
            .map_err(|error| broken("can't set up", &error))?;
        let stream = self
            .tls
            .connect(ServerName::from(peer.ip()), stream)
            .await
            .map_err(|error| broken("no TLS with", &error))?;
        let (send, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken("no HTTP/2 with", &error))?;
        tokio::spawn(connection);
        Ok(send)
    }
}

impl Caller {
    /// Makes sure that there is a connection; tries again until `deadline`.
    pub(crate) async fn ready(&mut self, deadline: Instant) -> Result<(), CallError> {
        loop {
            let patience = deadline.min(Instant::now() + CONNECT_TIMEOUT);
            match tokio::time::timeout_at(patience, self.renew()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => self.line.set_trouble(error),
                Err(_) => {}
            }
            if Instant::now() + RECONNECT_PAUSE >= deadline {
                return Err(self.line.trouble());
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    /// Takes the line's connection, or replaces it when it is the one that broke here.
    async fn renew(&mut self) -> Result<(), CallError> {
        if self.send.as_ref().is_some_and(|send| !send.is_closed()) {
            return Ok(());
        }
        let mut current = self.line.current.lock().await;
        let usable = current.generation > self.generation
            && current.send.as_ref().is_some_and(|send| !send.is_closed());
        if !usable {
            current.send = Some(self.line.connect().await?);
            current.generation += 1;
        }
        self.generation = current.generation;
        self.send.clone_from(&current.send);
        Ok(())
    }

    /// Sends a request and waits for its answer's message.
    pub(crate) async fn call(&mut self, call: &Call) -> Result<Bytes, CallError> {
        let answer = self.exchange(call).await;
        if matches!(answer, Err(CallError::Broken(_))) {
            self.send = None;
        }
        answer
    }

    async fn exchange(&mut self, call: &Call) -> Result<Bytes, CallError> {
        let Some(send) = &mut self.send else {
            return Err(CallError::Broken(format!(
                "not connected to {}",
                self.line.address
            )));
        };
        let broken = |error: hyper::Error| CallError::Broken(error.to_string());
        let mut request = Request::new(Once(Some(call.body.clone())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = call.method.clone();
        let headers = request.headers_mut();
        headers.insert(
            http::header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
        if let Some(authorization) = &call.authorization {
            headers.insert(http::header::AUTHORIZATION, authorization.clone());
        }
        send.ready().await.map_err(broken)?;
        let response = send.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        if head.status != http::StatusCode::OK {
            return Err(CallError::Broken(format!("HTTP status {}", head.status)));
        }
        // An answer without messages has its status in the headers.
        if head.headers.contains_key("grpc-status") {
            status(&head.headers)?;
        }
        let (data, trailers) = read(body).await.map_err(broken)?;
        status(&trailers)?;
        message(data)
    }
}

async fn read(mut body: Incoming) -> Result<(Bytes, HeaderMap), hyper::Error> {
    let mut first = Bytes::new();
    let mut more: Option<BytesMut> = None;
    let mut trailers = HeaderMap::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame?.into_data() {
            // Most answers are one frame: that one is not copied.
            Ok(data) if first.is_empty() && more.is_none() => first = data,
            Ok(data) => {
                more.get_or_insert_with(|| BytesMut::from(&first[..]))
                    .extend_from_slice(&data);
            }
            Err(frame) => {
                if let Ok(found) = frame.into_trailers() {
                    trailers = found;
                }
            }
        }
    }
    Ok((more.map_or(first, BytesMut::freeze), trailers))
}

fn status(headers: &HeaderMap) -> Result<(), CallError> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() == Code::Ok => Ok(()),
        Some(status) => Err(CallError::Refused {
            code: status.code(),
            message: status.message().to_owned(),
        }),
        None => Err(CallError::Broken("an answer without a status".into())),
    }
}

/// The one message of an answer, without its prefix.
fn message(mut data: Bytes) -> Result<Bytes, CallError> {
    let malformed = || CallError::Broken("an answer that is not one plain message".into());
    let (&[compressed, a, b, c, d], rest) = data.split_first_chunk().ok_or_else(malformed)?;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if compressed != 0 || rest.len() != length {
        return Err(malformed());
    }
    Ok(data.split_off(5))
}

/// A body of one piece.
pub(crate) struct Once(Option<Bytes>);

impl hyper::body::Body for Once {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use citadel_proto::v1::IssueSvidRequest;

    use super::*;

    #[test]
    fn a_message_is_framed_and_read_back() {
        let request = IssueSvidRequest {
            csr: vec![7; 300],
            ..Default::default()
        };
        let framed = frame(&request);
        let back = IssueSvidRequest::decode(message(framed.clone()).unwrap()).unwrap();
        assert_eq!(back.csr, request.csr);
        message(framed.slice(..framed.len() - 1)).unwrap_err();
        message(framed.slice(..4)).unwrap_err();
    }

    #[test]
    fn the_status_decides() {
        let mut trailers = HeaderMap::new();
        assert!(matches!(status(&trailers), Err(CallError::Broken(_))));
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        status(&trailers).unwrap();
        trailers.insert("grpc-status", HeaderValue::from_static("8"));
        trailers.insert("grpc-message", HeaderValue::from_static("queue%20full"));
        let Err(CallError::Refused { code, message }) = status(&trailers) else {
            panic!()
        };
        assert_eq!(
            (code, message.as_str()),
            (Code::ResourceExhausted, "queue full")
        );
    }

    #[test]
    fn tokens_are_not_shown_in_debug_output() {
        let value = bearer("secret").unwrap();
        assert!(!format!("{value:?}").contains("secret"));
    }
}
