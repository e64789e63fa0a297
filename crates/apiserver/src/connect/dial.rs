//! Connections to other servers: TCP, on top of it TLS where it is asked for.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A connection, encrypted or not.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Connects; with TLS as the given name.
///
/// # Errors
/// What went wrong, as a sentence.
pub async fn open(
    host: &str,
    port: u16,
    tls: Option<(Arc<ClientConfig>, &str)>,
) -> Result<Box<dyn Stream>, String> {
    let tcp = TcpStream::connect((host, port)).await.map_err(|e| format!("dial {host}:{port}: {e}"))?;
    let _ = tcp.set_nodelay(true);
    let Some((config, name)) = tls else { return Ok(Box::new(tcp)) };
    let server = ServerName::try_from(name.to_owned()).map_err(|e| format!("dial {name}: {e}"))?;
    let stream = TlsConnector::from(config).connect(server, tcp).await;
    Ok(Box::new(stream.map_err(|e| format!("TLS with {host}:{port}: {e}"))?))
}
