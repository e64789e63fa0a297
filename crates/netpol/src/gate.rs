//! The gate before a new Pod's containers: it opens once the Pod's verdict is in the kernel.

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

/// Longer than a healthy node ever takes; the node agent tries again after it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A Pod that was given addresses.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub uid: String,
    pub addresses: Vec<IpAddr>,
    /// Told once the verdict stands.
    pub done: Option<oneshot::Sender<()>>,
}

/// Where the node agent waits.
#[derive(Debug, Clone)]
pub struct Gate(mpsc::UnboundedSender<Arrival>);

/// Where [`crate::run`] hears of Pods.
#[derive(Debug)]
pub struct Arrivals(pub(crate) mpsc::UnboundedReceiver<Arrival>);

/// Why a Pod may not start.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// Nobody makes rules any more.
    #[error("the enforcement of network policies has ended")]
    Ended,
    /// The rules did not come.
    #[error("its network policies are not in force after {0:?}; the node's log says why (skiff logs)")]
    Late(Duration),
}

/// A gate and its keeper's end.
pub fn gate() -> (Gate, Arrivals) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Gate(sender), Arrivals(receiver))
}

impl Gate {
    /// Resolves once the verdict of a Pod with these addresses is in the kernel.
    ///
    /// # Errors
    /// When that did not happen; the Pod must not be started then.
    pub async fn pass(&self, uid: &str, addresses: &[IpAddr]) -> Result<(), GateError> {
        let (done, stands) = oneshot::channel();
        self.arrive(uid, addresses, Some(done))?;
        let stands = tokio::time::timeout(PATIENCE, stands).await;
        stands.map_err(|_| GateError::Late(PATIENCE))?.map_err(|_| GateError::Ended)
    }

    /// Tells the addresses of a Pod that runs already.
    ///
    /// # Errors
    /// When nobody makes rules any more.
    pub fn tell(&self, uid: &str, addresses: &[IpAddr]) -> Result<(), GateError> {
        self.arrive(uid, addresses, None)
    }

    fn arrive(
        &self,
        uid: &str,
        addresses: &[IpAddr],
        done: Option<oneshot::Sender<()>>,
    ) -> Result<(), GateError> {
        let arrival = Arrival { uid: uid.to_owned(), addresses: addresses.to_vec(), done };
        self.0.send(arrival).map_err(|_| GateError::Ended)
    }
}
