//! The CA's own policy. Identity comes from the authenticated caller and from here; the
//! CSR has no say.

use std::{collections::HashSet, sync::Arc, time::Duration};

use citadel_identity::{
    SpiffeId, TrustDomain,
    serial::Serial,
    template::{self, IdTemplate},
};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::{Denied, Grant, Registered, Use};
use crate::{
    caller::{
        Authority, Caller, EXTERNAL_CLUSTER, Evidence, Method, ObjectRef, Origin, Role, Subject,
    },
    clusters::Clusters,
};

/// What a caller asks for.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Its own identity.
    Own,
    /// The identity of its node's agent.
    AgentIdentity,
    /// An agent asks for the account-level identity of a pod on its node.
    Pod {
        /// UID of the pod.
        uid: String,
        /// Where set, must be the pod's own namespace.
        namespace: Option<String>,
        /// Where set, must be the pod's own account.
        account: Option<String>,
    },
    /// An agent asks for an entry of its node.
    Entry {
        /// Name of the entry.
        entry_id: String,
        /// The pod that asks, for entries with Kubernetes selectors.
        pod_uid: Option<String>,
    },
    /// An agent relays what a workload's own token proved.
    Relayed {
        /// Whom that token authenticated.
        workload: Box<Caller>,
        /// The pod that the agent attested on the workload's connection, if any.
        pod_uid: Option<String>,
    },
    /// A trusted account asks for the identity of a workload on its node.
    Impersonated(String),
    /// The CA asks for its own serving certificate.
    CaServer,
}

/// The wanted lifetime and what the certificate replaces.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// `None` is the default of the protocol.
    pub ttl: Option<Duration>,
    /// The protocol's default, where it differs from the configuration's.
    pub default_ttl: Option<Duration>,
    /// The serial that it replaces.
    pub previous_serial: Option<Serial>,
}

/// What the configuration says of identities.
#[derive(Clone, Debug)]
pub struct PolicyOptions {
    /// The one trust domain.
    pub trust_domain: TrustDomain,
    /// How an account becomes a SPIFFE ID.
    pub template: IdTemplate,
    /// Accounts (`namespace/account`) whose pods are node agents.
    pub agent_accounts: HashSet<String>,
    /// Accounts (`namespace/account`) that may ask for others on their node.
    pub impersonating_accounts: HashSet<String>,
    /// Accounts (`namespace/account`) whose tokens need no pod.
    pub allow_unbound: HashSet<String>,
    /// Lifetime where a request names none.
    pub default_ttl: Duration,
    /// Shorter requests get this.
    pub min_ttl: Duration,
    /// Longer requests get this.
    pub max_ttl: Duration,
    /// Lifetime of the CA's serving certificate.
    pub serving_ttl: Duration,
    /// Lifetime of the SVIDs of agents outside Kubernetes.
    pub external_ttl: Duration,
    /// DNS names of the CA itself.
    pub ca_dns_names: Vec<String>,
    /// A chain of renewals without a pod ends after this time.
    pub max_renewal_age: Duration,
}

/// Decides. Holds the configuration and what the watches show.
pub struct Policy {
    pub(super) options: PolicyOptions,
    registered: watch::Sender<Arc<Registered>>,
    pub(super) clusters: Arc<Clusters>,
}

/// What a rule yields; the rest of a [`Grant`] is the same for all.
pub(super) struct Allowed {
    pub(super) spiffe_id: SpiffeId,
    pub(super) dns_names: Vec<String>,
    pub(super) usage: Use,
    pub(super) origin: Origin,
    /// Default and upper limit of the entry, if one decides.
    pub(super) entry_ttl: Option<Duration>,
    pub(super) hint: String,
}

impl Policy {
    /// A policy over these clusters.
    pub fn new(options: PolicyOptions, registered: Registered, clusters: Arc<Clusters>) -> Self {
        Self {
            options,
            registered: watch::Sender::new(Arc::new(registered)),
            clusters,
        }
    }

    /// The registration entries in force.
    pub fn registered(&self) -> Arc<Registered> {
        self.registered.borrow().clone()
    }

    /// Puts other registration entries in force, for all that is decided from now on.
    pub fn register(&self, registered: Registered) {
        self.registered.send_replace(Arc::new(registered));
    }

    /// Tells when other registration entries are in force.
    pub fn follow(&self) -> watch::Receiver<Arc<Registered>> {
        self.registered.subscribe()
    }

    /// What the configuration says.
    pub fn options(&self) -> &PolicyOptions {
        &self.options
    }

    /// Whether tokens of this account need no pod.
    pub fn allows_unbound(&self, namespace: &str, account: &str) -> bool {
        self.options
            .allow_unbound
            .contains(&account_key(namespace, account))
    }

    /// Whether pods of this account may be node agents.
    pub fn is_agent_account(&self, namespace: &str, account: &str) -> bool {
        self.options
            .agent_accounts
            .contains(&account_key(namespace, account))
    }

