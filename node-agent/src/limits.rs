//! Whether the system lets the agent have what its configuration promises. Checked at the
//! start: later it would show as refused connections on a bad day.

use citadel_runtime::limits;

use crate::config::Settings;

/// Descriptors beside those of connections: sockets, the CA, the API server, files.
const OTHER_DESCRIPTORS: u64 = 128;

/// Descriptors of a connection: its own, and one that holds its process.
const DESCRIPTORS: u64 = 2;

/// Memory of an agent that serves nobody, in bytes.
const BASE: u64 = 24 << 20;

/// Memory of an identity, of a connection with a stream, in bytes: more than
/// `citadel bench agent` measures.
const IDENTITY: u64 = 4 << 10;
const CONNECTION: u64 = 24 << 10;

/// Warns, with what to do about it.
pub(crate) fn check(settings: &Settings) {
    let connections = settings.limits.connections;
    if let Some(warning) = limits::open_files().map_or(None, |limit| files(connections, limit)) {
        tracing::warn!("{warning}");
    }
    let identities = settings.manager.identities;
    let limit = limits::memory();
    if let Some(warning) = limit.and_then(|limit| memory(connections, identities, limit)) {
        tracing::warn!("{warning}");
    }
}

fn files(connections: usize, limit: u64) -> Option<String> {
    let needed = (connections as u64)
        .saturating_mul(DESCRIPTORS)
        .saturating_add(OTHER_DESCRIPTORS);
    (limit < needed).then(|| {
        let fits = (limit.saturating_sub(OTHER_DESCRIPTORS) / DESCRIPTORS).max(1);
        format!(
            "limits.connections is {connections}, which takes up to {needed} open files, and {limit} \
             are the most: raise that (LimitNOFILE= in the systemd unit, `ulimit -Hn` elsewhere) or \
             lower limits.connections to {fits}"
        )
    })
}

fn memory(connections: usize, identities: usize, limit: u64) -> Option<String> {
    let of = |count: usize, each: u64| (count as u64).saturating_mul(each);
    let needed = BASE
        .saturating_add(of(connections, CONNECTION))
        .saturating_add(of(identities, IDENTITY));
    (limit < needed).then(|| {
        format!(
            "limits.connections is {connections} and limits.identities {identities}, which takes up \
             to {} MiB of memory, and this cgroup may have {} MiB: raise that (MemoryMax= in the \
             systemd unit, resources.limits.memory of the container) or lower the two",
            needed >> 20,
            limit >> 20
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn too_few_open_files_are_told_of_with_the_fix() {
        let warning = files(4096, 1024).unwrap();
        for part in [
            "8320 open files",
            "1024",
            "LimitNOFILE=",
            "limits.connections to 448",
        ] {
            assert!(warning.contains(part), "{part}: {warning}");
        }
        assert_eq!(files(448, 1024), None);
        assert!(files(usize::MAX, 1 << 30).is_some());
    }

    #[test]
    fn too_little_memory_is_told_of_with_the_fix() {
        let warning = memory(4096, 16_384, 64 << 20).unwrap();
        for part in ["184 MiB", "64 MiB", "MemoryMax=", "resources.limits.memory"] {
            assert!(warning.contains(part), "{part}: {warning}");
        }
        // What the shipped DaemonSet has.
        assert_eq!(memory(4096, 16_384, 256 << 20), None);
        assert!(memory(usize::MAX, usize::MAX, u64::MAX - 1).is_some());
    }
}
