//! What becomes of a process once another one has taken over.

use std::{os::unix::net::UnixStream, sync::Arc, time::Duration};

use citadel_runtime::{
    Shutdown,
    admin::{AdminServer, Readiness},
};
use prometheus_client::registry::Registry;

use super::{Then, Tie};
use crate::config::Settings;

/// How often it is seen whether somebody serves, once the process that took over has ended.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What [`crate::Bound::serve`] ended with.
#[derive(Debug)]
pub enum Afterwards {
    /// The process is to end.
    End,
    /// Another one serves now; see [`wait`].
    HandedOver(Successor),
}

/// The process that has taken over.
#[derive(Debug)]
pub struct Successor(pub(crate) Tie);

/// Waits, where the configuration says so, until nobody serves any more. `false` if the
/// process is to end. Health is answered meanwhile: a supervisor that asks for it would end
/// the process, and with it start another one.
pub async fn wait(successor: Successor, settings: &Settings, shutdown: &Shutdown) -> bool {
    let then = settings.handover.as_ref().map(|handover| handover.then);
    if then != Some(Then::Wait) {
        return false;
    }
    tracing::info!("another agent serves; this one waits for its end");
    let readiness = Readiness::new();
    readiness
        .part("handover")
        .set_not_ready("another agent has taken over");
    let registry = Arc::new(Registry::default());
    // In one network namespace the port is the other one's now.
    if let Ok(admin) = AdminServer::bind(settings.admin_listen, readiness, registry).await {
        shutdown.spawn(admin.serve(shutdown.signal()));
    }
    let signal = shutdown.signal();
    let again = tokio::select! {
        () = signal.wait() => false,
        () = nobody_serves(&successor, settings) => true,
    };
    shutdown.drain(Duration::from_secs(2)).await;
    if again {
        tracing::warn!("the agent that had taken over is gone: this one serves again");
    }
    again
}

async fn nobody_serves(successor: &Successor, settings: &Settings) {
    successor.0.broken().await;
    // It may have handed over in its turn.
    while UnixStream::connect(&settings.socket).is_ok() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
