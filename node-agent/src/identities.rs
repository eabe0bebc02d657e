//! What a peer may have: its identities, followed as they change. SDS and the Workload
//! API show this, each in its own words.

use std::{collections::HashSet, sync::Arc, time::Duration};

use citadel_identity::{TrustDomain, bundle::BundleSet};
use futures::future::select_all;
use rand::Rng;
use tokio::{sync::watch, time::Instant};

use crate::{
    attest::{Peer, cgroup::PodUid, relayed::RelayedToken},
    ca_client::Entries,
    pods::{
        self, PodState, Pods,
        choice::{self, Place},
    },
    secrets::{NotNow, SecretKey, SecretManager, State, Subscription, Svid, Wanted},
};

/// How long a caller is kept waiting for its first answer before it is told that
/// nothing is ready.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// When a view that was put off looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// When a view looks again for what the CA refused, give or take a tenth: the pod's
/// labels or the CA's policy may have changed.
const REFUSED_LOOK_AGAIN: Duration = Duration::from_mins(1);

/// Where identities come from. Clones share everything.
#[derive(Clone)]
pub struct Identities {
    /// Holds the secrets.
    pub manager: SecretManager,
    /// Own trust domain.
    pub trust_domain: TrustDomain,
    /// The entries of this node; `None` before the CA sent them.
    pub entries: watch::Receiver<Option<Arc<Entries>>>,
    /// The bundles; `None` before the CA sent them.
    pub bundles: watch::Receiver<Option<Arc<BundleSet>>>,
    /// Lifetime to ask for, seconds; 0 leaves it to the CA.
    pub ttl_seconds: i64,
    /// The pods of this node.
    pub pods: Pods,
}

/// The identities of one peer.
pub struct View {
    from: Identities,
    peer: Arc<Peer>,
    relayed: Option<RelayedToken>,
    /// What is known of the peer's pod, where it is in one and the node's pods are read.
    pod: Option<watch::Receiver<PodState>>,
    secrets: Vec<Secret>,
    /// Why something that the peer may have is not even asked for yet.
    put_off: Option<Arc<str>>,
    /// The kubelet has not said yet which container the peer is in, and that decides.
    awaits_container: bool,
    /// Why something is not among `secrets` any more.
    refused: Option<Arc<str>>,
    look_again: Option<Instant>,
    /// Whether the entries were there when the choice was made. That they are there by now
    /// says nothing of `secrets`.
    chose_by_entries: bool,
    /// The choice has to be made anew, and has not been yet.
    stale: bool,
}

struct Secret {
    key: SecretKey,
    state: Subscription,
}

/// What a peer has at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The default identity first.
    pub svids: Vec<Arc<Svid>>,
    /// Of each trust domain, its own.
    pub bundles: Arc<BundleSet>,
    /// Whether this is all there will be for now.
    pub standing: Standing,
    /// True if the CA's entries of this node were there when the choice was made: without
    /// them, that an identity is not among `svids` says nothing.
    pub entries_known: bool,
    /// True if the first of `svids` is the default identity: it is not as long as one
    /// that would come before it is still awaited.
    pub has_default: bool,
}

/// Where a peer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Everything that the peer may have is here.
    Complete,
    /// Something may still come; why it has not.
    Waiting(Arc<str>),
    /// Nothing is for this peer.
    Denied(Arc<str>),
}

impl Identities {
    /// Follows the identities of `peer`, which may have handed in its own token.
    pub async fn of(&self, peer: Arc<Peer>, relayed: Option<RelayedToken>) -> View {
        let pod = peer.pod.as_ref();
        let pod = pod.and_then(|pod| self.pods.follow(&pod.uid));
        let mut view = View {
            from: self.clone(),
            peer,
            relayed,
            pod,
            awaits_container: false,
            secrets: Vec::new(),
            put_off: None,
            refused: None,
            look_again: None,
            chose_by_entries: false,
            stale: true,
        };
        view.choose().await;
        view
    }
}

