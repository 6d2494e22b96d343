//! Answers that still stream, so that a table change can end those whose route or tenant has left.
//!
//! Only an answer that has to be waited for is listed: one that comes at once pays nothing for this.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use http::HeaderValue;
use nexus_crds::matcher::Connection;

use crate::routes::RouteSet;

/// Every answer that is waited for.
#[derive(Debug, Default)]
pub struct Streams(Mutex<Listed>);

#[derive(Debug, Default)]
struct Listed {
    next: u64,
    entries: HashMap<u64, Entry, foldhash::fast::RandomState>,
}

#[derive(Debug)]
struct Entry {
    owner: Owner,
    ended: Arc<AtomicBool>,
    waker: Waker,
}

/// Whose answer it is.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Value of `X-Nexus-Provider`.
    pub provider: Arc<str>,
    /// The tenant, if one was named or implied.
    pub tenant: Option<HeaderValue>,
    /// Whose credential was sent.
    pub connection: Connection,
}

impl Streams {
    /// Lists an answer until the result is dropped.
    pub fn list(self: &Arc<Self>, owner: Owner, waker: &Waker) -> Listing {
        let ended = Arc::new(AtomicBool::new(false));
        let entry = Entry {
            owner,
            ended: Arc::clone(&ended),
            waker: waker.clone(),
        };
        let mut listed = self.lock();
        let key = listed.next;
        listed.next += 1;
        listed.entries.insert(key, entry);
        Listing {
            streams: Arc::clone(self),
            key,
            ended,
            waker: waker.clone(),
        }
    }

    /// Ends every answer that `routes` would not give a connection any more.
    pub fn end_unserved(&self, routes: &RouteSet) {
        for entry in self.lock().entries.values() {
            if !routes.serves(&entry.owner) {
                entry.ended.store(true, Ordering::Relaxed);
                entry.waker.wake_by_ref();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Listed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer's place in the list.
#[derive(Debug)]
pub struct Listing {
    streams: Arc<Streams>,
    key: u64,
    ended: Arc<AtomicBool>,
    waker: Waker,
}

impl Listing {
    /// The answer has to end.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Sees to it that the task that waits now is the one that is woken.
    pub fn wakes(&mut self, waker: &Waker) {
        if self.waker.will_wake(waker) {
            return;
        }
        self.waker.clone_from(waker);
        if let Some(entry) = self.streams.lock().entries.get_mut(&self.key) {
            entry.waker.clone_from(waker);
        }
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.streams.lock().entries.remove(&self.key);
    }
}