    /// The caller that the server itself is, for its serving certificate.
    pub fn server_caller(address: std::net::SocketAddr, now: OffsetDateTime) -> Caller {
        Caller {
            role: Role::CaServer,
            subject: None,
            evidence: Evidence {
                method: Method::Itself,
                token_id: None,
                certificate: None,
            },
            origin: Origin {
                method: Method::Itself,
                subject: None,
                node: None,
                entry_id: None,
                first_authenticated: now,
                authority: Authority::Itself,
            },
            address,
        }
    }

    /// Decides on one ask of one caller, on what the watches show; [`Self::look_up`] comes
    /// before.
    ///
    /// # Errors
    /// [`Denied`], with the reason for the log.
    pub fn authorize(
        &self,
        caller: &Caller,
        ask: &Ask,
        wish: Wish,
        now: OffsetDateTime,
    ) -> Result<Grant, Denied> {
        // One look: what the log names is what decided.
        let registered = self.registered();
        let allowed = match (&caller.role, ask) {
            (Role::Workload, Ask::Own) => self.own(caller, &registered, now)?,
            (Role::Workload | Role::Agent { .. }, Ask::AgentIdentity) => {
                self.agent_identity(caller)?
            }
            (
                Role::Agent { cluster, node },
                Ask::Pod {
                    uid,
                    namespace,
                    account,
                },
            ) => self.pod_of_node(
                cluster,
                node,
                uid,
                namespace.as_deref(),
                account.as_deref(),
                now,
            )?,
            (Role::Agent { cluster, node }, Ask::Entry { entry_id, pod_uid }) => {
                let mut entries = registered.of_node(cluster, &node.name).into_iter();
                let entry = entries.find(|entry| entry.entry_id == *entry_id);
                let entry = entry.ok_or_else(|| {
                    Denied::NotEntitled(format!(
                        "no entry {entry_id} for node {cluster}/{}",
                        node.name
                    ))
                })?;
                self.entry_of_node(caller, cluster, node, entry, pod_uid.as_deref(), now)?
            }
            (Role::Agent { cluster, node }, Ask::Relayed { workload, pod_uid }) => {
                self.relayed(cluster, node, workload, pod_uid.as_deref())?
            }
            (Role::Workload, Ask::Impersonated(wanted)) => {
                self.impersonated(caller, wanted, now)?
            }
            (Role::CaServer, Ask::CaServer) => self.ca_server(caller),
            (Role::Agent { .. }, Ask::Own | Ask::Impersonated(_)) => {
                return Err(Denied::WrongCaller(
                    "an agent's SVID is for the agent RPCs alone",
                ));
            }
            (Role::Workload, Ask::Pod { .. } | Ask::Entry { .. } | Ask::Relayed { .. }) => {
                return Err(Denied::WrongCaller(
                    "only an agent's SVID may ask for its node",
                ));
            }
            (Role::CaServer, _) | (_, Ask::CaServer) => {
                return Err(Denied::WrongCaller(
                    "the CA's own identity is its own alone",
                ));
            }
        };
        self.check_reserved(&allowed)?;
        let lifetime = self.lifetime(&allowed, &wish);
        Ok(Grant {
            spiffe_id: allowed.spiffe_id,
            dns_names: allowed.dns_names,
            lifetime,
            usage: allowed.usage,
            caller: caller.clone(),
            origin: allowed.origin,
            policy_revision: registered.revision,
            previous_serial: wish
                .previous_serial
                .or_else(|| {
                    caller
                        .evidence
                        .certificate
                        .as_ref()
                        .map(|(serial, _)| serial.clone())
                })
                .filter(|_| allowed.usage != Use::CaServer),
            hint: allowed.hint,
        })
    }

    /// The last gate: whatever a rule yielded, `/citadel/` belongs to agents and to the CA.
    fn check_reserved(&self, allowed: &Allowed) -> Result<(), Denied> {
        let id = &allowed.spiffe_id;
        let is_own_kind = match allowed.usage {
            Use::Workload => !template::is_reserved(id),
            Use::Agent => template::parse_agent_id(id).is_some(),
            Use::CaServer => *id == template::ca_id(&self.options.trust_domain),
        };
        if *id.trust_domain() != self.options.trust_domain {
            return Err(Denied::NotEntitled(format!(
                "{id} is not of this trust domain"
            )));
        }
        if !is_own_kind {
            return Err(Denied::NotEntitled(format!(
                "{id} lies in the reserved path /citadel/"
            )));
        }
        Ok(())
    }

    fn lifetime(&self, allowed: &Allowed, wish: &Wish) -> Duration {
        let options = &self.options;
        if allowed.usage == Use::CaServer {
            return options.serving_ttl;
        }
        let most = allowed
            .entry_ttl
            .unwrap_or(options.max_ttl)
            .min(options.max_ttl);
        let default = allowed
            .entry_ttl
            .or(wish.default_ttl)
            .unwrap_or(options.default_ttl);
        wish.ttl.unwrap_or(default).min(most).max(options.min_ttl)
    }

