//! Allocation of cluster addresses and node ports.
//!
//! The Services in the store are the truth: the sets here are filled from them before the first allocation, and
//! every cluster address has an `IPAddress` object as its record, repaired at the same time. IPv4 and IPv6 ranges
//! stand side by side.

pub mod addresses;
pub mod band;
pub mod record;

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::config::Config;
use crate::kinds::value::{int, list, name, text};
use crate::objects::Objects;
use crate::resource::GroupResource;
use crate::status::Status;
use crate::strategy::Reservation;
use addresses::Addresses;
use band::{Band, port_band};

/// Why a wish cannot be granted; the text is the detail of a field error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// The address is another Service's.
    #[error("failed to allocate IP {0}: provided IP is already allocated")]
    AddressTaken(IpAddr),
    /// The address is not of the range.
    #[error(
        "failed to allocate IP {0}: the provided IP ({0}) is not in the valid range. The range of valid IPs is {1}"
    )]
    AddressOutside(IpAddr, String),
    /// No address is left.
    #[error("failed to allocate a serviceIP: range is full")]
    AddressesFull,
    /// The port is another Service's.
    #[error("provided port is already allocated")]
    PortTaken,
    /// The port is not of the range.
    #[error("provided port is not in the valid range. The range of valid ports is {0}-{1}")]
    PortOutside(u16, u16),
    /// No port is left.
    #[error("failed to allocate a nodePort: range is full")]
    PortsFull,
}

/// The addresses and ports of a cluster's Services.
pub struct Allocators {
    addresses: Mutex<Addresses>,
    ports: Mutex<Band>,
    port_range: RangeInclusive<u16>,
    ready: OnceCell<()>,
}

fn random() -> u64 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    // The lower half carries the version bits.
    high >> 16
}

impl Allocators {
    /// Of the configured ranges; empty until [`Allocators::ready`].
    pub fn new(config: &Config) -> Arc<Self> {
        let range = config.node_ports.clone();
        let size = u64::from(*range.end()).saturating_sub(u64::from(*range.start())) + 1;
        Arc::new(Allocators {
            addresses: Mutex::new(Addresses::new(&config.service_cidrs)),
            ports: Mutex::new(Band::new(size, port_band(size))),
            port_range: range,
            ready: OnceCell::new(),
        })
    }

    /// Fills the sets from the stored Services, once, and puts their `IPAddress` records right.
    pub async fn ready(&self, objects: &dyn Objects) -> Result<(), Status> {
        self.ready.get_or_try_init(|| self.recover(objects)).await.copied()
    }

    async fn recover(&self, objects: &dyn Objects) -> Result<(), Status> {
        let (cidrs, _) = objects.list(&GroupResource::new("networking.k8s.io", "servicecidrs"), None).await?;
        cidrs.iter().for_each(|cidr| self.set_cidr(cidr));
        let (services, _) = objects.list(&GroupResource::new("", "services"), None).await?;
        let mut owners: HashMap<IpAddr, Arc<Value>> = HashMap::new();
        for service in services {
            for address in cluster_ips(&service) {
                self.addresses.lock().take(address).ok();
                owners.insert(address, service.clone());
            }
            for port in ports(&service) {
                self.take_port(port).ok();
            }
        }
        record::repair(objects, &owners).await
    }

    /// Takes a ServiceCIDR in: addresses come from it while it is ready and stays.
    pub fn set_cidr(&self, cidr: &Value) {
        let conditions = list(&cidr["status"], "conditions");
        let ready = conditions.iter().any(|c| text(c, "type") == "Ready" && text(c, "status") == "True");
        let open = ready && cidr["metadata"]["deletionTimestamp"].is_null();
        let nets = list(&cidr["spec"], "cidrs").iter().filter_map(|net| net.as_str()?.parse().ok());
        self.addresses.lock().set(name(cidr), &nets.collect::<Vec<_>>(), open);
    }

    /// Forgets a ServiceCIDR that is gone.
    pub fn remove_cidr(&self, cidr: &Value) {
        self.addresses.lock().set(name(cidr), &[], false);
    }

