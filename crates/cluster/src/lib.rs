//! What `skiff start` puts together around the components: profiles, their nodes, certificates, kubeconfig, and the
//! user's settings.
//!
//! Files only: no process is started and no address configured here, so that everything is tested in a directory.

mod caller;
mod error;
pub mod files;
pub mod kubeconfig;
mod member;
pub mod pki;
mod profile;
mod settings;

pub use caller::{Caller, Owner};
pub use error::Error;
pub use member::{MAX_NODES, Member};
pub use profile::{
    API_PORT, BUILTIN_IMAGE, CLUSTER_DOMAIN, Cni, DNS_SERVICE, KUBERNETES_SERVICE, Network, POD_CIDR,
    Profile, SERVICE_CIDR,
};
pub use settings::Settings;

/// Result of an operation on the cluster's files.
pub type Result<T, E = Error> = std::result::Result<T, E>;
