//! Tells who asks for them the connections that this node sees.

use std::sync::Arc;

use netpol::Flows;
use netpol::flows::Seen;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc::UnboundedSender;

use crate::control::{FlowsWanted, Reply};

/// Tells the connections that are wanted; ends with them, or when the asker leaves.
pub async fn tell(flows: &Flows, wanted: &FlowsWanted, news: &UnboundedSender<Reply>) {
    let tell = |seen: &Seen| {
        if wanted.pod.as_ref().is_none_or(|pod| seen.concerns(pod)) {
            // Whoever asked may have gone; that is looked for elsewhere.
            let _ = news.send(Reply::Flow(Box::new(seen.clone())));
        }
    };
    if !wanted.follow {
        let mut all: Vec<Seen> = flows.recent().iter().map(|seen| seen.as_ref().clone()).collect();
        if !wanted.denied {
            all.extend(flows.current().await);
        }
        all.iter().for_each(tell);
        return;
    }
    let mut refused = flows.refused();
    let mut allowed = (!wanted.denied).then(|| flows.allowed());
    loop {
        let seen = tokio::select! {
            () = news.closed() => return,
            seen = refused.recv() => seen,
            seen = next(&mut allowed) => seen,
        };
        match seen {
            Ok(seen) => tell(&seen),
            // Who is too slow misses some.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

async fn next(allowed: &mut Option<Receiver<Arc<Seen>>>) -> Result<Arc<Seen>, RecvError> {
    match allowed {
        Some(allowed) => allowed.recv().await,
        None => std::future::pending().await,
    }
}
