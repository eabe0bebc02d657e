//! HTTP to the API server: one connection pool, a deadline and a size limit on every answer.
//!
//! Bodies go to whoever asked and nowhere else: no error and no log line holds one.

use std::error::Error as StdError;
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{AuthError, Body, ConfigExt};
use serde::Deserialize;
use time::OffsetDateTime;
use tower::{BoxError, ServiceBuilder};

use crate::api::ApiError;
use crate::skew::ClockSkew;

/// Largest body of an answer that is read only to learn why a request failed.
const MAX_ERROR_BODY: usize = 64 * 1024;
/// What is accepted. The key set (`/openid/v1/jwks`) comes as nothing but a key set: who accepts
/// plain JSON alone is answered 406.
const MEDIA_TYPES: &str = "application/json, application/jwk-set+json";
/// An unused connection is closed after this time: a middlebox may forget it without a word.
const POOL_IDLE: Duration = Duration::from_secs(30);
/// Dead peers of long watches are noticed by the kernel, too.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// A client of one API server.
///
/// HTTP/1.1, so that a request that is given up takes its connection with it and no other request
/// can hang on the same one. Nothing is retried here: a retry in the client would outlast the
/// deadline of who asked.
pub(crate) struct Transport {
    client: kube::Client,
    skew: ClockSkew,
}

/// What to ask.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// Path and query. Names in it have been checked.
    pub(crate) path: &'a str,
    /// Media type and content.
    pub(crate) body: Option<(&'static str, Vec<u8>)>,
    /// For the whole answer.
    pub(crate) deadline: Duration,
    /// Largest body, in bytes.
    pub(crate) max_body: usize,
}

impl<'a> Call<'a> {
    pub(crate) fn get(path: &'a str, deadline: Duration, max_body: usize) -> Self {
        Self {
            method: Method::GET,
            path,
            body: None,
            deadline,
            max_body,
        }
    }
}

/// Why no content came back, finer than [`ApiError`] where this crate acts on the difference.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The API server says that there is no such object (404 with its own status object).
    NotFound,
    /// The version asked for is no longer kept (410).
    Expired,
    /// The body is larger than the limit.
    TooLarge,
    /// Anything else.
    Api(ApiError),
}

impl CallError {
    pub(crate) fn into_api(self) -> ApiError {
        match self {
            Self::NotFound => denied(StatusCode::NOT_FOUND),
            Self::Expired => denied(StatusCode::GONE),
            Self::TooLarge => ApiError::Malformed("the answer is larger than is read".into()),
            Self::Api(error) => error,
        }
    }
}

impl Transport {
    /// A client as `config` says; nothing is sent yet. The log names `cluster`.
    pub(crate) fn new(
        config: &kube::Config,
        cluster: &str,
        connect: Duration,
    ) -> Result<Self, kube::Error> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(TCP_KEEPALIVE));
        // Around the TLS connector: a hung server accepts TCP and then says nothing.
        let mut connector =
            TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
        connector.set_connect_timeout(Some(connect));
        let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .build(connector);
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer()?)
            .layer(config.extra_headers_layer()?)
            .map_err(BoxError::from)
            .service(http);
        Ok(Self {
            client: kube::Client::new(service, config.default_namespace.clone()),
            skew: ClockSkew::new(cluster),
        })
    }

    /// A client whose API server is `service`, in this process and without sockets, so that time can
    /// be held.
    #[cfg(test)]
    pub(crate) fn to_service<S, B>(service: S) -> Self
    where
        S: tower::Service<Request<Body>, Response = http::Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: hyper::body::Body<Data = hyper::body::Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self {
            client: kube::Client::new(service, "default"),
            skew: ClockSkew::new("test"),
        }
    }

    /// The API server's clock minus ours, as its latest answer showed it.
    pub(crate) fn clock_skew(&self) -> Option<time::Duration> {
        self.skew.latest()
    }

    /// The body of a successful answer.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Vec<u8>, CallError> {
        let Call {
            method,
            path,
            body,
            deadline,
            max_body,
        } = call;
        within(deadline, async {
            let body = self.send(method, path, body).await?;
            collect(body, max_body).await
        })
        .await
    }

    /// Opens a watch: its first bytes may come much later, but the answer's head within `deadline`.
    pub(crate) async fn open(&self, path: &str, deadline: Duration) -> Result<Lines, CallError> {
        let body = within(deadline, self.send(Method::GET, path, None)).await?;
        Ok(Lines {
            body,
            buffer: LineBuffer::default(),
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Vec<u8>)>,
    ) -> Result<Body, CallError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(ACCEPT, MEDIA_TYPES);
        let content = match body {
            Some((media_type, content)) => {
                request = request.header(CONTENT_TYPE, media_type);
                Body::from(content)
            }
            None => Body::empty(),
        };
        let request = request
            .body(content)
            .map_err(|e| CallError::Api(ApiError::Malformed(format!("impossible request: {e}"))))?;
        let asked = OffsetDateTime::now_utc();
        let answer = self
            .client
            .send(request)
            .await
            .map_err(|e| CallError::Api(unreachable(&e)))?;
        // Whatever it answers: its clock is its clock.
        self.skew
            .note(answer.headers(), asked, OffsetDateTime::now_utc());
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        Err(match status {
            StatusCode::GONE => CallError::Expired,
            StatusCode::NOT_FOUND => not_found(answer.into_body()).await,
            StatusCode::TOO_MANY_REQUESTS => CallError::Api(answered(status)),
            _ if status.is_server_error() => CallError::Api(answered(status)),
            _ => CallError::Api(denied(status)),
        })
    }
}

