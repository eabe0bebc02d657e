//! One stream of secrets, from its first request to its end.

use std::{collections::BTreeSet, mem, pin::Pin, time::Duration};

use futures::{Stream, StreamExt};
use rand::Rng;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{
    Sds,
    content::Content,
    files::{self, Files},
    forms::{Form, Heard},
};
use crate::{
    gate::{Admitted, line, refuse},
    holders::Tracked,
    identities::{Snapshot, Standing, View},
};

/// When the files are looked at again while the caller has no identity yet.
const WITHOUT_IDENTITY: Duration = Duration::from_millis(250);

/// What a stream's client gets.
pub(super) type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// To the client. Boxed: a channel has room for 32 at once, whatever its capacity.
type Sender<T> = mpsc::Sender<Box<Result<T, Status>>>;

/// A stream of either form.
struct Session<F: Form> {
    sds: Sds,
    view: View,
    form: F,
    files: FileNames,
    tracked: Tracked,
    sender: Sender<F::Response>,
}

/// What of the subscription stands for files.
#[derive(Default)]
struct FileNames {
    names: Vec<String>,
    read: Files,
    look_at: Option<Instant>,
}

/// Serves a stream in a task of its own.
pub(super) fn serve<F: Form>(
    sds: &Sds,
    admitted: Admitted,
    mut requests: Streaming<F::Request>,
) -> Responses<F::Response> {
    let Admitted { view, gone } = admitted;
    // One response at a time: the next waits until the client reads, and holds up nobody
    // else meanwhile.
    let (sender, receiver) = mpsc::channel(1);
    let mut session = Session::<F> {
        sds: sds.clone(),
        tracked: sds.holders.stream(F::PROTOCOL, view.peer()),
        view,
        form: F::new(rand::rng().random()),
        files: FileNames::default(),
        sender,
    };
    tokio::spawn(async move {
        let counted = session.sds.metrics.streaming(F::PROTOCOL);
        let shutdown = session.sds.shutdown.clone();
        let sender = session.sender.clone();
        let ended = tokio::select! {
            biased;
            // What was asked before the end is answered before it.
            ended = session.run(&mut requests) => ended,
            () = gone.cancelled() => Err(Status::unavailable("the caller's process has ended")),
            () = shutdown.wait() => Err(Status::unavailable("the agent is shutting down")),
        };
        if let Err(status) = ended {
            // Not waiting for a client that reads nothing any more.
            let _ = sender.try_send(Box::new(Err(status)));
        }
        drop(counted);
    });
    Box::pin(ReceiverStream::new(receiver).map(|response| *response))
}

impl<F: Form> Session<F> {
    /// By reference: what a future is given by value it holds twice.
    async fn run(&mut self, requests: &mut Streaming<F::Request>) -> Result<(), Status> {
        let mut subscribed = false;
        loop {
            tokio::select! {
                request = requests.next() => {
                    let Some(request) = request else { return Ok(()) };
                    let heard = self
                        .form
                        .request(request?)
                        .map_err(|status| self.refused(&status))?;
                    subscribed = true;
                    if !self.note(heard) {
                        continue;
                    }
                    self.files.ask_for(self.form.subscribed());
                    self.tracked.keep(|name| self.form.asks_for(name));
                }
                () = self.view.changed() => {}
                () = self.files.due() => {}
            }
            // A caller that may have nothing is told so once it has asked for something.
            if subscribed {
                // Boxed: what it needs for a moment would be part of each waiting stream.
                Box::pin(self.push()).await?;
            }
        }
    }

    async fn push(&mut self) -> Result<(), Status> {
        // Room first, content after: who reads late gets what is newest then, and no copy of
        // a key waits meanwhile.
        let Ok(room) = self.sender.clone().reserve_owned().await else {
            return Err(Status::cancelled("the client hung up"));
        };
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
        if let Some((response, told)) = self.form.push(&content) {
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
            room.send(Box::new(Ok(response)));
        }
        Ok(())
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
