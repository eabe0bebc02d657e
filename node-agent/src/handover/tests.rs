#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener as StdUnixListener, UnixStream},
    },
    path::Path,
    sync::Arc,
};

use citadel_proto::agent::{HandoverState, Offer, OfferedSocket, SocketKind, TakeOverRequest};
use citadel_runtime::{Shutdown, admin::Readiness};
use prost::Message;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::{wire::Wire, *};
use crate::{
    attest::{cgroup::CgroupRoot, proc::Proc},
    ca_client::{Credential, FileToken, FirstTrust, Session, SessionConfig},
    clock::SystemClock,
    config::{Config, Settings},
    pods::Pods,
    secrets::{SecretKey, State, Wanted},
    socket::{self, Audience},
    testing::{World, trust_domain},
    testing_agent::{nothing_from, soon},
};

fn giver(world: &World) -> Giver {
    let config = SessionConfig {
        trust_domain: trust_domain(),
        addresses: vec!["127.0.0.1:1".parse().unwrap()],
        first_trust: FirstTrust::RootSha256([7; 32]),
        cluster: String::new(),
        knows_containers: false,
    };
    let session = Session::new(
        config,
        Credential::Token(Arc::new(FileToken("/nonexistent".into()))),
        Arc::new(SystemClock),
        world.metrics.clone(),
        Readiness::new().part("ca"),
    );
    Giver {
        trust_domain: trust_domain(),
        session,
        manager: world.manager.clone(),
    }
}

/// An agent's own half of a handover: its socket for workloads, and the one for successors.
struct Running {
    world: World,
    dir: tempfile::TempDir,
    intake: Shutdown,
    shutdown: Shutdown,
    ended: JoinHandle<Option<Tie>>,
    workloads: socket::BoundSocket,
}

impl Running {
    fn start() -> Self {
        let world = World::new();
        // What verifies its certificates is handed over with them.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handover.sock");
        let (listener, placed) = socket::bind(&path, Audience::Administrators).unwrap();
        let workloads = dir.path().join("agent.sock");
        let (served, bound) = socket::bind(&workloads, Audience::Workloads).unwrap();
        let (intake, shutdown) = (Shutdown::new(), Shutdown::new());
        let predecessor = Predecessor {
            served: vec![
                Served {
                    kind: SocketKind::Workloads,
                    descriptor: served.as_fd().try_clone_to_owned().unwrap(),
                    file: Some(bound.identity().clone()),
                },
                Served {
                    kind: SocketKind::Handover,
                    descriptor: listener.as_fd().try_clone_to_owned().unwrap(),
                    file: Some(placed.identity().clone()),
                },
            ],
            listener,
            placed,
            giver: giver(&world),
            own: Own {
                proc: Proc::new(Path::new("/proc")),
                cgroup_root: CgroupRoot::new("/"),
                pods: Pods::default(),
            },
            intake: intake.clone(),
        };
        let ended = tokio::spawn(predecessor.run(shutdown.signal()));
        Self {
            world,
            dir,
            intake,
            shutdown,
            ended,
            workloads: bound,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("handover.sock")
    }

    async fn ask(&self) -> Result<Option<Taken>, HandoverError> {
        soon(ask(self.path(), &trust_domain(), "")).await
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).unwrap()
    }

    fn serves(&self) -> bool {
        !self.intake.signal().is_triggered() && !self.ended.is_finished()
    }
}

fn pod() -> Wanted {
    Wanted {
        key: SecretKey::Pod { uid: "a".into() },
        principal: "pod a".into(),
        revision: 0,
        spiffe_id: None,
        ttl_seconds: 0,
        token: None,
    }
}

