//! What stands before every service. tonic reads and decodes a whole message before a handler
//! runs, and the handler authenticates; so what has to hold against somebody who proved nothing
//! is decided here, on the head of the request and on each piece of its body: who may be heard
//! at all, for how long, and how much of it is kept.

use std::{
    future::{Future, ready},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use citadel_runtime::tls::{PeerInfo, Unanswered};
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Status, body::Body, codegen::Bytes};
use tower::{Layer, Service};

use super::{
    MAX_BATCH_REQUEST, MAX_SINGLE_REQUEST, admin, agent, frames,
    front::lane,
    in_flight::{IN_ALL, InFlight, PER_LANE, Share},
    istio,
    refusal::Refusal,
    refusals::Refusals,
    workload,
};
use crate::{admission::Lane, authn::AuthnError};

/// The RPCs that are named in the metrics and in the log.
const KNOWN: [&str; 22] = [
    agent::ATTEST,
    agent::CHALLENGE,
    agent::ISSUE,
    agent::ENTRIES,
    agent::BUNDLES,
    agent::REPORT,
    admin::HOLDERS,
    workload::ISSUE_SVID,
    istio::CREATE_CERTIFICATE,
    admin::INFO,
    admin::GET,
    admin::LIST,
    admin::READ,
    admin::SEARCH,
    admin::COUNT,
    admin::RECEIPT,
    admin::CREATE_TOKEN,
    admin::TOKENS,
    admin::REVOKE_TOKEN,
    admin::NODES,
    admin::EVICT,
    admin::ADMIT,
];

/// Those that only a node's agent may call, by its SVID.
const FOR_AGENTS: [&str; 4] = [agent::ISSUE, agent::ENTRIES, agent::BUNDLES, agent::REPORT];

/// A gRPC message has its length in front.
const PREFIX: usize = 5;

/// The layer; cheap to clone.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Parts>);

struct Parts {
    refusals: Arc<Refusals>,
    in_flight: Arc<InFlight>,
    deadline: Duration,
}

/// A service behind the gate.
#[derive(Clone)]
pub(crate) struct Gated<S> {
    inner: S,
    gate: Gate,
}

/// Who asks for what.
#[derive(Clone)]
struct Asked {
    rpc: &'static str,
    lane: Lane,
    peer: SocketAddr,
}

/// A request that was let in.
struct Entered {
    asked: Asked,
    share: Arc<Share>,
    unanswered: Unanswered,
    request: Request<Body>,
}

impl Gate {
    /// A request may take `deadline` from its head to the head of its answer.
    pub(crate) fn new(refusals: Arc<Refusals>, deadline: Duration) -> Self {
        Self::with(refusals, deadline, InFlight::new(PER_LANE, IN_ALL))
    }

    fn with(refusals: Arc<Refusals>, deadline: Duration, in_flight: Arc<InFlight>) -> Self {
        Self(Arc::new(Parts {
            refusals,
            in_flight,
            deadline,
        }))
    }

    /// Lets a request in, or answers it without reading its body.
    fn enter(&self, request: Request<Body>) -> Result<Entered, Status> {
        let peer = request
            .extensions()
            .get::<PeerInfo>()
            .ok_or_else(|| Status::internal("the connection has no peer"))?;
        let unanswered = peer.request_began();
        let path = request.uri().path().trim_start_matches('/');
        let asked = Asked {
            rpc: KNOWN
                .into_iter()
                .find(|rpc| *rpc == path)
                .unwrap_or("other"),
            lane: lane(peer),
            peer: peer.address,
        };
        if FOR_AGENTS.contains(&asked.rpc) && !matches!(asked.lane, Lane::Node(_)) {
            let has_nothing =
                peer.client_chain.is_empty() && !request.headers().contains_key("authorization");
            return Err(self.refuse(
                &asked,
                if has_nothing {
                    AuthnError::NoCredential.into()
                } else {
                    Refusal::no_agent()
                },
            ));
        }
        let share = Arc::new(self.0.in_flight.share(asked.lane.clone()));
        share
            .add(size_of_head(request.headers()))
            .map_err(|full| self.refuse(&asked, full.into()))?;
        let most = if asked.rpc == agent::ISSUE {
            MAX_BATCH_REQUEST
        } else {
            MAX_SINGLE_REQUEST
        };
        let request = request.map(|body| {
            Body::new(Metered {
                body,
                left: most + PREFIX,
                most,
                share: share.clone(),
                asked: asked.clone(),
                gate: self.clone(),
            })
        });
        Ok(Entered {
            asked,
            share,
            unanswered,
            request,
        })
    }

    fn refuse(&self, asked: &Asked, refusal: Refusal) -> Status {
        self.0
            .refusals
            .record(asked.rpc, &asked.lane, asked.peer, &refusal);
        refusal.into()
    }
}

/// What the headers hold, as HTTP/2 counts them (RFC 9113, section 10.5.1).
fn size_of_head(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 32)
        .sum()
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            inner,
            gate: self.clone(),
        }
    }
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Entered {
            asked,
            share,
            unanswered,
            request,
        } = match self.gate.enter(request) {
            Ok(entered) => entered,
            Err(status) => return Box::pin(ready(Ok(status.into_http()))),
        };
        let gate = self.gate.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            // To the head of the answer: a stream then goes on without it.
            let answer = tokio::time::timeout(gate.0.deadline, answer).await;
            drop((share, unanswered));
            if let Ok(answer) = answer {
                return answer.map(|answer| answer.map(frames::gathered));
            }
            let refusal = Refusal::deadline(gate.0.deadline);
            Ok(gate.refuse(&asked, refusal).into_http())
        })
    }
}

/// A request's body, counted as it comes.
struct Metered {
    body: Body,
    left: usize,
    most: usize,
    share: Arc<Share>,
    asked: Asked,
    gate: Gate,
}

impl Metered {
    fn take_in(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| {
            Refusal::invalid(format!("the request is larger than {} bytes", self.most))
        })?;
        Ok(self.share.add(bytes)?)
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(refusal) = self.take_in(data.len())
        {
            return Poll::Ready(Some(Err(self.gate.refuse(&self.asked, refusal))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
