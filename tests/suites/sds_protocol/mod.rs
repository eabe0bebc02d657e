//! SDS as clients other than Envoy may speak it, word by word. That nothing came is
//! never told by waiting: a later request whose answer can't be mistaken comes next.

mod delta;
mod files;
mod names;
mod readiness;
pub(crate) mod script;
pub(crate) mod status;
mod versions;
