//! For this crate's tests: both services on a real socket, over a fake CA, with a proc
//! file system in which this very process is in whatever cgroup a test wants.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{path::PathBuf, sync::Arc, time::Duration};

use citadel_proto::v1::{EntriesUpdate, EntryRecord};
use hyper_util::rt::TokioIo;
use tokio::{
    net::UnixStream,
    sync::{mpsc, watch},
};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    attest::{Attestor, cgroup::CgroupRoot, proc::Proc},
    ca_client::Entries,
    clock::Clock,
    connections::{self, Limits},
    holders::Holders,
    identities::Identities,
    pods::Pods,
    sds::{Sds, folders::FolderRule},
    secrets::ManagerOptions,
    socket::{self, BoundSocket},
    testing::{World, trust_domain},
    workload_api::WorkloadApi,
};

/// A pod's UID, and its cgroup file.
pub(crate) const POD: &str = "7f3c1a52-0b4e-4c1d-9a57-1f2e3d4c5b6a";

/// Streams of one connection.
pub(crate) const STREAMS: u32 = 4;

pub(crate) fn in_pod() -> String {
    format!("0::/kubepods/burstable/pod{POD}/{}\n", "ab".repeat(32))
}

pub(crate) struct TestAgent {
    pub world: World,
    pub holders: Holders,
    pub entries: watch::Sender<Option<Arc<Entries>>>,
    path: PathBuf,
    _bound: BoundSocket,
    _dir: tempfile::TempDir,
}

impl TestAgent {
    pub(crate) fn new(cgroup: &str) -> Self {
        Self::with_files(cgroup, Vec::new())
    }

    pub(crate) fn with_files(cgroup: &str, files: Vec<FolderRule>) -> Self {
        let world = World::with(ManagerOptions::default());
        let dir = tempfile::tempdir().unwrap();
        let proc = dir.path().join("proc");
        let process = proc.join(std::process::id().to_string());
        std::fs::create_dir_all(&process).unwrap();
        std::fs::write(proc.join("uptime"), "100.00 1.00\n").unwrap();
        std::fs::write(process.join("cgroup"), cgroup).unwrap();
        std::fs::write(process.join("status"), "Groups:\t5 6\n").unwrap();
        let path = dir.path().join("agent.sock");
        let (listener, bound) = socket::bind(&path, socket::Audience::Workloads).unwrap();
        let entries = watch::Sender::new(Some(Arc::default()));
        let identities = Identities {
            manager: world.manager.clone(),
            trust_domain: trust_domain(),
            entries: entries.subscribe(),
            bundles: world.bundles.subscribe(),
            pods: Pods::default(),
            ttl_seconds: 0,
        };
        let attestor = Attestor::new(Proc::new(&proc), CgroupRoot::new("/"));
        let limits = Limits {
            streams_per_connection: STREAMS,
            ..Limits::default()
        };
        let incoming = connections::accept(
            listener,
            attestor,
            &limits,
            &world.metrics,
            world.shutdown.signal(),
        )
        .unwrap();
        let holders = Holders::new(
            Arc::clone(&world.clock) as Arc<dyn Clock>,
            world.metrics.clone(),
        );
        let sds = Sds {
            identities: identities.clone(),
            files: files.into(),
            holders: holders.clone(),
            metrics: world.metrics.clone(),
            shutdown: world.shutdown.signal(),
        };
        let workload_api = WorkloadApi {
            identities,
            holders: holders.clone(),
            metrics: world.metrics.clone(),
            shutdown: world.shutdown.signal(),
        };
        let (routes, until) = (crate::routes(sds, workload_api), world.shutdown.signal());
        tokio::spawn(async move { crate::answer(incoming, routes, &limits, until).await });
        Self {
            world,
            holders,
            entries,
            path,
            _bound: bound,
            _dir: dir,
        }
    }

    pub(crate) async fn connect(&self) -> Channel {
        let path = self.path.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // A reader that stops reading is to be noticed soon.
        Endpoint::from_static("http://localhost")
            .initial_stream_window_size(65_535)
            .initial_connection_window_size(65_535)
            .connect_with_connector(connector)
            .await
            .unwrap()
    }

    /// Sets the entries of the node: name and selectors of each.
    pub(crate) fn set_entries(&self, entries: &[(&str, &[&str])]) {
        set_entries(&self.entries, entries);
    }
}

/// Sets the entries of a node: name and selectors of each. The revision is a new one.
pub(crate) fn set_entries(node: &watch::Sender<Option<Arc<Entries>>>, entries: &[(&str, &[&str])]) {
    let records = entries.iter().map(|(name, selectors)| EntryRecord {
        entry_id: (*name).to_owned(),
        spiffe_id: format!("spiffe://example.org/{name}"),
        selectors: selectors.iter().map(|s| (*s).to_owned()).collect(),
        ..EntryRecord::default()
    });
    let revision = node.borrow().as_ref().map_or(0, |held| held.revision) + 1;
    let update = EntriesUpdate {
        entries: records.collect(),
        revision,
    };
    let entries = Entries::from_update(update, &trust_domain(), true);
    node.send_replace(Some(Arc::new(entries)));
}

/// One bidirectional stream of a scripted client.
pub(crate) struct Talk<Q, R> {
    pub requests: mpsc::Sender<Q>,
    pub responses: Streaming<R>,
}

impl<Q, R: std::fmt::Debug> Talk<Q, R> {
    pub(crate) async fn send(&self, request: Q) {
        assert!(self.requests.send(request).await.is_ok(), "it has ended");
    }

    pub(crate) async fn next(&mut self) -> R {
        soon(self.responses.message())
            .await
            .unwrap()
            .expect("the stream goes on")
    }

    pub(crate) async fn end(&mut self) -> Status {
        soon(self.responses.message()).await.unwrap_err()
    }

    pub(crate) async fn silence(&mut self) {
        nothing_from(self.responses.message()).await;
    }
}

/// Waits for something that must come.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("it did not come")
}

/// Gives something that must not come the time to come.
pub(crate) async fn nothing_from<T: std::fmt::Debug>(what: impl Future<Output = T>) {
    let came = tokio::time::timeout(Duration::from_millis(300), what).await;
    assert!(came.is_err(), "{came:?}");
}

/// A selector that this process matches outside of pods.
pub(crate) fn this_user() -> String {
    format!("unix:uid:{}", nix::unistd::getuid())
}