impl View {
    /// What the peer has now.
    pub fn snapshot(&self) -> Snapshot {
        if self.is_gone() {
            return Snapshot {
                svids: Vec::new(),
                bundles: self.from.bundles.borrow().clone().unwrap_or_default(),
                standing: Standing::Denied(pods::GONE.into()),
                entries_known: self.chose_by_entries,
                has_default: false,
            };
        }
        let mut svids = Vec::new();
        let mut waiting: Option<Arc<str>> = None;
        let mut denied = self.refused.clone();
        let mut has_default = true;
        for secret in &self.secrets {
            match &*secret.state.borrow() {
                State::Ready(svid) => svids.push(Arc::clone(svid)),
                State::Waiting { trouble } => {
                    let reason = || "the CA has not answered yet".into();
                    waiting.get_or_insert_with(|| trouble.clone().unwrap_or_else(reason));
                    has_default &= !svids.is_empty();
                }
                State::Denied(reason) => {
                    denied.get_or_insert_with(|| Arc::clone(reason));
                }
            }
        }
        let bundles = self.from.bundles.borrow().clone();
        if bundles.is_none() {
            waiting.get_or_insert_with(|| "the CA has not sent its trust bundle yet".into());
        }
        if !self.chose_by_entries && self.waits_for_entries() {
            waiting.get_or_insert_with(|| "the CA has not sent this node's entries yet".into());
        }
        if self.awaits_container {
            waiting.get_or_insert_with(|| {
                "the kubelet has not said yet which container the caller runs in".into()
            });
        }
        if let Some(reason) = &self.put_off {
            waiting.get_or_insert_with(|| Arc::clone(reason));
        }
        let standing = match (waiting, svids.is_empty()) {
            (Some(reason), _) => Standing::Waiting(reason),
            (None, false) => Standing::Complete,
            (None, true) => Standing::Denied(
                denied.unwrap_or_else(|| "no entry of this node is for this caller".into()),
            ),
        };
        has_default &= !svids.is_empty();
        Snapshot {
            svids,
            bundles: bundles.unwrap_or_default(),
            standing,
            entries_known: self.chose_by_entries,
            has_default,
        }
    }

