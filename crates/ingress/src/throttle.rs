//! Counting clients: requests by a leaky bucket as nginx's `limit_req`, requests under way as its `limit_conn`.
//!
//! The counts outlive routing tables as long as the limits stay the same.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::annotations::limits::Limits;
use crate::annotations::value::holds;

/// Clients that are remembered; as many as nginx's five megabytes hold.
const CLIENTS: usize = 80_000;
/// A request, in the unit of the bucket.
const ONE: u64 = 1_000;

/// The counts of one Ingress.
#[derive(Debug)]
pub(crate) struct Zones {
    pub settings: Limits,
    buckets: Vec<Bucket>,
    open: Mutex<HashMap<IpAddr, u32>>,
}

#[derive(Debug)]
struct Bucket {
    /// Thousandths of a request that leak in a second.
    rate: u64,
    burst: u64,
    clients: Mutex<HashMap<IpAddr, Fill>>,
}

#[derive(Debug, Clone, Copy)]
struct Fill {
    excess: u64,
    at: Instant,
}

/// Which limit a request is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Requests,
    Connections,
}

impl Zones {
    pub fn new(settings: Limits) -> Self {
        let burst = u64::from(settings.burst);
        let bucket = |count: u32, per: u64| {
            let burst = u64::from(count) * burst * ONE;
            (count > 0).then(|| Bucket {
                rate: u64::from(count) * ONE / per,
                burst,
                clients: Mutex::default(),
            })
        };
        let buckets = [bucket(settings.rps, 1), bucket(settings.rpm, 60)].into_iter().flatten().collect();
        Self { settings, buckets, open: Mutex::default() }
    }

    /// Counts a request; it is under way until what is returned is dropped.
    ///
    /// # Errors
    /// The limit that it is over.
    pub fn enter(self: &Arc<Self>, client: IpAddr) -> Result<Option<Place>, Over> {
        self.enter_at(client, Instant::now())
    }

    fn enter_at(self: &Arc<Self>, client: IpAddr, now: Instant) -> Result<Option<Place>, Over> {
        if holds(&self.settings.free, client) {
            return Ok(None);
        }
        let place = self.place(client)?;
        match self.buckets.iter().all(|bucket| bucket.takes(client, now)) {
            true => Ok(place),
            false => Err(Over::Requests),
        }
    }

    fn place(self: &Arc<Self>, client: IpAddr) -> Result<Option<Place>, Over> {
        if self.settings.connections == 0 {
            return Ok(None);
        }
        let mut open = self.open.lock();
        let count = open.entry(client).or_default();
        if *count >= self.settings.connections {
            return Err(Over::Connections);
        }
        *count += 1;
        Ok(Some(Place { zones: self.clone(), client }))
    }
}

impl Bucket {
    fn takes(&self, client: IpAddr, now: Instant) -> bool {
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENTS && !clients.contains_key(&client) {
            // Those whose bucket has run dry are as good as new ones.
            clients.retain(|_, fill| self.left(*fill, now) > 0);
            if clients.len() >= CLIENTS {
                return false;
            }
        }
        let Some(fill) = clients.get_mut(&client) else {
            clients.insert(client, Fill { excess: 0, at: now });
            return true;
        };
        let excess = self.left(*fill, now) + ONE;
        if excess > self.burst {
            return false;
        }
        *fill = Fill { excess, at: now };
        true
    }

    /// What is left of a fill by now.
    fn left(&self, fill: Fill, now: Instant) -> u64 {
        let passed = u64::try_from(now.saturating_duration_since(fill.at).as_millis()).unwrap_or(u64::MAX);
        fill.excess.saturating_sub(self.rate.saturating_mul(passed) / 1000)
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Place {
    zones: Arc<Zones>,
    client: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.zones.open.lock();
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::time::Duration;

    use super::*;

    fn client(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let zones = Arc::new(Zones::new(Limits { rps: 2, burst: 3, ..Limits::default() }));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let taken = |seconds| (0..20).filter(|_| zones.enter_at(client(1), at(seconds)).is_ok()).count();
        assert_eq!(taken(0), 7, "one, and the burst");
        assert_eq!(taken(1), 2);
        assert!(zones.enter_at(client(2), at(1)).is_ok(), "another client has its own");
        assert!((6..=7).contains(&taken(60)));
    }

    #[test]
    fn minutes() {
        let zones = Arc::new(Zones::new(Limits { rpm: 60, burst: 1, ..Limits::default() }));
        let start = Instant::now();
        let taken = |now| (0..100).filter(|_| zones.enter_at(client(1), now).is_ok()).count();
        assert_eq!(taken(start), 61);
        assert_eq!(taken(start + Duration::from_secs(10)), 10);
    }

    #[test]
    fn requests_under_way() {
        let free = vec!["10.0.0.9/32".parse().unwrap()];
        let zones = Arc::new(Zones::new(Limits { connections: 2, free, ..Limits::default() }));
        let (one, _two) = (zones.enter(client(1)).unwrap(), zones.enter(client(1)).unwrap());
        assert_eq!(zones.enter(client(1)).unwrap_err(), Over::Connections);
        assert!((0..9).all(|_| zones.enter(client(9)).is_ok()));
        drop(one);
        assert!(zones.enter(client(1)).is_ok());
    }
}
