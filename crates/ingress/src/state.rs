//! What outlives a routing table: certificates and passwords that were read already, endpoints with their connections
//! and health, the counts of limits, and whose turn it is.
//!
//! A table is made anew for each change; without these, each change would read every Secret again, close every
//! connection to a backend and forget every limit. What no table uses any more is dropped.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use client::ObjectKey;
use k8s_openapi::api::core::v1::Secret;
use rustls::sign::CertifiedKey;

use crate::annotations::auth::SecretType;
use crate::annotations::limits::Limits;
use crate::annotations::upstream::{BackendTls, Protocol};
use crate::backends::{Manner, Port, Version};
use crate::certificates;
use crate::client_tls::Authority;
use crate::passwords::Users;
use crate::throttle::Zones;
use crate::upstream::Backend;
use crate::upstream::endpoint::{Address, Endpoint, Transport};
use crate::upstream::tls::Greeting;

/// Something made of a Secret, as long as that does not change.
#[derive(Debug)]
struct Read<T> {
    version: String,
    made: Result<Arc<T>, String>,
    used: bool,
}

/// Things made of Secrets.
#[derive(Debug)]
struct Reads<K, T>(HashMap<K, Read<T>>);

impl<K, T> Default for Reads<K, T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: std::hash::Hash + Eq, T> Reads<K, T> {
    fn get(
        &mut self,
        key: K,
        secret: &Secret,
        make: impl FnOnce(&Secret) -> Result<T, String>,
    ) -> Result<Arc<T>, String> {
        let version = secret.metadata.resource_version.clone().unwrap_or_default();
        if let Some(read) = self.0.get_mut(&key).filter(|read| read.version == version) {
            read.used = true;
            return read.made.clone();
        }
        let made = make(secret).map(Arc::new);
        self.0.insert(key, Read { version, made: made.clone(), used: true });
        made
    }

    fn settle(&mut self) {
        self.0.retain(|_, read| std::mem::take(&mut read.used));
    }
}

/// What outlives a table.
#[derive(Debug, Default)]
pub struct State {
    certificates: Reads<ObjectKey, CertifiedKey>,
    users: Reads<(ObjectKey, bool), Users>,
    authorities: Reads<ObjectKey, Authority>,
    greetings: HashMap<(BackendTls, Protocol, Option<Version>), Result<Greeting, String>>,
    endpoints: HashMap<(Address, Manner), Weak<Endpoint>>,
    zones: HashMap<ObjectKey, Weak<Zones>>,
    turns: HashMap<(ObjectKey, Port, Manner), Weak<Backend>>,
}

impl State {
    /// The certificate of a Secret.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn certificate(&mut self, secret: &Arc<Secret>) -> Result<Arc<CertifiedKey>, String> {
        self.certificates.get(ObjectKey::of(&**secret), secret, certificates::read)
    }

    pub(crate) fn users(&mut self, secret: &Arc<Secret>, kind: SecretType) -> Result<Arc<Users>, String> {
        let key = (ObjectKey::of(&**secret), kind == SecretType::Map);
        let none = std::collections::BTreeMap::new();
        self.users.get(key, secret, |secret| Users::read(secret.data.as_ref().unwrap_or(&none), kind))
    }

    pub(crate) fn authority(&mut self, secret: &Arc<Secret>) -> Result<Arc<Authority>, String> {
        self.authorities.get(ObjectKey::of(&**secret), secret, |secret| {
            let data = |name: &str| secret.data.as_ref()?.get(name).map(|bytes| bytes.0.as_slice());
            Authority::read(data("ca.crt").ok_or("has no ca.crt")?, data("ca.crl"))
        })
    }

    pub(crate) fn greeting(
        &mut self,
        settings: &BackendTls,
        protocol: Protocol,
        secret: Option<&Version>,
    ) -> Result<Greeting, String> {
        let key = (settings.clone(), protocol, secret.cloned());
        if let Some(known) = self.greetings.get(&key) {
            return known.clone();
        }
        let data = |name: &str| secret?.0.data.as_ref()?.get(name).map(|bytes| bytes.0.as_slice());
        let made = match secret {
            Some(_) => Greeting::new(settings, protocol, Some(&data)),
            None => Greeting::new(settings, protocol, None),
        };
        // Few; a change of a Secret leaves one behind at most.
        if self.greetings.len() > 256 {
            self.greetings.clear();
        }
        self.greetings.insert(key, made.clone());
        made
    }

    /// The endpoints of these addresses: those that there are already, and new ones.
    pub(crate) fn endpoints(
        &mut self,
        addresses: impl IntoIterator<Item = Address>,
        manner: &Manner,
        transport: &Transport,
    ) -> Vec<Arc<Endpoint>> {
        let one = |address: Address| {
            let key = (address, manner.clone());
            if let Some(known) = self.endpoints.get(&key).and_then(Weak::upgrade) {
                return known;
            }
            let new = Arc::new(Endpoint::new(key.0.clone(), transport.clone()));
            self.endpoints.insert(key, Arc::downgrade(&new));
            new
        };
        addresses.into_iter().map(one).collect()
    }

    pub(crate) fn zones(&mut self, ingress: &ObjectKey, limits: &Limits) -> Arc<Zones> {
        let known = self.zones.get(ingress).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| known.settings == *limits) {
            return known;
        }
        let new = Arc::new(Zones::new(limits.clone()));
        self.zones.insert(ingress.clone(), Arc::downgrade(&new));
        new
    }

    /// Lets a backend go on where its predecessor was.
    pub(crate) fn turns(&mut self, key: &(ObjectKey, Port, Manner), backend: Backend) -> Backend {
        if let Some(before) = self.turns.get(key).and_then(Weak::upgrade) {
            backend.continues(before.turn());
        }
        backend
    }

    /// Remembers a backend for the one that follows it.
    pub(crate) fn remember(&mut self, key: (ObjectKey, Port, Manner), backend: &Arc<Backend>) {
        self.turns.insert(key, Arc::downgrade(backend));
    }

    /// All endpoints that a table uses.
    pub(crate) fn alive(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.values().filter_map(Weak::upgrade).collect()
    }

    /// Drops what the table just made does not use, nor the one that still serves.
    pub(crate) fn settle(&mut self) {
        self.certificates.settle();
        self.users.settle();
        self.authorities.settle();
        self.endpoints.retain(|_, endpoint| endpoint.strong_count() > 0);
        self.zones.retain(|_, zones| zones.strong_count() > 0);
        self.turns.retain(|_, backend| backend.strong_count() > 0);
    }
}
