//! What the CA's suites share: a CA on an API server with workloads and agents
//! on it, and what each refusal has to look like.

pub(crate) mod federated;
mod istio;
mod load;
mod metrics;
mod refused;
mod scene;
mod svid;

pub(crate) use istio::{certificate_request, roots_of, with_metadata};
pub(crate) use load::{LogOf, names_in, start_load};
pub(crate) use metrics::{metric, series};
pub(crate) use refused::shows_refusal;
pub(crate) use scene::{AgentClient, Scene, Workload};
pub(crate) use svid::{check_leaf, verify_with_openssl};
