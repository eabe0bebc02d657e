//! What operators see and set: metrics, deadlines, and a configuration that
//! only a running server can judge.

mod deadline;
mod metrics;
mod shared_keys;