    /// The address families of the cluster, the main one first.
    pub fn families(&self) -> Vec<&'static str> {
        self.addresses.lock().families()
    }

    fn take_port(&self, port: u16) -> Result<(), AllocError> {
        let (first, last) = (*self.port_range.start(), *self.port_range.end());
        if !self.port_range.contains(&port) {
            return Err(AllocError::PortOutside(first, last));
        }
        let taken = self.ports.lock().take(u64::from(port - first));
        if taken { Ok(()) } else { Err(AllocError::PortTaken) }
    }

    /// Begins a set of reservations.
    pub fn reserve(self: &Arc<Self>) -> Taken {
        Taken {
            of: self.clone(),
            addresses: Vec::new(),
            ports: Vec::new(),
            give_back: Vec::new(),
            kept: false,
        }
    }

    /// Gives back all a deleted Service held.
    pub fn release(&self, service: &Value) {
        for address in cluster_ips(service) {
            self.addresses.lock().release(address);
        }
        for port in ports(service) {
            self.release_port(port);
        }
    }

    fn release_port(&self, port: u16) {
        if self.port_range.contains(&port) {
            self.ports.lock().release(u64::from(port - self.port_range.start()));
        }
    }
}

/// The cluster addresses of a Service.
pub fn cluster_ips(service: &Value) -> Vec<IpAddr> {
    let spec = &service["spec"];
    let mut all: Vec<IpAddr> =
        list(spec, "clusterIPs").iter().filter_map(|a| a.as_str()?.parse().ok()).collect();
    if let Ok(first) = text(spec, "clusterIP").parse()
        && !all.contains(&first)
    {
        all.insert(0, first);
    }
    all
}

/// The node ports of a Service, each once, the health check's included.
pub fn ports(service: &Value) -> Vec<u16> {
    let spec = &service["spec"];
    let mut all: Vec<u16> = list(spec, "ports").iter().filter_map(|p| number(p, "nodePort")).collect();
    all.extend(number(spec, "healthCheckNodePort"));
    all.sort_unstable();
    all.dedup();
    all
}

fn number(object: &Value, key: &str) -> Option<u16> {
    int(object, key).filter(|n| *n != 0).and_then(|n| u16::try_from(n).ok())
}

enum Held {
    Address(IpAddr),
    Port(u16),
}

/// Addresses and ports taken for one write; given back when dropped before [`Reservation::keep`].
pub struct Taken {
    of: Arc<Allocators>,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    give_back: Vec<Held>,
    kept: bool,
}

impl Taken {
    /// Takes a given address.
    pub fn address(&mut self, address: IpAddr) -> Result<(), AllocError> {
        self.of.addresses.lock().take(address)?;
        self.addresses.push(address);
        Ok(())
    }

    /// Takes some address of a family.
    pub fn any_address(&mut self, family: &str) -> Result<IpAddr, AllocError> {
        let address = self.of.addresses.lock().take_any(family, random())?;
        self.addresses.push(address);
        Ok(address)
    }

    /// Takes a given port; one this write already took is fine (the same port over TCP and UDP).
    pub fn port(&mut self, port: u16) -> Result<(), AllocError> {
        if !self.ports.contains(&port) {
            self.of.take_port(port)?;
            self.ports.push(port);
        }
        Ok(())
    }

    /// Takes some port.
    pub fn any_port(&mut self) -> Result<u16, AllocError> {
        let slot = self.of.ports.lock().take_any(random()).ok_or(AllocError::PortsFull)?;
        let offset = u16::try_from(slot).map_err(|_| AllocError::PortsFull)?;
        let port = self.of.port_range.start() + offset;
        self.ports.push(port);
        Ok(port)
    }

    /// Once the write is durable, this address is free.
    pub fn free_address(&mut self, address: IpAddr) {
        self.give_back.push(Held::Address(address));
    }

    /// Once the write is durable, this port is free.
    pub fn free_port(&mut self, port: u16) {
        self.give_back.push(Held::Port(port));
    }
}

impl Reservation for Taken {
    fn keep(mut self: Box<Self>) {
        self.kept = true;
        for held in std::mem::take(&mut self.give_back) {
            match held {
                Held::Address(address) => self.of.addresses.lock().release(address),
                Held::Port(port) => self.of.release_port(port),
            }
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.kept {
            for address in &self.addresses {
                self.of.addresses.lock().release(*address);
            }
            for port in &self.ports {
                self.of.release_port(*port);
            }
        }
    }
}
