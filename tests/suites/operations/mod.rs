//! What operators see and set: metrics and deadlines.

mod deadline;
mod metrics;
