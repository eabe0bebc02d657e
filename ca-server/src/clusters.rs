//! The clusters whose workloads this CA serves: for each its API, what our watches show of
//! it, and the keys that verify its tokens.

mod shared;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use citadel_kubernetes::{
    ClusterApi,
    inventory::Inventory,
    jwks::{JwksPolicy, JwksSnapshot, JwksSource, RefetchOutcome},
    resolver::{ResolverPolicy, UnknownUidResolver},
};

pub use self::shared::SharedKey;
use crate::{authn::keyset::KeySet, caller::Method};

/// How tokens of a cluster are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Against its JWKS and our watches; what is not ours to judge goes to TokenReview.
    Local,
    /// By its API server.
    TokenReview,
}

/// One cluster's parts.
pub struct ClusterParts {
    /// Its name, as the configuration has it.
    pub name: String,
    /// How tokens are checked.
    pub mode: Mode,
    /// Issuers beside the one that the API server's discovery document names.
    pub issuers: Vec<String>,
    /// Reads on demand.
    pub api: Arc<dyn ClusterApi>,
    /// What the watches show.
    pub inventory: Arc<Inventory>,
    /// How old that may be.
    pub max_staleness: Duration,
}

/// One cluster.
pub struct ClusterHandle {
    name: String,
    mode: Mode,
    issuers: Vec<String>,
    discovered_issuer: ArcSwapOption<String>,
    api: Arc<dyn ClusterApi>,
    inventory: Arc<Inventory>,
    jwks: Arc<JwksSource>,
    keys: ArcSwapOption<ParsedKeys>,
    resolver: UnknownUidResolver,
    max_staleness: Duration,
}

struct ParsedKeys {
    fetched: Instant,
    set: Result<Arc<KeySet>, String>,
}

/// What we know of a cluster is too old.
#[derive(Debug, thiserror::Error)]
#[error("what the watches show of cluster {cluster} is {age} old, the limit is {limit:?}")]
pub struct Stale {
    cluster: String,
    age: String,
    limit: Duration,
}

/// All clusters, by name.
pub struct Clusters {
    handles: Vec<ClusterHandle>,
}

impl ClusterHandle {
    /// Starts with empty keys; [`Self::refresh_keys`] and the watches fill it.
    pub fn new(parts: ClusterParts) -> Self {
        Self {
            jwks: Arc::new(JwksSource::new(
                parts.api.clone(),
                JwksPolicy::for_staleness(parts.max_staleness),
            )),
            resolver: UnknownUidResolver::new(
                parts.api.clone(),
                parts.inventory.clone(),
                ResolverPolicy::default(),
            ),
            name: parts.name,
            mode: parts.mode,
            issuers: parts.issuers,
            discovered_issuer: ArcSwapOption::empty(),
            api: parts.api,
            inventory: parts.inventory,
            keys: ArcSwapOption::empty(),
            max_staleness: parts.max_staleness,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How its tokens are checked.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The method that the log names for what rests on this cluster's watches.
    pub fn method(&self) -> Method {
        match self.mode {
            Mode::Local => Method::Jwks,
            Mode::TokenReview => Method::TokenReview,
        }
    }

    /// Reads on demand.
    pub fn api(&self) -> &Arc<dyn ClusterApi> {
        &self.api
    }

    /// What the watches show.
    pub fn inventory(&self) -> &Arc<Inventory> {
        &self.inventory
    }

    /// Looks up UIDs that the watches never held.
    pub fn resolver(&self) -> &UnknownUidResolver {
        &self.resolver
    }

    /// The source of its keys.
    pub fn jwks(&self) -> &Arc<JwksSource> {
        &self.jwks
    }

    /// Age of the stalest watch; `Duration::MAX` before the first complete list.
    pub fn staleness(&self) -> Duration {
        self.inventory
            .staleness(tokio::time::Instant::now().into_std())
    }

    /// Refuses to decide on what is too old.
    pub fn check_fresh(&self) -> Result<(), Stale> {
        let age = self.staleness();
        if age <= self.max_staleness {
            return Ok(());
        }
        let age = match age {
            Duration::MAX => "never complete".to_owned(),
            age => format!("{} s", age.as_secs()),
        };
        Err(Stale {
            cluster: self.name.clone(),
            age,
            limit: self.max_staleness,
        })
    }

    /// Whether tokens of this issuer are this cluster's to judge.
    pub fn is_issuer(&self, issuer: &str) -> bool {
        self.issuers.iter().any(|known| known == issuer)
            || self
                .discovered_issuer
                .load()
                .as_deref()
                .is_some_and(|known| known == issuer)
    }

    /// Whether any issuer is known yet.
    pub fn knows_issuer(&self) -> bool {
        !self.issuers.is_empty() || self.discovered_issuer.load().is_some()
    }

    /// The keys of the newest JWKS, parsed once for each. `None` before the first fetch, or
    /// when the last good one is older than what we may rely on.
    pub fn keys(&self) -> Option<Result<Arc<KeySet>, String>> {
        let snapshot = self.jwks.current()?;
        let age = tokio::time::Instant::now()
            .into_std()
            .saturating_duration_since(snapshot.fetched);
        if age > self.max_staleness {
            return None;
        }
        Some(self.parsed(&snapshot))
    }

    /// The keys of the newest JWKS however old it is: enough to know a key as this cluster's,
    /// not to trust it.
    fn keys_of_any_age(&self) -> Option<Arc<KeySet>> {
        self.parsed(self.jwks.current()?.as_ref()).ok()
    }

    fn parsed(&self, snapshot: &JwksSnapshot) -> Result<Arc<KeySet>, String> {
        if let Some(parsed) = self.keys.load().as_deref()
            && parsed.fetched == snapshot.fetched
        {
            return parsed.set.clone();
        }
        let set = KeySet::parse(&snapshot.json)
            .map(Arc::new)
            .map_err(|error| error.to_string());
        let parsed = ParsedKeys {
            fetched: snapshot.fetched,
            set: set.clone(),
        };
        self.keys.store(Some(Arc::new(parsed)));
        set
    }

    /// Fetches keys and issuer, at most once in ten seconds for all callers.
    pub async fn refresh_keys(&self) -> RefetchOutcome {
        let outcome = self.jwks.refetch().await;
        if matches!(outcome, RefetchOutcome::Fresh) && self.discovered_issuer.load().is_none() {
            match self.api.fetch_issuer().await {
                Ok(issuer) => self.discovered_issuer.store(Some(Arc::new(issuer))),
                Err(error) => {
                    tracing::warn!(cluster = self.name, %error, "issuer discovery failed");
                }
            }
        }
        outcome
    }
}

impl Clusters {
    /// These clusters; their names are distinct (the configuration checks it).
    pub fn new(handles: Vec<ClusterHandle>) -> Self {
        Self { handles }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &ClusterHandle> {
        self.handles.iter()
    }

    /// By name.
    pub fn get(&self, name: &str) -> Option<&ClusterHandle> {
        self.handles.iter().find(|handle| handle.name == name)
    }

    /// The only cluster, if there is just one.
    pub fn sole(&self) -> Option<&ClusterHandle> {
        match self.handles.as_slice() {
            [handle] => Some(handle),
            _ => None,
        }
    }
}
