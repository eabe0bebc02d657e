//! The SPIFFE Workload API: its X.509 part.

mod answer;
pub(crate) mod reflection;
mod sent;
mod service;

use std::{mem, pin::Pin};

use citadel_identity::TrustDomain;
use citadel_runtime::{ShutdownSignal, grpc::Call};
use futures::{Stream, stream};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, metadata::MetadataMap};

use self::{
    answer::{Answer, Shown},
    sent::Sent,
};
use crate::{
    gate::{self, Admitted, refuse},
    holders::Holders,
    identities::{Identities, PATIENCE, Standing, View},
    metrics::{Counted, Metrics},
};

/// In metrics, and in the count of who runs on what.
pub(crate) const PROTOCOL: &str = "workload_api";

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Clone)]
pub struct WorkloadApi {
    /// Whose identities.
    pub identities: Identities,
    /// Keeps count of who runs on what.
    pub holders: Holders,
    /// Counts streams.
    pub metrics: Metrics,
    /// Ends the streams.
    pub shutdown: ShutdownSignal,
}

impl WorkloadApi {
    /// Answers with the full set now, and again whenever it is another one.
    async fn follow<T: Answer>(&self, mut call: Call<T::Request>) -> Result<Responses<T>, Status> {
        check_header(&call.metadata)?;
        call.requests.only().await?;
        let (metadata, extensions, rpc) = (&call.metadata, &call.extensions, T::RPC);
        let Admitted { view, gone } =
            gate::admit(&self.identities, extensions, metadata, rpc).await?;
        let tracked = self.holders.stream(PROTOCOL, view.peer());
        // Boxed: what a future is given by value it holds twice.
        let following = Box::new(Following {
            view,
            gone,
            shutdown: self.shutdown.clone(),
            own: self.identities.trust_domain.clone(),
            deadline: Instant::now() + PATIENCE,
            looked: false,
            shown: None,
            sent: Sent::new(tracked, T::WITH_SVIDS),
            _counted: self.metrics.streaming(PROTOCOL),
        });
        let answers = stream::try_unfold(following, |mut following| async {
            let answer = following.next().await?;
            Ok(Some((answer, following)))
        });
        Ok(Box::pin(answers))
    }
}

/// One stream. The server asks for its next answer while there is room for one: so who reads
/// late gets what is newest then.
struct Following {
    view: View,
    gone: CancellationToken,
    shutdown: ShutdownSignal,
    own: TrustDomain,
    /// What is awaited is waited for until then.
    deadline: Instant,
    /// There is nothing to say before something changes.
    looked: bool,
    shown: Option<Shown>,
    sent: Sent,
    _counted: Counted,
}

impl Following {
    /// The next answer, or why there is none any more.
    async fn next<T: Answer>(&mut self) -> Result<T, Status> {
        loop {
            if mem::replace(&mut self.looked, true) {
                self.change().await?;
            }
            if let Some(answer) = self.answer()? {
                return Ok(answer);
            }
        }
    }

    async fn change(&mut self) -> Result<(), Status> {
        let waits = Instant::now() < self.deadline;
        tokio::select! {
            biased;
            () = self.view.changed() => Ok(()),
            () = sleep_until(self.deadline), if waits => Ok(()),
            over = gate::over(&self.gone, &self.shutdown) => Err(over),
        }
    }

    /// What there is to say now, if anything.
    fn answer<T: Answer>(&mut self) -> Result<Option<T>, Status> {
        let snapshot = self.view.snapshot();
        let impatient = Instant::now() >= self.deadline;
        let complete = match &snapshot.standing {
            Standing::Denied(reason) => {
                let peer = self.view.peer().describe();
                return Err(refuse(Code::PermissionDenied, reason, &peer, T::RPC));
            }
            Standing::Waiting(reason) if impatient && snapshot.svids.is_empty() => {
                return Err(Status::unavailable(reason.to_string()));
            }
            Standing::Waiting(_) => impatient || self.shown.is_some(),
            Standing::Complete => true,
        };
        // Full sets only: what is still awaited is waited for a moment, and after that
        // what is there is better than nothing.
        if !complete || snapshot.svids.is_empty() || snapshot.bundles.is_empty() {
            return Ok(None);
        }
        let now = T::shown(&snapshot);
        if self.shown.as_ref() == Some(&now) {
            return Ok(None);
        }
        self.sent.note(&snapshot, &self.own);
        self.shown = Some(now);
        Ok(Some(T::of(&snapshot, &self.own)))
    }
}

/// The header that a browser or a confused proxy would not send.
fn check_header(metadata: &MetadataMap) -> Result<(), Status> {
    let mut values = metadata.get_all("workload.spiffe.io").iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_bytes() == b"true" => Ok(()),
        _ => Err(Status::invalid_argument(
            "the metadata `workload.spiffe.io: true` is missing",
        )),
    }
}

#[cfg(test)]
mod tests;
