//! What `skiff start` puts together around the components: profiles, their nodes, certificates, kubeconfig, and the
//! user's settings.
//!
//! Files only: no process is started and no address configured here, so that everything is tested in a directory.

mod caller;
mod error;
pub mod files;
pub mod kubeconfig;
mod member;
mod network;
pub mod pki;
mod profile;
mod settings;

pub use caller::{Caller, Owner};
pub use error::Error;
pub use member::{MAX_NODES, Member};
pub use network::{
    DNS_SERVICE, DNS_SERVICE6, IpFamily, KUBERNETES_SERVICE, KUBERNETES_SERVICE6, NODE_PREFIX6, Network,
    POD_CIDR, POD_CIDR6, SERVICE_CIDR, SERVICE_CIDR6,
};
pub use profile::{API_PORT, BUILTIN_IMAGE, CLUSTER_DOMAIN, Cni, Profile};
pub use settings::Settings;

/// Result of an operation on the cluster's files.
pub type Result<T, E = Error> = std::result::Result<T, E>;