    /// The account-level identity of a subject.
    pub(super) fn account_id(&self, subject: &Subject) -> Result<SpiffeId, Denied> {
        if !subject.has_account() {
            return Err(Denied::NotEntitled("a static pod has no account".into()));
        }
        self.id_of_account(&subject.cluster, &subject.namespace, &subject.account.name)
    }

    /// The identity of an account by its names.
    pub(super) fn id_of_account(
        &self,
        cluster: &str,
        namespace: &str,
        account: &str,
    ) -> Result<SpiffeId, Denied> {
        self.options
            .template
            .render(&self.options.trust_domain, cluster, namespace, account)
            .map_err(|error| Denied::NotEntitled(error.to_string()))
    }

    fn own(
        &self,
        caller: &Caller,
        registered: &Registered,
        now: OffsetDateTime,
    ) -> Result<Allowed, Denied> {
        let origin = &caller.origin;
        let renews = caller.evidence.method == Method::ClientCertificate;
        if renews && origin.authority == Authority::Impersonation {
            return Err(Denied::RenewalEnded(
                "an impersonated SVID renews only through the account that asked for it".into(),
            ));
        }
        let subject = caller.subject.as_ref().ok_or_else(|| {
            Denied::RenewalEnded("the SVID of a unix workload renews only through its agent".into())
        })?;
        if renews
            && subject.pod.is_none()
            && now - origin.first_authenticated > self.options.max_renewal_age
        {
            return Err(Denied::RenewalEnded(format!(
                "first authenticated at {}, which is past max_renewal_age",
                origin.first_authenticated
            )));
        }
        if subject.pod.is_none() && !self.allows_unbound(&subject.namespace, &subject.account.name)
        {
            return Err(Denied::NotEntitled(
                "no pod, and the account is not in allow_unbound".into(),
            ));
        }
        if let Some(entry_id) = &origin.entry_id {
            return self.own_entry(registered, subject, origin, entry_id);
        }
        self.refuse_mirror_pod(subject)?;
        Ok(Allowed {
            spiffe_id: self.account_id(subject)?,
            dns_names: Vec::new(),
            usage: Use::Workload,
            origin: origin.clone(),
            entry_ttl: None,
            hint: String::new(),
        })
    }

    fn agent_identity(&self, caller: &Caller) -> Result<Allowed, Denied> {
        let (cluster, node) = match &caller.role {
            Role::Agent { cluster, node } => (cluster.clone(), node.clone()),
            Role::Workload => {
                if caller.evidence.method == Method::ClientCertificate {
                    return Err(Denied::WrongCaller(
                        "a workload's SVID does not make an agent",
                    ));
                }
                self.agent_node(caller)?
            }
            Role::CaServer => return Err(Denied::WrongCaller("the CA is no agent")),
        };
        let spiffe_id = template::agent_id(&self.options.trust_domain, &cluster, &node.name)
            .map_err(|error| Denied::NotEntitled(error.to_string()))?;
        Ok(Allowed {
            spiffe_id,
            dns_names: Vec::new(),
            usage: Use::Agent,
            origin: caller.origin.clone(),
            entry_ttl: (cluster == EXTERNAL_CLUSTER).then_some(self.options.external_ttl),
            hint: String::new(),
        })
    }

    /// Whether a token's subject is the agent of a node: a listed account, a pod-bound token
    /// with a node claim, and the watch shows that pod on that very Node object.
    fn agent_node(&self, caller: &Caller) -> Result<(String, ObjectRef), Denied> {
        let subject = caller
            .subject
            .as_ref()
            .ok_or(Denied::WrongCaller("an agent is a pod of a listed account"))?;
        if !self.is_agent_account(&subject.namespace, &subject.account.name) {
            return Err(Denied::NotEntitled(format!(
                "account {}/{} is not listed in agents.accounts",
                subject.namespace, subject.account.name
            )));
        }
        let pod = subject.pod.as_ref().ok_or_else(|| {
            Denied::NotEntitled("an agent's token must be bound to its pod".into())
        })?;
        let node = subject
            .claimed_node()
            .ok_or_else(|| Denied::NotEntitled("an agent's token must name its node".into()))?;
        self.check_pod_on_node(&subject.cluster, &pod.uid, node)?;
        Ok((subject.cluster.clone(), node.clone()))
    }

    fn ca_server(&self, caller: &Caller) -> Allowed {
        Allowed {
            spiffe_id: template::ca_id(&self.options.trust_domain),
            dns_names: self.options.ca_dns_names.clone(),
            usage: Use::CaServer,
            origin: caller.origin.clone(),
            entry_ttl: None,
            hint: String::new(),
        }
    }
}

pub(crate) fn account_key(namespace: &str, account: &str) -> String {
    format!("{namespace}/{account}")
}
