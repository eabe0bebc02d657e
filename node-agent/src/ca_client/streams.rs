//! What the CA pushes: the entries of this node and the trust bundles.

use std::{sync::Arc, time::Duration};

use citadel_identity::{
    TrustDomain,
    bundle::{Bundle, BundleSet},
};
use citadel_proto::v1::{
    EntriesUpdate, StreamEntriesRequest, StreamTrustBundlesRequest, TrustBundle,
};
use citadel_runtime::ShutdownSignal;
use rand::Rng;
use rustls::pki_types::CertificateDer;

use super::{
    CaError,
    session::{Link, Session},
    status::error_of,
};
use crate::secrets::timing;

/// How long opening a stream may take.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// Follows both streams until the shutdown, over whatever connection the session has.
pub(super) async fn run(session: Arc<Session>, shutdown: ShutdownSignal) {
    tokio::join!(
        follow(&session, &shutdown, "entries", entries),
        follow(&session, &shutdown, "trust bundles", bundles),
    );
}

async fn follow(
    session: &Session,
    shutdown: &ShutdownSignal,
    what: &str,
    stream: impl AsyncFn(&Session, &Link) -> Result<(), CaError>,
) {
    let mut links = session.links();
    let mut failures: u32 = 0;
    loop {
        let link = links.borrow_and_update().clone();
        let wait = match link {
            None => None,
            Some(link) => {
                let began = tokio::time::Instant::now();
                tokio::select! {
                    () = shutdown.wait() => return,
                    // A renewed SVID has a connection of its own; both streams send
                    // everything first, so moving over loses nothing.
                    changed = links.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        failures = 0;
                        continue;
                    }
                    ended = stream(session, &link) => {
                        if let Err(error) = &ended {
                            session.note_call(Err(error));
                            tracing::info!(%error, what, "the CA's stream broke; reopening");
                        }
                        if began.elapsed() > Duration::from_secs(10) {
                            failures = 0;
                        }
                        failures = failures.saturating_add(1);
                        Some(timing::pause(failures, None, rand::rng().random()))
                    }
                }
            }
        };
        let pause = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.wait() => return,
            changed = links.changed() => if changed.is_err() { return },
            () = pause => {}
        }
    }
}

async fn entries(session: &Session, link: &Link) -> Result<(), CaError> {
    let mut client = link.client.clone();
    let open = client.stream_entries(StreamEntriesRequest {});
    let mut stream = opened(open).await?;
    while let Some(update) = stream.message().await.map_err(|status| error_of(&status))? {
        session.note_call(Ok(()));
        take_entries(session, update);
    }
    Ok(())
}

/// Takes over the entries of this node.
pub(super) fn take_entries(session: &Session, update: EntriesUpdate) {
    session.keep_entries_as_sent(&update);
    let entries = session.entries_of(update);
    tracing::info!(
        entries = entries.list.len(),
        ignored = entries.ignored.len(),
        revision = entries.revision,
        "entries"
    );
    session.metrics.entries(&entries);
    session.entries.send_if_modified(|held| {
        entries.tell_ignored(held.as_deref());
        // The CA's revision changes with the set, but a restart may count anew.
        let changed = held.as_ref().is_none_or(|held| **held != entries);
        *held = Some(Arc::new(entries));
        changed
    });
}

async fn bundles(session: &Session, link: &Link) -> Result<(), CaError> {
    let mut client = link.client.clone();
    let asked = session.clock.now();
    let open = client.stream_trust_bundles(StreamTrustBundlesRequest {});
    let mut stream = opened(open).await?;
    let mut first = true;
    while let Some(update) = stream.message().await.map_err(|status| error_of(&status))? {
        session.note_call(Ok(()));
        let now = session.clock.now();
        session
            .skew
            .note(update.server_time_ms, if first { asked } else { now }, now);
        first = false;
        session.trust.update(bundle_set(update.bundles));
    }
    Ok(())
}

async fn opened<T>(
    open: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, CaError> {
    match tokio::time::timeout(OPEN_DEADLINE, open).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(error_of(&status)),
        Err(_) => Err(CaError::Unreachable("no answer in time".to_owned())),
    }
}

/// Bundles as they came over the wire. A bundle of a nameless trust domain is left out;
/// those of different trust domains are never merged (`spiffe_req_36`).
pub(super) fn bundle_set(bundles: Vec<TrustBundle>) -> BundleSet {
    let mut set = BundleSet::default();
    for bundle in bundles {
        let Ok(trust_domain) = TrustDomain::new(&bundle.trust_domain) else {
            tracing::warn!("the CA sent a bundle of a trust domain whose name is none");
            continue;
        };
        set.insert(Bundle {
            trust_domain,
            authorities: bundle
                .x509_authorities
                .into_iter()
                .map(CertificateDer::from)
                .collect(),
            sequence: bundle.sequence,
            refresh_hint: Duration::from_secs(
                u64::try_from(bundle.refresh_hint_seconds).unwrap_or_default(),
            ),
        });
    }
    set
}
