//! Entries of the log that are no certificates.

use citadel_proto::log::{
    AdministratorAct, Entry, PolicyChanged, ServerStarted, ServerStopped, entry::Kind,
};
use nix::unistd::{gethostname, getuid};
use prost::Message as _;
use time::OffsetDateTime;

use crate::{caller::unix_ms, store::NewEntry};

/// Version of the entries that this program writes.
const ENTRY_VERSION: u32 = 1;

/// Bytes of an act's details at most.
const MAX_DETAILS: usize = 4096;

/// Something that an administrator did on this host.
pub fn administrator_act(act: &str, details: &str) -> NewEntry {
    act_of(act, &format!("local uid {}", getuid()), details)
}

/// Something that an administrator did over the network or the local socket.
pub fn act_of(act: &str, by: &str, details: &str) -> NewEntry {
    entry(Kind::AdministratorAct(AdministratorAct {
        act: act.to_owned(),
        by: by.to_owned(),
        details: details.chars().take(MAX_DETAILS).collect(),
    }))
}

/// This process serves from now on, with the configuration of this digest (hex).
pub fn server_started(config_sha256: &str) -> NewEntry {
    entry(Kind::ServerStarted(ServerStarted {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config_sha256: hex::decode(config_sha256).unwrap_or_default(),
        replica: replica(),
    }))
}

/// This process has served its last request.
pub fn server_stopped() -> NewEntry {
    entry(Kind::ServerStopped(ServerStopped { replica: replica() }))
}

/// Policy or registration entries are others from here on. 0 before the first.
pub(crate) fn policy_changed(old_revision: u64, new_revision: u64) -> NewEntry {
    entry(Kind::PolicyChanged(PolicyChanged {
        old_revision,
        new_revision,
    }))
}

fn replica() -> String {
    let host = gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default();
    format!("{host:.64} pid {}", std::process::id())
}

pub(super) fn entry(kind: Kind) -> NewEntry {
    new_entry(OffsetDateTime::now_utc(), kind, None)
}

/// An entry of this program's version, made at this time.
pub(crate) fn new_entry(now: OffsetDateTime, kind: Kind, serial: Option<Vec<u8>>) -> NewEntry {
    let entry = Entry {
        version: ENTRY_VERSION,
        time_ms: unix_ms(now),
        kind: Some(kind),
    };
    NewEntry {
        bytes: entry.encode_to_vec(),
        serial,
    }
}
