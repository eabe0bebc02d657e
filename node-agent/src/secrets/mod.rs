//! The certificates of this node's workloads: one place that holds, renews and hands
//! them out. SDS, the Workload API and files are views of it.

mod handed;
#[cfg(test)]
mod herd_tests;
#[cfg(test)]
mod hostile_answers;
mod key;
mod manager;
mod quota;
mod refusals;
mod renewal;
mod svid;
mod table;
pub mod timing;

pub(crate) use handed::Restoration;
pub use key::{SecretKey, Wanted};
pub use manager::{Held, ManagerOptions, NotNow, SecretManager, State, Still, Subscription};
pub use svid::{Svid, SvidError};
pub(crate) use table::Prepared;