#[tokio::test]
async fn sockets_and_secrets_pass_to_the_successor() {
    let running = Running::start();
    let mut secret = running.world.manager.subscribe(pod()).unwrap();
    let is_ready = |state: &State| matches!(state, State::Ready(_));
    soon(secret.wait_for(is_ready)).await.unwrap();
    let mut taken = running.ask().await.unwrap().expect("an agent serves");
    assert!(running.serves());
    assert_eq!(taken.version, env!("CARGO_PKG_VERSION"));

    let workloads = running.dir.path().join("agent.sock");
    // Somebody else's file at the path is not what was handed over.
    let elsewhere = running.path();
    assert!(
        taken
            .unix(SocketKind::Administrators, &elsewhere)
            .unwrap()
            .is_none()
    );
    let (listener, bound) = taken
        .unix(SocketKind::Workloads, &workloads)
        .unwrap()
        .unwrap();
    let (asked, placed) = taken
        .unix(SocketKind::Handover, &running.path())
        .unwrap()
        .unwrap();
    let second = World::new();
    let state = std::mem::take(&mut taken.state);
    let restored = second
        .manager
        .restore(state.secrets, &running.world.ca.pki.bundles());
    assert_eq!(restored.taken, 1);
    let tie = soon(taken.confirm()).await.unwrap();

    soon(running.intake.signal().wait()).await;
    // Until it ends it asks the CA for nothing.
    let calls = running.world.ca.calls();
    let another = Wanted {
        key: SecretKey::Pod { uid: "b".into() },
        ..pod()
    };
    let mut waits = running.world.manager.subscribe(another).unwrap();
    nothing_from(waits.changed()).await;
    assert_eq!(running.world.ca.calls(), calls);
    running.shutdown.trigger();
    let first = soon(running.ended)
        .await
        .unwrap()
        .expect("it has handed over");
    // The files are the successor's: the predecessor's end removes none.
    drop(running.workloads);
    let _client = UnixStream::connect(&workloads).unwrap();
    soon(listener.accept()).await.unwrap();
    let _next = UnixStream::connect(running.dir.path().join("handover.sock")).unwrap();
    soon(asked.accept()).await.unwrap();
    // Each is told of the other's end.
    drop(tie);
    soon(first.broken()).await;
    drop((bound, placed));
    assert!(!workloads.exists());
}

#[tokio::test]
async fn a_handover_that_fails_changes_nothing() {
    let running = Running::start();
    // It is dropped without a word, before and after the offer.
    drop(running.connect());
    drop(running.ask().await.unwrap().unwrap());
    // It says nonsense, or what this version does not understand.
    running.connect().write_all(&[0xff; 64]).unwrap();
    running
        .connect()
        .write_all(&[0, 0, 0, 2, 0xff, 0xff])
        .unwrap();
    for (format, trust_domain) in [(FORMAT + 1, "example.org"), (FORMAT, "other.org")] {
        let request = TakeOverRequest {
            oldest_format: format,
            newest_format: format + 1,
            trust_domain: trust_domain.into(),
            ..TakeOverRequest::default()
        };
        let mut wire = Wire::new(running.connect()).unwrap();
        let refused = soon(tokio::task::spawn_blocking(move || {
            wire.send(&request, &[]).unwrap();
            wire.receive::<Offer>().unwrap().0.refused.clone()
        }));
        assert!(!refused.await.unwrap().is_empty());
    }
    let taken = running.ask().await.unwrap().unwrap();
    assert!(running.serves());
    // And it renews as before.
    drop(taken);
    let mut secret = running.world.manager.subscribe(pod()).unwrap();
    let is_ready = |state: &State| matches!(state, State::Ready(_));
    soon(secret.wait_for(is_ready)).await.unwrap();
    running.shutdown.trigger();
    assert!(soon(running.ended).await.unwrap().is_none());
    assert!(!running.dir.path().join("handover.sock").exists());
}

#[tokio::test]
async fn where_nobody_serves_nothing_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("handover.sock");
    assert!(
        ask(path.clone(), &trust_domain(), "")
            .await
            .unwrap()
            .is_none()
    );
    drop(StdUnixListener::bind(&path).unwrap());
    assert!(ask(path, &trust_domain(), "").await.unwrap().is_none());
}

