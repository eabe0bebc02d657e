//! A client of the SPIFFE Workload API's X.509 part.

use std::time::Duration;

use citadel_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use citadel_proto::workload::{X509svidRequest, X509svidResponse};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::update::Update;
use crate::endpoint::{self, Endpoint};
use crate::exit::Failure;

/// The metadata that every request carries (requirement 22).
const SECURITY_HEADER: &str = "workload.spiffe.io";

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Updates of one endpoint, across reconnections.
pub(crate) struct Updates {
    endpoint: Endpoint,
    stream: Option<Streaming<X509svidResponse>>,
}

/// Why there is no update now.
enum Trouble {
    /// May pass: nobody listens, or the endpoint has nothing yet.
    Passing(String),
    /// Asking again would not help.
    Final(Failure),
}

impl Updates {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            stream: None,
        }
    }

    /// The next full set of identities. Retries what may pass until `timeout`
    /// is over (`None`: for ever), and reports each new reason to `on_retry`.
    pub(crate) async fn next(
        &mut self,
        timeout: Option<Duration>,
        mut on_retry: impl FnMut(&str),
    ) -> Result<Update, Failure> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut pause = FIRST_PAUSE;
        let mut last = String::from("the endpoint gave no answer");
        loop {
            let attempt = match deadline {
                Some(deadline) => match tokio::time::timeout_at(deadline, self.attempt()).await {
                    Ok(attempt) => attempt,
                    Err(_) => return Err(self.timed_out(timeout, &last)),
                },
                None => self.attempt().await,
            };
            let reason = match attempt {
                Ok(update) => return Ok(update),
                Err(Trouble::Final(failure)) => return Err(failure),
                Err(Trouble::Passing(reason)) => reason,
            };
            if reason != last {
                on_retry(&reason);
                last = reason;
            }
            // Spread, so that many waiting clients don't come back at once.
            let pause_now = pause.mul_f64(rand::random_range(0.5..1.0));
            if deadline.is_some_and(|deadline| Instant::now() + pause_now >= deadline) {
                return Err(self.timed_out(timeout, &last));
            }
            tokio::time::sleep(pause_now).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&mut self) -> Result<Update, Trouble> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            closed => closed.insert(open(&self.endpoint).await?),
        };
        let answer = stream.message().await;
        match answer {
            Ok(Some(response)) => Update::parse(response).map_err(|reason| {
                Trouble::Final(
                    Failure::check(format!("{} sent nonsense: {reason}", self.endpoint))
                        .next("Ask the operator of the endpoint: its answer breaks the SPIFFE Workload API."),
                )
            }),
            Ok(None) => {
                self.stream = None;
                Err(Trouble::Passing("the endpoint closed the stream".into()))
            }
            Err(status) => {
                self.stream = None;
                Err(from_status(&self.endpoint, &status))
            }
        }
    }

    fn timed_out(&self, timeout: Option<Duration>, last: &str) -> Failure {
        let waited = timeout.unwrap_or_default().as_secs_f64();
        Failure::unavailable(format!(
            "nothing from {} within {waited}s: {last}",
            self.endpoint
        ))
        .next(format!(
            "Is the agent running, and is its socket the one in --socket or {}? \
                 `citadel dev` starts one; --timeout waits longer.",
            endpoint::VARIABLE
        ))
    }
}

async fn open(endpoint: &Endpoint) -> Result<Streaming<X509svidResponse>, Trouble> {
    let channel = connect(endpoint).await?;
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert(
        SECURITY_HEADER,
        tonic::metadata::MetadataValue::from_static("true"),
    );
    SpiffeWorkloadApiClient::new(channel)
        .fetch_x509svid(request)
        .await
        .map(tonic::Response::into_inner)
        .map_err(|status| from_status(endpoint, &status))
}

/// Connects here and hands the connection over, so that an error is the plain one
/// of the system call and not one wrapped in the transport's layers.
async fn connect(endpoint: &Endpoint) -> Result<Channel, Trouble> {
    let refused = |error: std::io::Error| {
        let reason = format!("can't connect to {endpoint}: {error}");
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            Trouble::Final(Failure::denied(reason).next(
                "The socket's mode or folder keeps this user out: ask for access, or use another --socket.",
            ))
        } else {
            Trouble::Passing(reason)
        }
    };
    match endpoint {
        Endpoint::Unix(path) => channel(UnixStream::connect(path).await.map_err(refused)?).await,
        Endpoint::Tcp(address) => {
            let stream = TcpStream::connect(address).await.map_err(refused)?;
            stream.set_nodelay(true).map_err(refused)?;
            channel(stream).await
        }
    }
}