async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    tokio::time::timeout(deadline, work)
        .await
        .unwrap_or_else(|_| {
            Err(CallError::Api(ApiError::Unreachable(format!(
                "no answer within {deadline:?}"
            ))))
        })
}

/// A 404 means that the object is absent only if the API server itself says so: a proxy's error page
/// must not end an identity.
async fn not_found(body: Body) -> CallError {
    #[derive(Deserialize)]
    struct Status {
        kind: String,
        reason: Option<String>,
    }

    let said = match collect(body, MAX_ERROR_BODY).await {
        Ok(body) => serde_json::from_slice::<Status>(&body).ok(),
        Err(error) => return error,
    };
    match said {
        Some(status) if status.kind == "Status" && status.reason.as_deref() == Some("NotFound") => {
            CallError::NotFound
        }
        _ => CallError::Api(ApiError::Malformed(
            "HTTP 404 without the API's own status object".into(),
        )),
    }
}

async fn collect(mut body: Body, max: usize) -> Result<Vec<u8>, CallError> {
    let mut content = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| CallError::Api(unreachable(&e)))?;
        if let Some(data) = frame.data_ref() {
            if content.len() + data.len() > max {
                return Err(CallError::TooLarge);
            }
            content.extend_from_slice(data);
        }
    }
    Ok(content)
}

fn answered(status: StatusCode) -> ApiError {
    ApiError::Unreachable(format!("it answers HTTP {}", status.as_u16()))
}

fn denied(status: StatusCode) -> ApiError {
    let hint = match status {
        StatusCode::UNAUTHORIZED => "it does not accept this program's own credentials",
        StatusCode::FORBIDDEN => "this program's account lacks an RBAC rule",
        StatusCode::NOT_FOUND => "it does not know this path",
        _ => "it takes the request for invalid",
    };
    ApiError::Denied {
        status: status.as_u16(),
        hint: hint.into(),
    }
}

/// The words of an error and of its causes; those of the transport hold no body. An error of a
/// credential plugin could hold the plugin's output: it is named, not quoted.
fn unreachable(error: &kube::Error) -> ApiError {
    let mut words = Vec::new();
    let mut next: Option<&(dyn StdError + 'static)> = match error {
        kube::Error::Service(inner) => Some(&**inner),
        kube::Error::HyperError(inner) => Some(inner),
        kube::Error::Auth(inner) => Some(inner),
        _ => return ApiError::Unreachable("the request could not be sent".into()),
    };
    while let Some(cause) = next {
        let word = match cause.downcast_ref::<AuthError>() {
            Some(AuthError::ReadTokenFile(cause, path)) => {
                format!("can't read {}: {cause}", path.display())
            }
            Some(_) => "can't get this program's own credentials".to_string(),
            None => cause.to_string(),
        };
        if words.last() != Some(&word) {
            words.push(word);
        }
        if cause.is::<AuthError>() {
            break;
        }
        next = cause.source();
    }
    ApiError::Unreachable(words.join(": "))
}

// === watches ===

/// Longest line of a watch, in bytes: etcd holds no object of more than 1.5 MB, and JSON swells it.
const MAX_LINE: usize = 16 << 20;

/// The lines of an open watch.
pub(crate) struct Lines {
    body: Body,
    buffer: LineBuffer,
}

impl Lines {
    /// The next line, `None` when the server has ended the watch. Cancelling loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, ApiError> {
        loop {
            if let Some(line) = self.buffer.take_line() {
                return Ok(Some(line));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(ApiError::Malformed(
                    "a watch event is larger than is read".into(),
                ));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(unreachable(&error)),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend(data);
                    }
                }
            }
        }
    }
}

#[derive(Default)]
struct LineBuffer {
    bytes: Vec<u8>,
    /// No line ends before this.
    searched: usize,
}

impl LineBuffer {
    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn extend(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
    }

    /// The next complete line that is not empty, without its end.
    fn take_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let at = self.bytes[self.searched..].iter().position(|b| *b == b'\n');
            let Some(at) = at else {
                self.searched = self.bytes.len();
                return None;
            };
            let rest = self.bytes.split_off(self.searched + at + 1);
            let mut line = std::mem::replace(&mut self.bytes, rest);
            self.searched = 0;
            while line.last().is_some_and(u8::is_ascii_whitespace) {
                line.pop();
            }
            if !line.is_empty() {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_come_out_whole_however_they_were_cut(
            lines in prop::collection::vec("[a-z{}]{0,20}", 0..20),
            piece in 1usize..30,
        ) {
            let text = lines.iter().fold(String::new(), |text, line| text + line + "\n");
            let mut buffer = LineBuffer::default();
            let mut out = Vec::new();
            for chunk in text.as_bytes().chunks(piece) {
                buffer.extend(chunk);
                while let Some(line) = buffer.take_line() {
                    out.push(String::from_utf8_lossy(&line).into_owned());
                }
            }
            let expected: Vec<String> = lines.into_iter().filter(|l| !l.is_empty()).collect();
            prop_assert_eq!(out, expected);
            prop_assert_eq!(buffer.len(), 0);
        }
    }
}
