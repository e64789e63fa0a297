//! The threads that serve.
//!
//! Each has a runtime of its own and accepts from the same listeners, so that a connection stays on the thread that took
//! it, with the connections to backends that it uses: nothing of a request wakes another thread. What follows the API
//! runs elsewhere and takes no turn from requests.

use std::io;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::{Barrier, oneshot};

use crate::front::{self, Front, Stop};
use crate::proxy::Proxy;

/// Serves these listeners on `count` threads until they are to close, then lets requests under way end.
///
/// # Errors
/// When a thread cannot be had, or has died.
pub(crate) async fn serve(
    listeners: Vec<(TcpListener, Front)>,
    proxy: Arc<Proxy>,
    count: usize,
    stop: Stop,
) -> io::Result<()> {
    let mut all = Vec::new();
    for (listener, front) in listeners {
        all.push((listener.into_std()?, front));
    }
    let last = Arc::new(Barrier::new(count.max(1)));
    let mut ends = Vec::new();
    for number in 0..count.max(1) {
        let own: io::Result<Vec<_>> =
            all.iter().map(|(l, front)| Ok((l.try_clone()?, front.clone()))).collect();
        let (own, proxy, stop, last) = (own?, proxy.clone(), stop.clone(), last.clone());
        let (done, ended) = oneshot::channel();
        let work = move || {
            // Whoever waits has gone: so does everything.
            let _ = done.send(work(own, proxy, stop, &last));
        };
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(work)?;
        ends.push(ended);
    }
    // The workers' own are what is left: the ports close with the last of them.
    drop(all);
    for ended in ends {
        ended.await.map_err(|_| io::Error::other("a worker died"))??;
    }
    Ok(())
}

fn work(
    listeners: Vec<(std::net::TcpListener, Front)>,
    proxy: Arc<Proxy>,
    stop: Stop,
    last: &Barrier,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut serving = tokio::task::JoinSet::new();
        for (listener, front) in listeners {
            serving.spawn(front::serve(TcpListener::from_std(listener)?, front, proxy.clone(), stop.clone()));
        }
        while let Some(ended) = serving.join_next().await {
            ended?;
        }
        // Connections of HTTP/2 to backends are shared: they live until nobody can need them.
        last.wait().await;
        Ok(())
    })
}
