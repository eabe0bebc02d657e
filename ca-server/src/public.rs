//! The public HTTPS port: the log as C2SP tlog-tiles has it, at `/checkpoint` and `/tile/…`.
//!
//! Entries name workloads: their bundles are for auditors alone, who present an SVID or a
//! service-account token. Checkpoint and hash tiles say nothing of anybody; with
//! `log.public_hashes` everybody may have them, without it auditors.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use citadel_ledger::{Resource, Tile};
use citadel_runtime::tls::PeerInfo;
use tokio::sync::Semaphore;
use tonic::{Code, metadata::MetadataMap};

use crate::{
    grpc::{AdminAccess, AdminRole, Front},
    log::{Log, bundle},
    store::StoreError,
};

/// What the handlers need.
#[derive(Clone)]
pub(crate) struct Public {
    /// Authentication and the turns.
    pub(crate) front: Front,
    /// Who is an auditor.
    pub(crate) access: AdminAccess,
    /// The log.
    pub(crate) log: Arc<Log>,
    /// Whether everybody may have checkpoint and hash tiles.
    pub(crate) open_hashes: bool,
    /// From a request's head to its answer.
    pub(crate) deadline: Duration,
    /// Reads of the store at once: renewals read it too.
    pub(crate) reads: Arc<Semaphore>,
}

/// Reads of the store for the public at once.
pub(crate) const READS: usize = 2;

/// Why there is no such resource, or not for this caller.
enum Refused {
    NotFound,
    Denied(Code),
    Store(StoreError),
}

/// Tiles never change: a wider one has another path.
const FOREVER: &str = "public, max-age=31536000, immutable";
/// What not everybody may have is not for shared caches.
const FOREVER_PRIVATE: &str = "private, max-age=31536000, immutable";

/// The routes.
pub(crate) fn router(public: Public) -> Router {
    Router::new()
        .route("/checkpoint", get(resource))
        .route("/tile/{*path}", get(resource))
        .with_state(public)
}

async fn resource(
    State(public): State<Public>,
    Extension(peer): Extension<PeerInfo>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let path = uri.path().trim_start_matches('/');
    let Ok(resource) = Resource::from_path(path) else {
        return Refused::NotFound.into_response();
    };
    let answer = public.answer(resource, &peer, headers);
    match tokio::time::timeout(public.deadline, answer).await {
        Ok(Ok(response)) => response,
        Ok(Err(refused)) => refused.into_response(),
        Err(_) => Refused::Denied(Code::Unavailable).into_response(),
    }
}

impl Public {
    async fn answer(
        &self,
        resource: Resource,
        peer: &PeerInfo,
        headers: HeaderMap,
    ) -> Result<Response, Refused> {
        let open = self.open_hashes && !matches!(resource, Resource::Entries(_));
        if !open {
            let metadata = MetadataMap::from_headers(headers);
            self.access
                .check(
                    &self.front,
                    "public/log",
                    AdminRole::Auditor,
                    peer,
                    &metadata,
                )
                .await
                .map_err(|status| Refused::Denied(status.code()))?;
        }
        let _read = self.reads.acquire().await;
        let newest = self.log.newest().ok_or(Refused::NotFound)?;
        let size = newest.checkpoint.size;
        match resource {
            Resource::Checkpoint => Ok((
                [
                    (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
                    (header::CACHE_CONTROL, "no-cache"),
                ],
                newest.note.clone(),
            )
                .into_response()),
            Resource::Hashes(tile) => {
                covered(tile, size)?;
                let mut tiles = self.log.store().tiles(&[tile]).await?;
                let cache = if open { FOREVER } else { FOREVER_PRIVATE };
                Ok(bytes(cache, tiles.pop().ok_or(Refused::NotFound)?))
            }
            Resource::Entries(tile) => {
                covered(tile, size)?;
                // Retention takes the oldest entries away; their hashes stay.
                let entries = bundle(self.log.store(), tile).await?;
                Ok(bytes(FOREVER_PRIVATE, entries.ok_or(Refused::NotFound)?))
            }
        }
    }
}

/// What no checkpoint covers yet is not there.
fn covered(tile: Tile, size: u64) -> Result<(), Refused> {
    let most = Tile::at(tile.level, tile.index, size).ok_or(Refused::NotFound)?;
    if tile.width <= most.width {
        Ok(())
    } else {
        Err(Refused::NotFound)
    }
}

fn bytes(cache: &'static str, content: Vec<u8>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CACHE_CONTROL, cache),
    ];
    (headers, content).into_response()
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::MissingTile(_) => Self::NotFound,
            other => Self::Store(other),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "the log has no such resource\n"),
            Self::Denied(Code::Unauthenticated) => (
                StatusCode::UNAUTHORIZED,
                "an auditor's SVID or token is needed\n",
            ),
            Self::Denied(Code::Unavailable | Code::ResourceExhausted) => {
                (StatusCode::SERVICE_UNAVAILABLE, "try again\n")
            }
            Self::Denied(_) => (StatusCode::FORBIDDEN, "for auditors alone\n"),
            Self::Store(error) => {
                tracing::debug!(%error, "the log can't be read");
                (StatusCode::SERVICE_UNAVAILABLE, "try again\n")
            }
        }
        .into_response()
    }
}
