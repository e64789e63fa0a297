//! How many requests are served at once, and who waits: no client may take all places, and those who would wait too long
//! are told so at once (429, Retry-After).
//!
//! Watches, streams and proxied connections take no place: they last as long as their clients wish. Requests of this
//! process's own components do not come by here.
//! <https://kubernetes.io/docs/concepts/cluster-administration/flow-control/>

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::identity::{Attributes, UserInfo};
use crate::request::Query;
use crate::status::Status;

/// Requests served at once: upstream's 400 that read and 200 that write.
const PLACES: usize = 600;
/// Of these, those that one user may take.
const PLACES_OF_A_USER: usize = 400;
/// Requests that may wait for a place.
const WAITING: usize = 2000;
/// How long they may.
const PATIENCE: Duration = Duration::from_secs(10);

/// The places.
pub struct Flow {
    all: Arc<Semaphore>,
    users: Mutex<HashMap<String, Arc<Semaphore>>>,
    of_a_user: usize,
    waiting: AtomicUsize,
    queue: usize,
    patience: Duration,
}

/// A place, for as long as it is held.
pub struct Place {
    _user: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// Counts those who wait, also when they go away.
struct Waiter<'a>(&'a AtomicUsize);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Flow {
    fn default() -> Self {
        Self::new(PLACES, PLACES_OF_A_USER, WAITING, PATIENCE)
    }
}

impl Flow {
    fn new(places: usize, of_a_user: usize, queue: usize, patience: Duration) -> Self {
        Flow {
            all: Arc::new(Semaphore::new(places)),
            users: Mutex::default(),
            of_a_user,
            waiting: AtomicUsize::new(0),
            queue,
            patience,
        }
    }

    /// A place for a request of a user.
    ///
    /// # Errors
    /// 429 when too many wait already, or this one has waited too long.
    pub async fn enter(&self, user: &UserInfo) -> Result<Place, Status> {
        let mine = self.places_of(&user.name);
        if let (Ok(user), Ok(all)) = (mine.clone().try_acquire_owned(), self.all.clone().try_acquire_owned())
        {
            return Ok(Place { _user: user, _all: all });
        }
        let waiter = Waiter(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.queue {
            return Err(too_many());
        }
        let both = async {
            let user = mine.acquire_owned().await.ok()?;
            let all = self.all.clone().acquire_owned().await.ok()?;
            Some(Place { _user: user, _all: all })
        };
        let place = tokio::time::timeout(self.patience, both).await;
        drop(waiter);
        place.ok().flatten().ok_or_else(too_many)
    }

    fn places_of(&self, user: &str) -> Arc<Semaphore> {
        let mut users = self.users.lock();
        if let Some(known) = users.get(user) {
            return known.clone();
        }
        // Users without a request under way are forgotten.
        users.retain(|_, places| Arc::strong_count(places) > 1);
        let places = Arc::new(Semaphore::new(self.of_a_user));
        users.insert(user.to_owned(), places.clone());
        places
    }
}

fn too_many() -> Status {
    Status::too_many_requests("too many requests, please try again later", 1)
}

/// Whether a request lasts as long as its client wishes.
pub fn is_long_running(attributes: &Attributes, query: &Query) -> bool {
    let streams = matches!(attributes.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy");
    attributes.verb == "watch" || streams || (attributes.subresource == "log" && query.flag("follow"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn user(name: &str) -> UserInfo {
        UserInfo::new(name, &[])
    }

    #[tokio::test]
    async fn one_user_leaves_places_for_others_and_waits() {
        let flow = Arc::new(Flow::new(3, 2, 1, Duration::from_secs(60)));
        let first = flow.enter(&user("a")).await.unwrap();
        let _second = flow.enter(&user("a")).await.unwrap();
        let _other = flow.enter(&user("b")).await.unwrap();
        let waiting = tokio::spawn({
            let flow = flow.clone();
            async move { flow.enter(&user("a")).await.map(drop) }
        });
        while flow.waiting.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        // One waits, no more may.
        let refusal = flow.enter(&user("c")).await.err().unwrap();
        assert_eq!((refusal.code(), refusal.details().unwrap().retry_after_seconds), (429, 1));
        drop(first);
        waiting.await.unwrap().unwrap();
        assert_eq!(flow.waiting.load(Ordering::Relaxed), 0);
        flow.enter(&user("c")).await.unwrap();
        assert!(flow.users.lock().len() <= 3);
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let flow = Flow::new(1, 1, 10, Duration::from_millis(20));
        let _held = flow.enter(&user("a")).await.unwrap();
        assert_eq!(flow.enter(&user("b")).await.err().unwrap().code(), 429);
    }

    #[test]
    fn streams_take_no_place() {
        let of = |verb: &str, sub: &str| Attributes {
            verb: verb.into(),
            subresource: sub.into(),
            ..Attributes::default()
        };
        let query = |text| Query::parse(Some(text));
        assert!(is_long_running(&of("watch", ""), &query("")));
        assert!(is_long_running(&of("create", "exec"), &query("")));
        assert!(is_long_running(&of("get", "log"), &query("follow=true")));
        assert!(!is_long_running(&of("get", "log"), &query("")));
        assert!(!is_long_running(&of("list", ""), &query("")));
    }
}
