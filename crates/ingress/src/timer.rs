//! The clock that hyper's connections look at.
//!
//! hyper wants a timer for the head of each request and drops it when the head has come. Here all of them share one of
//! tokio's, which is set anew only when it rings: a request costs its connection no way to tokio's wheel.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

type Bell = Arc<Mutex<Pin<Box<tokio::time::Sleep>>>>;

/// The timer of one connection; what it makes is waited for by the connection's own task, one after the other.
#[derive(Debug)]
pub(crate) struct Timer(Bell);

impl Timer {
    /// A timer that is first looked at after `wait`.
    pub fn new(wait: Duration) -> Self {
        Self(Arc::new(Mutex::new(Box::pin(tokio::time::sleep(wait)))))
    }
}

impl hyper::rt::Timer for Timer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Due { deadline: deadline.into(), bell: self.0.clone() })
    }
}

struct Due {
    deadline: tokio::time::Instant,
    bell: Bell,
}

impl Future for Due {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut bell = self.bell.lock();
        if bell.deadline() > self.deadline {
            bell.as_mut().reset(self.deadline);
        }
        loop {
            ready!(bell.as_mut().poll(cx));
            if tokio::time::Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            bell.as_mut().reset(self.deadline);
        }
    }
}

impl hyper::rt::Sleep for Due {}

#[cfg(test)]
mod tests {
    use hyper::rt::Timer as _;

    use super::*;

    #[tokio::test]
    async fn each_waits_for_its_own_time() {
        let timer = Timer::new(Duration::from_secs(3600));
        // One that is dropped leaves the bell at its time; one that comes later waits longer all the same.
        drop(timer.sleep(Duration::from_millis(1)));
        for wait in [60, 5, 30].map(Duration::from_millis) {
            let start = Instant::now();
            timer.sleep(wait).await;
            assert!(start.elapsed() >= wait, "{:?}", start.elapsed());
        }
    }
}
