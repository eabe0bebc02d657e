//! The harness's own tokio runtime.
//!
//! Each `#[tokio::test]` has a runtime of its own, and a connection dies with
//! the runtime that opened it. What several tests share (the API server's
//! client) lives here instead.

use std::future::Future;
use std::sync::LazyLock;

use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("harness")
        .enable_all()
        .build()
        .expect("the harness's runtime")
});

/// Runs `task` there, and waits for it here.
pub(crate) async fn on_harness<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> T {
    RUNTIME.spawn(task).await.expect("a harness task panicked")
}