async fn channel<S>(stream: S) -> Result<Channel, Trouble>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let mut once = Some(stream);
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = once.take();
        async move {
            stream
                .map(TokioIo::new)
                .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected))
        }
    });
    // The name is never looked up: it only fills the request's authority.
    tonic::transport::Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|error| Trouble::Passing(format!("no HTTP/2 on the socket: {error}")))
}

fn from_status(endpoint: &Endpoint, status: &Status) -> Trouble {
    let said = format!(
        "{endpoint} answered {:?}: {}",
        status.code(),
        status.message()
    );
    match status.code() {
        Code::PermissionDenied => Trouble::Final(Failure::denied(said).next(
            "The agent knows no identity for this process. Is there an entry (or a pod and its \
             account) for this user or program? The agent's log says what it saw.",
        )),
        Code::Unimplemented => Trouble::Final(
            Failure::check(said)
                .next("That is no SPIFFE Workload API: check the address in --socket."),
        ),
        Code::InvalidArgument => Trouble::Final(
            Failure::check(said).next("The endpoint refuses a request that the standard allows."),
        ),
        // Unavailable, and what a connection that breaks turns into.
        _ => Trouble::Passing(said),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::VecDeque;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use citadel_proto::workload::spiffe_workload_api_server::{
        SpiffeWorkloadApi, SpiffeWorkloadApiServer,
    };
    use citadel_proto::workload::{
        JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse,
        ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse,
        X509svid,
    };
    use futures::stream::{self, BoxStream, StreamExt as _};
    use tonic::Response;

    use super::*;
    use crate::exit::Exit;
    use crate::testing::TestCa;

    const LONG: Option<Duration> = Some(Duration::from_secs(20));

    /// What each call in turn is answered with: messages, then an end or a status.
    type Script = VecDeque<Vec<Result<X509svidResponse, Status>>>;

    #[derive(Clone, Default)]
    struct Scripted {
        script: Arc<Mutex<Script>>,
        headers: Arc<Mutex<Vec<Option<String>>>>,
    }

    type Streamed<T> = BoxStream<'static, Result<T, Status>>;

    #[tonic::async_trait]
    impl SpiffeWorkloadApi for Scripted {
        type FetchX509SVIDStream = Streamed<X509svidResponse>;
        type FetchX509BundlesStream = Streamed<X509BundlesResponse>;
        type FetchJWTBundlesStream = Streamed<JwtBundlesResponse>;

        async fn fetch_x509svid(
            &self,
            request: Request<X509svidRequest>,
        ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
            let header = request.metadata().get(SECURITY_HEADER);
            let header = header
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned);
            self.headers.lock().unwrap().push(header);
            match self.script.lock().unwrap().pop_front() {
                Some(answers) => Ok(Response::new(stream::iter(answers).boxed())),
                None => Ok(Response::new(stream::pending().boxed())),
            }
        }

        async fn fetch_x509_bundles(
            &self,
            _: Request<X509BundlesRequest>,
        ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn fetch_jwtsvid(
            &self,
            _: Request<JwtsvidRequest>,
        ) -> Result<Response<JwtsvidResponse>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn fetch_jwt_bundles(
            &self,
            _: Request<JwtBundlesRequest>,
        ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn validate_jwtsvid(
            &self,
            _: Request<ValidateJwtsvidRequest>,
        ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
            Err(Status::unimplemented(""))
        }
    }

    fn message(ca: &TestCa, id: &str) -> X509svidResponse {
        let svid = ca.svid(id);
        let svid = X509svid {
            spiffe_id: id.into(),
            x509_svid: svid.chain.concat(),
            x509_svid_key: svid.key.to_vec(),
            bundle: svid.authorities.concat(),
            hint: String::new(),
        };
        X509svidResponse {
            svids: vec![svid],
            ..Default::default()
        }
    }

    fn listen(socket: &Path, script: Script) -> Scripted {
        let scripted = Scripted {
            script: Arc::new(Mutex::new(script)),
            ..Default::default()
        };
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let incoming = stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let service = SpiffeWorkloadApiServer::new(scripted.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        scripted
    }

    struct Case {
        folder: tempfile::TempDir,
        ca: TestCa,
    }

    impl Case {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().unwrap(),
                ca: TestCa::new(),
            }
        }

        fn serve(&self, script: Vec<Vec<Result<X509svidResponse, Status>>>) -> (Scripted, Updates) {
            let socket = self.folder.path().join("agent.sock");
            let scripted = listen(&socket, script.into());
            (scripted, Updates::new(Endpoint::from(socket.as_path())))
        }
    }

    #[tokio::test]
    async fn spiffe_req_22_each_request_carries_the_security_header() {
        let case = Case::new();
        let one = message(&case.ca, "spiffe://example.org/a");
        let (server, mut updates) = case.serve(vec![vec![Ok(one)]]);
        let update = updates.next(LONG, |_| {}).await.unwrap();
        assert_eq!(update.svids[0].spiffe_id, "spiffe://example.org/a");
        assert_eq!(*server.headers.lock().unwrap(), [Some("true".to_owned())]);
    }

    #[tokio::test]
    async fn what_may_pass_is_tried_again_and_reported_once() {
        let case = Case::new();
        let unavailable = || vec![Err(Status::unavailable("no CA yet"))];
        let one = message(&case.ca, "spiffe://example.org/a");
        let (_, mut updates) = case.serve(vec![unavailable(), unavailable(), vec![Ok(one)]]);
        let mut reasons = Vec::new();
        updates
            .next(LONG, |reason| reasons.push(reason.to_owned()))
            .await
            .unwrap();
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        assert!(reasons[0].contains("no CA yet"), "{reasons:?}");
    }

    #[tokio::test]
    async fn spiffe_req_28_each_message_is_an_update_across_reconnections() {
        let case = Case::new();
        let update = |id| Ok(message(&case.ca, id));
        let ids = [
            "spiffe://example.org/a",
            "spiffe://example.org/b",
            "spiffe://example.org/c",
        ];
        let (_, mut updates) = case.serve(vec![
            vec![update(ids[0]), update(ids[1])],
            vec![update(ids[2])],
        ]);
        for id in ids {
            let update = updates.next(LONG, |_| {}).await.unwrap();
            assert_eq!(update.svids[0].spiffe_id, id);
        }
    }

    #[tokio::test]
    async fn spiffe_req_26_no_identity_is_final_and_has_its_exit_code() {
        let case = Case::new();
        let (_, mut updates) = case.serve(vec![vec![Err(Status::permission_denied(
            "no identity issued",
        ))]]);
        let failure = updates.next(LONG, |_| {}).await.err().unwrap();
        assert_eq!(failure.exit(), Exit::Denied);
        assert!(
            failure.message().contains("no identity issued"),
            "{failure}"
        );
    }

    #[tokio::test]
    async fn another_service_behind_the_socket_is_final() {
        let case = Case::new();
        let (_, mut updates) = case.serve(vec![vec![Err(Status::unimplemented("?"))]]);
        let failure = updates.next(LONG, |_| {}).await.err().unwrap();
        assert_eq!(failure.exit(), Exit::CheckFailed);
    }

    #[tokio::test]
    async fn nobody_there_ends_at_the_timeout() {
        let case = Case::new();
        let socket = case.folder.path().join("nobody.sock");
        let mut updates = Updates::new(Endpoint::from(socket.as_path()));
        let failure = updates
            .next(Some(Duration::from_millis(300)), |_| {})
            .await
            .err()
            .unwrap();
        assert_eq!(failure.exit(), Exit::Unavailable);
        assert!(failure.message().contains("No such file"), "{failure}");
        let silent = case.folder.path().join("silent.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
        let mut updates = Updates::new(Endpoint::from(silent.as_path()));
        let failure = updates
            .next(Some(Duration::from_millis(300)), |_| {})
            .await
            .err()
            .unwrap();
        assert_eq!(failure.exit(), Exit::Unavailable);
    }

    #[tokio::test]
    async fn spiffe_req_29_an_answer_that_breaks_the_standard_is_refused() {
        let case = Case::new();
        let (_, mut updates) = case.serve(vec![vec![Ok(X509svidResponse::default())]]);
        let failure = updates.next(LONG, |_| {}).await.err().unwrap();
        assert_eq!(failure.exit(), Exit::CheckFailed);
    }
}
