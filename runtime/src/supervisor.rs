//! What systemd is told (`sd_notify(3)`); nothing, where there is none.

use sd_notify::NotifyState;

/// The process serves.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The process is about to end.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Another process serves in this one's place: systemd follows it only if the one that it
/// started says so.
pub fn main_process(pid: u32) {
    notify(&[NotifyState::MainPid(pid)]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the supervisor could not be told");
    }
}