    /// Resolves after something changed. Cancel-safe: a change that a dropped call saw is
    /// in the next snapshot.
    pub async fn changed(&mut self) {
        if !self.stale {
            let Identities {
                entries, bundles, ..
            } = &mut self.from;
            let any_secret = any_changed(&mut self.secrets);
            let pod = async {
                match &mut self.pod {
                    Some(pod) => or_never(pod.changed().await).await,
                    None => std::future::pending().await,
                }
            };
            let look_again = self.look_again;
            let look_again = async {
                match look_again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            self.stale = tokio::select! {
                changed = entries.changed() => { or_never(changed).await; true }
                changed = bundles.changed() => { or_never(changed).await; false }
                // An answer makes room for the next question.
                () = any_secret => self.put_off.is_some(),
                () = look_again => true,
                () = pod => true,
            };
            self.let_go();
        }
        if self.stale {
            self.choose().await;
        }
    }

    /// Lets go of what was refused: those subscriptions have ended.
    fn let_go(&mut self) {
        let Self {
            secrets,
            refused,
            look_again,
            ..
        } = self;
        secrets.retain(|secret| {
            let State::Denied(reason) = &*secret.state.borrow() else {
                return true;
            };
            // What is said of the account explains more than what is said of an entry.
            if refused.is_none() || !matches!(secret.key, SecretKey::Entry { .. }) {
                *refused = Some(Arc::clone(reason));
            }
            look_again.get_or_insert_with(after_a_refusal);
            false
        });
    }

    /// Its pod is known to be gone.
    fn is_gone(&self) -> bool {
        let pod = self.pod.as_ref();
        pod.is_some_and(|pod| matches!(&*pod.borrow(), PodState::Gone))
    }

    /// The peer.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// A pod's account comes without entries; a process of the host has nothing else.
    fn waits_for_entries(&self) -> bool {
        self.relayed.is_none()
            && self
                .peer
                .pod
                .as_ref()
                .is_none_or(|pod| matches!(pod.uid, PodUid::Static(_)))
    }

    /// Chooses what to ask for, and keeps the subscriptions that stay.
    async fn choose(&mut self) {
        let state = self.pod.as_mut().map(|pod| pod.borrow_and_update().clone());
        if matches!(state, Some(PodState::Gone)) {
            self.secrets.clear();
            (self.put_off, self.look_again, self.awaits_container) = (None, None, false);
            self.stale = false;
            return;
        }
        let entries = self.from.entries.borrow().clone();
        self.chose_by_entries = entries.is_some();
        let wanted = self.wanted(entries.as_deref(), state.as_ref()).await;
        let mut old: Vec<Secret> = std::mem::take(&mut self.secrets);
        (self.put_off, self.refused, self.look_again) = (None, None, None);
        let mut seen = HashSet::new();
        for wanted in wanted {
            if !seen.insert(wanted.key.clone()) {
                continue;
            }
            let kept = |secret: &Secret| {
                secret.key == wanted.key && !matches!(&*secret.state.borrow(), State::Denied(_))
            };
            if let Some(at) = old.iter().position(kept) {
                self.secrets.push(old.swap_remove(at));
                continue;
            }
            let key = wanted.key.clone();
            match self.from.manager.subscribe(wanted) {
                Ok(state) => self.secrets.push(Secret { key, state }),
                Err(NotNow::Refused(reason)) => {
                    self.refused.get_or_insert(reason);
                }
                Err(not_now) => {
                    self.put_off
                        .get_or_insert_with(|| not_now.to_string().into());
                }
            }
        }
        if self.put_off.is_some() {
            self.look_again = Some(Instant::now() + LOOK_AGAIN);
        } else if self.refused.is_some() {
            self.look_again = Some(after_a_refusal());
        }
        self.stale = false;
    }

    async fn wanted(&mut self, entries: Option<&Entries>, state: Option<&PodState>) -> Vec<Wanted> {
        self.awaits_container = false;
        let pod = self.peer.pod.as_ref().map(|pod| &pod.uid);
        let ttl_seconds = self.from.ttl_seconds;
        let mut wanted = Vec::new();
        let account = |key, token| Wanted {
            key,
            principal: Arc::clone(self.peer.principal()),
            revision: 0,
            spiffe_id: None,
            ttl_seconds,
            token,
        };
        match (&self.relayed, pod) {
            (Some(token), pod) => {
                let key = SecretKey::Relayed {
                    token: token.digest(),
                    pod_uid: pod.map(|uid| uid.as_str().to_owned()),
                };
                wanted.push(account(key, Some(token.clone())));
            }
            (None, Some(PodUid::Api(uid))) => {
                wanted.push(account(SecretKey::Pod { uid: uid.clone() }, None));
            }
            // A static pod has no account: an entry or nothing.
            (None, Some(PodUid::Static(_)) | None) => {}
        }
        // A token proves the account of a pod that the agent did not see: no entries.
        if self.relayed.is_some() && pod.is_none() {
            return wanted;
        }
        let Some(entries) = entries else {
            return wanted;
        };
        let in_pod = pod.is_some();
        let facts = self.peer.unix_facts(entries.need_digest(in_pod)).await;
        let choice = choice::choose(entries, self.place(state), &facts);
        let awaits_container = choice.awaits_container;
        wanted.extend(choice.entries.into_iter().map(|entry| Wanted {
            key: SecretKey::Entry {
                entry_id: entry.entry_id.clone(),
                pod_uid: pod.map(|uid| uid.as_str().to_owned()),
            },
            principal: Arc::clone(self.peer.principal()),
            revision: entries.revision,
            spiffe_id: Some(entry.spiffe_id.clone()),
            // The entry's own lifetime is the CA's to apply.
            ttl_seconds,
            token: None,
        }));
        self.awaits_container = awaits_container;
        wanted
    }

    /// Where the peer runs, by what is known of its pod.
    fn place<'s>(&'s self, state: Option<&'s PodState>) -> Place<'s> {
        match (&self.peer.pod, state.and_then(PodState::live)) {
            (None, _) => Place::Host,
            (Some(cgroup), Some(pod)) => Place::Known {
                pod,
                container: cgroup.container.as_deref(),
            },
            (Some(_), None) => Place::Pod {
                may_be_known: state.is_some(),
            },
        }
    }
}

/// Resolves when one of them changed.
fn any_changed(secrets: &mut [Secret]) -> impl Future<Output = ()> + '_ {
    let changes: Vec<_> = secrets
        .iter_mut()
        .map(|secret| Box::pin(change_of(&mut secret.state)))
        .collect();
    async {
        if changes.is_empty() {
            std::future::pending::<()>().await;
        }
        select_all(changes).await;
    }
}

async fn change_of(state: &mut Subscription) {
    or_never(state.changed().await).await;
}

fn after_a_refusal() -> Instant {
    Instant::now() + REFUSED_LOOK_AGAIN.mul_f64(0.9 + 0.2 * rand::rng().random::<f64>())
}

/// The other side ended: nothing changes any more.
async fn or_never(changed: Result<(), watch::error::RecvError>) {
    if changed.is_err() {
        std::future::pending::<()>().await;
    }
}
