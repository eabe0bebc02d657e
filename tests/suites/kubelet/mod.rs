//! Citadel on a real node: the manifests as a user applies them, and pods as they are.

mod attacks;
mod deployed;
mod manifests;
mod pods;
mod source;
mod workloads;
