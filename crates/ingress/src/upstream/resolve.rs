//! Names of Services of type ExternalName to addresses, by the Pod's own resolver.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use tokio::sync::OnceCell;

static RESOLVER: OnceCell<TokioResolver> = OnceCell::const_new();
/// How long a name may take.
const LIMIT: Duration = Duration::from_secs(5);

/// The first address of a name; answers are kept as long as they say.
pub(crate) async fn resolve(name: &str, port: u16) -> io::Result<SocketAddr> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok((address, port).into());
    }
    let made = RESOLVER.get_or_try_init(|| async { TokioResolver::builder_tokio()?.build() }).await;
    let resolver = made.map_err(io::Error::other)?;
    let found = tokio::time::timeout(LIMIT, resolver.lookup_ip(name)).await?.map_err(io::Error::other)?;
    let address = found.iter().next().ok_or_else(|| io::Error::other(format!("{name} has no address")))?;
    Ok((address, port).into())
}