/// An agent that offers what a test says.
async fn offered(
    sockets: Vec<(SocketKind, OwnedFd)>,
    memory: Option<OwnedFd>,
    state: &HandoverState,
) -> Result<Taken, HandoverError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("handover.sock");
    let listener = StdUnixListener::bind(&path).unwrap();
    let (sealed, key) = memory::write(Zeroizing::new(state.encode_to_vec())).unwrap();
    let mut offer = Offer::default();
    offer.format = FORMAT;
    offer.state_key = key.expose().to_vec();
    let announced = sockets.iter().map(|(kind, _)| OfferedSocket {
        kind: (*kind).into(),
        ..OfferedSocket::default()
    });
    offer.sockets = announced.collect();
    let answering = tokio::task::spawn_blocking(move || {
        let mut wire = Wire::new(listener.accept().unwrap().0).unwrap();
        wire.receive::<TakeOverRequest>().unwrap();
        let memory = memory.unwrap_or(sealed);
        let all = std::iter::once(&memory).chain(sockets.iter().map(|(_, fd)| fd));
        let all: Vec<_> = all.map(AsFd::as_fd).collect();
        wire.send(&offer, &all).unwrap();
    });
    let taken = soon(ask(path, &trust_domain(), "")).await;
    answering.await.unwrap();
    taken.map(Option::unwrap)
}

#[tokio::test]
async fn what_is_offered_is_believed_only_if_it_is_what_it_says() {
    let good = HandoverState {
        trust_domain: "example.org".into(),
        ..HandoverState::default()
    };
    let other = HandoverState {
        trust_domain: "other.org".into(),
        ..HandoverState::default()
    };
    offered(Vec::new(), None, &good)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let refused = offered(Vec::new(), None, &other).await.err().unwrap();
    assert!(refused.to_string().contains("trust domain"), "{refused}");
    let file = tempfile::tempfile().unwrap();
    let refused = offered(Vec::new(), Some(file.into()), &good).await.err();
    assert!(matches!(
        refused,
        Some(HandoverError::Memory(MemoryError::Unsealed))
    ));
    // A connection, a file: neither listens.
    let (connected, _other_end) = UnixStream::pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    for socket in [OwnedFd::from(connected), OwnedFd::from(file)] {
        let sockets = vec![(SocketKind::Workloads, socket)];
        let mut taken = offered(sockets, None, &good).await.unwrap();
        let refused = taken.unix(SocketKind::Workloads, Path::new("/run/x")).err();
        assert!(matches!(refused, Some(HandoverError::Malformed("socket"))));
    }
}

/// An agent on a socket in `dir` that waits once it has handed over.
fn settings(dir: &Path, then: Then) -> Settings {
    let mut config = Config {
        trust_domain: "example.org".into(),
        socket: dir.join("agent.sock"),
        admin_listen: ([127, 0, 0, 1], 0).into(),
        ..Config::default()
    };
    config.handover.then = then;
    config.settings().unwrap()
}

#[tokio::test]
async fn who_has_handed_over_ends_or_waits_until_nobody_serves() {
    let dir = tempfile::tempdir().unwrap();
    let listener = StdUnixListener::bind(dir.path().join("agent.sock")).unwrap();
    let successor = || {
        let (near, far) = UnixStream::pair().unwrap();
        (Successor(Tie::new(&Wire::new(near).unwrap())), far)
    };
    let (ends, _far) = successor();
    let exits = settings(dir.path(), Then::Exit);
    assert!(!soon(wait(ends, &exits, &Shutdown::new())).await);

    let (waits, far) = successor();
    let waiting = settings(dir.path(), Then::Wait);
    let shutdown = Shutdown::new();
    let mut waiting = tokio::spawn(async move { wait(waits, &waiting, &shutdown).await });
    nothing_from(&mut waiting).await;
    // The other one has handed over in its turn: somebody serves.
    drop(far);
    nothing_from(&mut waiting).await;
    drop(listener);
    assert!(soon(waiting).await.unwrap());

    // And it can be ended.
    let (waits, _far) = successor();
    let waiting = settings(dir.path(), Then::Wait);
    let shutdown = Shutdown::new();
    shutdown.trigger();
    assert!(!soon(wait(waits, &waiting, &shutdown)).await);
}
