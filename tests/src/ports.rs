//! Ports for the servers of a suite.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range that the kernel takes outgoing ports from.
static NEXT: AtomicU16 = AtomicU16::new(10_000);

/// A loopback address that nothing else in this suite was given. The suite has
/// a network namespace of its own, so that counting is enough, and a server
/// can be started again on the port it had.
pub fn address() -> SocketAddr {
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(port < 32_000, "a suite used up all its ports");
    (Ipv4Addr::LOCALHOST, port).into()
}
