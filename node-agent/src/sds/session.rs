//! One stream of secrets, from its first request to its end.

use std::{collections::BTreeSet, mem, pin::Pin, sync::Arc, time::Duration};

use citadel_runtime::grpc::Requests;
use futures::{Stream, stream};
use rand::Rng;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{
    Sds,
    content::Content,
    files::{self, Files},
    forms::{Form, Heard},
};
use crate::{
    gate::{self, Admitted, line, refuse},
    holders::Tracked,
    identities::{Snapshot, Standing, View},
    metrics::Counted,
};

/// When the files are looked at again while the caller has no identity yet.
const WITHOUT_IDENTITY: Duration = Duration::from_millis(250);

/// What a stream's client gets.
pub(super) type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A stream of either form.
struct Session<F: Form> {
    sds: Arc<Sds>,
    view: View,
    gone: CancellationToken,
    requests: Requests<F::Request>,
    form: F,
    /// Whether the client has asked for anything yet.
    subscribed: bool,
    files: FileNames,
    tracked: Tracked,
    _counted: Counted,
}

/// What of the subscription stands for files.
#[derive(Default)]
struct FileNames {
    names: Vec<String>,
    read: Files,
    look_at: Option<Instant>,
}

/// Serves a stream, whenever the server asks for its next response: it does so while there is
/// room for one. So who reads late gets what is newest then and holds up nobody else, no copy
/// of a key waits meanwhile, and a stream needs no task and no channel.
pub(super) fn serve<F: Form>(
    sds: &Arc<Sds>,
    admitted: Admitted,
    requests: Requests<F::Request>,
) -> Responses<F::Response> {
    let Admitted { view, gone } = admitted;
    // Boxed: what a future is given by value it holds twice.
    let session = Box::new(Session::<F> {
        tracked: sds.holders.stream(F::PROTOCOL, view.peer()),
        _counted: sds.metrics.streaming(F::PROTOCOL),
        sds: Arc::clone(sds),
        view,
        gone,
        requests,
        form: F::new(rand::rng().random()),
        subscribed: false,
        files: FileNames::default(),
    });
    Box::pin(stream::try_unfold(session, |mut session| async {
        let response = session.next().await?;
        Ok(response.map(|response| (response, session)))
    }))
}

impl<F: Form> Session<F> {
    /// The next response; none once the client has ended its stream.
    async fn next(&mut self) -> Result<Option<F::Response>, Status> {
        loop {
            tokio::select! {
                biased;
                () = self.view.changed() => {}
                () = self.files.due() => {}
                request = self.requests.next() => {
                    let Some(request) = request else { return Ok(None) };
                    let heard = self
                        .form
                        .request(request?)
                        .map_err(|status| self.refused(&status))?;
                    self.subscribed = true;
                    if !self.note(heard) {
                        continue;
                    }
                    self.files.ask_for(self.form.subscribed());
                    self.tracked.keep(|name| self.form.asks_for(name));
                }
                // What was asked before the end is answered before it.
                over = gate::over(&self.gone, &self.sds.shutdown) => return Err(over),
            }
            // A caller that may have nothing is told so once it has asked for something.
            if !self.subscribed {
                continue;
            }
            // Boxed: what it needs for a moment would be part of each waiting stream.
            let response = Box::pin(self.respond()).await?;
            if response.is_some() {
                return Ok(response);
            }
        }
    }

    /// The response that is due now, if any.
    async fn respond(&mut self) -> Result<Option<F::Response>, Status> {
        let snapshot = self.view.snapshot();
        if let Standing::Denied(reason) = &snapshot.standing {
            let peer = self.view.peer().describe();
            return Err(refuse(Code::PermissionDenied, reason, &peer, F::RPC));
        }
        self.files.look(&self.sds, &snapshot, &self.view).await;
        let own = self.sds.identities.trust_domain.clone();
        let content = Content::new(&snapshot, &own, &self.files.read);
        for (name, version) in self.form.brought(&content) {
            let content = content.holding(&name);
            self.tracked.brought(&name, &version, content);
        }
        let Some((response, told)) = self.form.push(&content) else {
            return Ok(None);
        };
        for (name, version) in &told.resources {
            self.tracked.sent(name, version, content.holding(name));
        }
        if !told.removed.is_empty() {
            let removed = |name: &str| told.removed.iter().any(|gone| gone == name);
            self.tracked.keep(|name| !removed(name));
        }
        tracing::debug!(
            peer = self.view.peer().describe(),
            version = told.version,
            resources = ?told.resources,
            removed = ?told.removed,
            "secrets pushed"
        );
        Ok(Some(response))
    }

    /// Returns whether there may be something to say.
    fn note(&self, heard: Heard) -> bool {
        match heard {
            Heard::Stale => return false,
            Heard::Subscribed => {}
            Heard::Acknowledged(resources) => {
                self.sds.metrics.acknowledged();
                for (name, version) in &resources {
                    self.tracked.acknowledged(name, version);
                }
            }
            Heard::Refused(resources, reason) => {
                self.sds.metrics.refused();
                for (name, version) in &resources {
                    self.tracked.refused(name, version, &reason);
                }
                let names = resources.iter().map(|(name, _)| name.as_str());
                if let Some(left_out) = line() {
                    tracing::warn!(
                        peer = self.view.peer().describe(),
                        reason,
                        names = ?names.collect::<Vec<_>>(),
                        left_out,
                        "a proxy refused its secrets and keeps the ones before them"
                    );
                }
            }
        }
        true
    }

    /// What a client can't mean ends its stream.
    fn refused(&self, status: &Status) -> Status {
        let peer = self.view.peer().describe();
        refuse(status.code(), status.message(), &peer, F::RPC)
    }
}

impl FileNames {
    fn ask_for<'n>(&mut self, subscribed: impl Iterator<Item = &'n str>) {
        let names: BTreeSet<&str> = subscribed.filter(|name| files::names_files(name)).collect();
        if names.iter().eq(self.names.iter()) {
            return;
        }
        self.names = names.into_iter().map(str::to_owned).collect();
        self.look_at = (!self.names.is_empty()).then(Instant::now);
        self.read.keep(&self.names);
    }

    /// Resolves when the files have to be looked at (again).
    async fn due(&self) {
        match self.look_at {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    async fn look(&mut self, sds: &Sds, snapshot: &Snapshot, view: &View) {
        if self.look_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        // Before the caller has an identity no rule can be for it.
        if snapshot.svids.is_empty() {
            self.look_at = Some(Instant::now() + WITHOUT_IDENTITY);
            return;
        }
        // Without any rule there is nothing to come: the refusals are told, and that is all.
        self.look_at = (!sds.files.is_empty()).then(|| Instant::now() + files::LOOK_EVERY);
        let caller: Vec<_> = snapshot.svids.iter().map(|svid| svid.id.clone()).collect();
        let (rules, names) = (sds.files.clone(), self.names.clone());
        let mut read = mem::take(&mut self.read);
        let reading = tokio::task::spawn_blocking(move || {
            let news = read.refresh(&rules, &caller, &names);
            (read, news)
        });
        let Ok((read, news)) = reading.await else {
            return;
        };
        self.read = read;
        for (name, problem) in news {
            if line().is_none() {
                continue;
            }
            let peer = view.peer().describe();
            tracing::warn!(target: "citadel::refused", peer, name, %problem, "a secret in files is not served");
        }
    }
}
