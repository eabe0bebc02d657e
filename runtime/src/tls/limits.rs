//! How many connections at once, in all and from one address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::metrics::{ConnectionMetrics, Refused};

/// What bounds the connections of one listener. Handshakes in progress count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections at once; one more is closed at once.
    pub total: usize,
    /// Connections at once from one IP address.
    pub per_address: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
}

/// A connection's place; dropping it frees the place.
#[derive(Debug)]
pub(super) struct Slot {
    places: Arc<Places>,
    address: IpAddr,
}

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Places {
    total: usize,
    per_address: usize,
    taken: Mutex<Taken>,
    metrics: ConnectionMetrics,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Only addresses that have a connection: an attacker's many addresses leave nothing behind.
    by_address: HashMap<IpAddr, usize>,
}

impl Places {
    pub(super) fn new(limits: &ConnectionLimits, metrics: ConnectionMetrics) -> Arc<Self> {
        Arc::new(Self {
            total: limits.total,
            per_address: limits.per_address,
            taken: Mutex::default(),
            metrics,
        })
    }

    /// Takes a place for a connection from `address`, or says which limit is reached.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Slot, Refused> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.total {
            return Err(Refused::Total);
        }
        let of_address = taken.by_address.get(&address).copied().unwrap_or(0);
        if of_address >= self.per_address {
            return Err(Refused::PerAddress);
        }
        taken.by_address.insert(address, of_address + 1);
        taken.all += 1;
        self.metrics.opened();
        Ok(Slot {
            places: self.clone(),
            address,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self
            .places
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        match taken.by_address.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                taken.by_address.remove(&self.address);
            }
        }
        self.places.metrics.closed();
    }
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            total: 4096,
            per_address: 256,
            handshake: Duration::from_secs(10),
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

    #[test]
    fn both_limits_hold_and_a_dropped_connection_frees_its_place() {
        let limits = ConnectionLimits {
            total: 3,
            per_address: 2,
            ..Default::default()
        };
        let places = Places::new(&limits, ConnectionMetrics::default());
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
    fn addresses_without_connections_are_forgotten() {
        let places = Places::new(&ConnectionLimits::default(), ConnectionMetrics::default());
        for last in 0..200 {
            drop(places.take(address(last)).unwrap());
        }
        let taken = places.taken.lock().unwrap();
        assert_eq!((taken.all, taken.by_address.len()), (0, 0));
    }
}
