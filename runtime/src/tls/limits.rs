//! How many connections at once, in all and from one host.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::metrics::{ConnectionMetrics, Refused};

/// What bounds the connections of one listener. Handshakes in progress count.
///
/// Of `total` and of `per_address` a quarter is kept for connections that present a client
/// certificate: who has none can't keep out those who have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections at once; one more is closed at once.
    pub total: usize,
    /// Connections at once from one host, as [`host_of`] tells them apart.
    pub per_address: usize,
    /// How long a TLS handshake may take, and after it the HTTP/2 connection preface.
    pub handshake: Duration,
    /// How long a connection without a client certificate may stay open after its last
    /// request ([`super::PeerInfo::request_began`]).
    pub idle: Duration,
}

/// Whose connection it is: an IPv4 address, or the /64 of an IPv6 address, which one host can
/// have whole.
pub fn host_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let prefix = v6.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(prefix))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// A connection's place; dropping it frees the place.
#[derive(Debug)]
pub(super) struct Slot {
    places: Arc<Places>,
    host: IpAddr,
    /// The handshake is over, and the client presented no certificate.
    unproven: bool,
}

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Places {
    limits: ConnectionLimits,
    taken: Mutex<Taken>,
    metrics: ConnectionMetrics,
}

#[derive(Debug, Default)]
struct Taken {
    all: Count,
    /// Only hosts that have a connection: an attacker's many addresses leave nothing behind.
    by_host: HashMap<IpAddr, Count>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    open: usize,
    unproven: usize,
}

impl Places {
    pub(super) fn new(limits: &ConnectionLimits, metrics: ConnectionMetrics) -> Arc<Self> {
        Arc::new(Self {
            limits: *limits,
            taken: Mutex::default(),
            metrics,
        })
    }

    /// Takes a place for a connection from `address`, or says which limit is reached.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Slot, Refused> {
        let host = host_of(address);
        let mut taken = self.lock();
        if taken.all.open >= self.limits.total {
            return Err(Refused::Total);
        }
        let of_host = taken.by_host.get(&host).copied().unwrap_or_default();
        if of_host.open >= self.limits.per_address {
            return Err(Refused::PerAddress);
        }
        taken.by_host.entry(host).or_default().open += 1;
        taken.all.open += 1;
        self.metrics.opened();
        Ok(Slot {
            places: self.clone(),
            host,
            unproven: false,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// The handshake is over and the client presented no certificate: three quarters of the
    /// places are for such.
    pub(super) fn without_certificate(mut self) -> Result<Self, Refused> {
        let but_a_quarter = |limit: usize| limit - limit / 4;
        let limits = self.places.limits;
        let mut taken = self.places.lock();
        let of_host = taken.by_host.get(&self.host).copied().unwrap_or_default();
        if taken.all.unproven >= but_a_quarter(limits.total)
            || of_host.unproven >= but_a_quarter(limits.per_address)
        {
            return Err(Refused::WithoutCertificate);
        }
        taken.by_host.entry(self.host).or_default().unproven += 1;
        taken.all.unproven += 1;
        drop(taken);
        self.unproven = true;
        Ok(self)
    }

    pub(super) fn limits(&self) -> &ConnectionLimits {
        &self.places.limits
    }

    pub(super) fn metrics(&self) -> &ConnectionMetrics {
        &self.places.metrics
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        let unproven = usize::from(self.unproven);
        let free = |count: &mut Count| {
            count.open = count.open.saturating_sub(1);
            count.unproven = count.unproven.saturating_sub(unproven);
        };
        free(&mut taken.all);
        if let Some(of_host) = taken.by_host.get_mut(&self.host) {
            free(of_host);
            if of_host.open == 0 {
                taken.by_host.remove(&self.host);
            }
        }
        drop(taken);
        self.places.metrics.closed();
    }
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            total: 4096,
            per_address: 256,
            handshake: Duration::from_secs(10),
            idle: Duration::from_mins(5),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::Ipv4Addr;

    use super::*;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn places(total: usize, per_address: usize) -> Arc<Places> {
        let limits = ConnectionLimits {
            total,
            per_address,
            ..Default::default()
        };
        Places::new(&limits, ConnectionMetrics::default())
    }

    #[test]
    fn both_limits_hold_and_a_dropped_connection_frees_its_place() {
        let places = places(3, 2);
        let first = places.take(address(1)).unwrap();
        let _second = places.take(address(1)).unwrap();
        assert_eq!(places.take(address(1)).unwrap_err(), Refused::PerAddress);
        let _third = places.take(address(2)).unwrap();
        assert_eq!(places.take(address(3)).unwrap_err(), Refused::Total);
        drop(first);
        let _fourth = places.take(address(1)).unwrap();
        assert_eq!(places.take(address(2)).unwrap_err(), Refused::Total);
    }

    #[test]
    fn a_host_counts_once_even_with_a_whole_ipv6_prefix() {
        let places = places(100, 2);
        let take = |address: &str| places.take(address.parse().unwrap());
        let _two = [take("2001:db8::1").unwrap(), take("2001:db8::2").unwrap()];
        assert_eq!(take("2001:db8::ffff").unwrap_err(), Refused::PerAddress);
        let _neighbour = take("2001:db8:0:1::1").unwrap();
        let _two = [
            take("::ffff:192.0.2.1").unwrap(),
            take("192.0.2.1").unwrap(),
        ];
        assert_eq!(take("192.0.2.1").unwrap_err(), Refused::PerAddress);
    }

    #[test]
    fn a_quarter_of_the_places_is_for_those_with_a_certificate() {
        let places = places(8, 4);
        let without = |last| places.take(address(last)).unwrap().without_certificate();
        let mut held: Vec<_> = (0..3).map(|_| without(1).unwrap()).collect();
        assert_eq!(without(1).unwrap_err(), Refused::WithoutCertificate);
        // The fourth place of the host is for a certificate.
        let _proven = places.take(address(1)).unwrap();
        held.extend((0..3).map(|_| without(2).unwrap()));
        assert_eq!(without(3).unwrap_err(), Refused::WithoutCertificate);
        let _last = places.take(address(3)).unwrap();
        assert_eq!(places.take(address(3)).unwrap_err(), Refused::Total);
        held.clear();
        assert_eq!(
            places.lock().all,
            Count {
                open: 2,
                unproven: 0
            }
        );
        let _again = without(1).unwrap();
    }

    #[test]
    fn addresses_without_connections_are_forgotten() {
        let places = Places::new(&ConnectionLimits::default(), ConnectionMetrics::default());
        for last in 0..200 {
            let slot = places.take(address(last)).unwrap();
            drop(slot.without_certificate().unwrap());
        }
        let taken = places.lock();
        assert_eq!(taken.all, Count::default());
        assert!(taken.by_host.is_empty());
    }
}
