//! What the watchdog knows of each agent connection. One sweep every few seconds looks at all of them; nothing
//! on the way of a request sets a timer or reads a clock for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use crate::metrics::{Held, Metrics};

/// Agent connections at once.
const MAX_CONNECTIONS: usize = 4096;
/// How often the watchdog looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// Looks at one and the same unfinished head: 30 s from its first byte, and up to one interval more.
const HEAD_LOOKS: u32 = 4;
/// Looks at an idle connection: one hour.
const IDLE_LOOKS: u32 = 360;

/// What a connection is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Go on.
    Run,
    /// Finish the requests in flight, then close.
    Drain,
    /// Close now.
    Close,
}

/// What happens on one connection.
#[derive(Debug, Default)]
pub struct Activity {
    /// Requests from their head to the last byte of their answer.
    in_flight: AtomicUsize,
    /// Counts reads.
    reads: AtomicU64,
    /// `reads` at the first byte of an unfinished head, or 0.
    head: AtomicU64,
    command: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

impl Activity {
    /// Something was read; outside of a request it begins the next request's head.
    pub fn received(&self, heads: bool) {
        let reads = self.reads.load(Ordering::Relaxed) + 1;
        self.reads.store(reads, Ordering::Relaxed);
        if heads
            && self.in_flight.load(Ordering::Relaxed) == 0
            && self.head.load(Ordering::Relaxed) == 0
        {
            self.head.store(reads, Ordering::Relaxed);
        }
    }

    /// A head has begun and is not complete.
    pub fn is_amid_head(&self) -> bool {
        self.head.load(Ordering::Relaxed) != 0 && self.in_flight.load(Ordering::Relaxed) == 0
    }

    /// What the connection is to do now.
    pub fn command(&self) -> Command {
        match self.command.load(Ordering::Acquire) {
            0 => Command::Run,
            1 => Command::Drain,
            _ => Command::Close,
        }
    }

    /// Makes the calling task the one that commands wake. Called once: a task's waker does not change.
    pub fn attend(&self, cx: &Context<'_>) {
        *lock(&self.waker) = Some(cx.waker().clone());
    }

    fn order(&self, command: Command) {
        let byte = match command {
            Command::Run => 0,
            Command::Drain => 1,
            Command::Close => 2,
        };
        self.command.fetch_max(byte, Ordering::Release);
        if let Some(waker) = lock(&self.waker).as_ref() {
            waker.wake_by_ref();
        }
    }
}

/// A request in flight, until dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Activity>);

impl InFlight {
    /// The head of a request is complete.
    pub fn new(activity: &Arc<Activity>) -> Self {
        activity.in_flight.fetch_add(1, Ordering::Relaxed);
        activity.head.store(0, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Every open agent connection.
pub struct Connections {
    open: Mutex<Open>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Open {
    next: u64,
    draining: bool,
    activities: HashMap<u64, Watch>,
}

struct Watch {
    activity: Arc<Activity>,
    seen: Seen,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    reads: u64,
    head: u64,
    idle_looks: u32,
    head_looks: u32,
}

impl Connections {
    /// None are open.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::default(),
            metrics,
        })
    }

    /// A place for a new connection; `None` when all are taken.
    pub fn register(self: &Arc<Self>) -> Option<Registered> {
        let mut open = lock(&self.open);
        if open.activities.len() >= MAX_CONNECTIONS {
            return None;
        }
        let activity = Arc::new(Activity::default());
        if open.draining {
            activity.order(Command::Drain);
        }
        let key = open.next;
        open.next += 1;
        open.activities.insert(
            key,
            Watch {
                activity: Arc::clone(&activity),
                seen: Seen::default(),
            },
        );
        let counted = self.metrics.agent_connections.hold();
        Some(Registered {
            connections: Arc::clone(self),
            key,
            activity,
            _counted: counted,
        })
    }

    /// Tells every connection, those to come as well, to finish.
    pub fn drain(&self) {
        let mut open = lock(&self.open);
        open.draining = true;
        for watch in open.activities.values() {
            watch.activity.order(Command::Drain);
        }
    }

    /// Looks at every connection again and again.
    pub async fn watch(self: Arc<Self>) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.look();
        }
    }

    fn look(&self) {
        for watch in lock(&self.open).activities.values_mut() {
            let command = watch.seen.judge(&watch.activity);
            if command != Command::Run {
                watch.activity.order(command);
            }
        }
    }
}

impl Seen {
    fn judge(&mut self, activity: &Activity) -> Command {
        let reads = activity.reads.load(Ordering::Relaxed);
        let head = activity.head.load(Ordering::Relaxed);
        let in_flight = activity.in_flight.load(Ordering::Relaxed);
        self.head_looks = if head != 0 && head == self.head {
            self.head_looks + 1
        } else {
            u32::from(head != 0)
        };
        self.idle_looks = if in_flight == 0 && reads == self.reads {
            self.idle_looks + 1
        } else {
            0
        };
        self.reads = reads;
        self.head = head;
        if self.head_looks >= HEAD_LOOKS {
            Command::Close
        } else if self.idle_looks >= IDLE_LOOKS {
            Command::Drain
        } else {
            Command::Run
        }
    }
}

/// A connection's place, given back on drop.
pub struct Registered {
    connections: Arc<Connections>,
    key: u64,
    activity: Arc<Activity>,
    _counted: Held,
}

impl Registered {
    /// What happens on the connection.
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.connections.open).activities.remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section here leaves the data whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(activity: &Arc<Activity>, seen: &mut Seen, count: u32) -> Command {
        (0..count)
            .map(|_| seen.judge(activity))
            .last()
            .unwrap_or(Command::Run)
    }

    #[test]
    fn a_head_that_never_ends_is_closed_after_thirty_seconds() {
        let (activity, mut seen) = (Arc::new(Activity::default()), Seen::default());
        activity.received(true);
        assert_eq!(looks(&activity, &mut seen, HEAD_LOOKS - 1), Command::Run);
        activity.received(true);
        assert_eq!(looks(&activity, &mut seen, 1), Command::Close);
    }

    #[test]
    fn a_connection_is_amid_a_head_from_its_first_byte_to_its_last() {
        let activity = Arc::new(Activity::default());
        assert!(!activity.is_amid_head());
        activity.received(true);
        assert!(activity.is_amid_head());
        let request = InFlight::new(&activity);
        activity.received(true);
        assert!(!activity.is_amid_head());
        drop(request);
        assert!(!activity.is_amid_head());
    }

    #[test]
    fn a_complete_head_starts_no_count() {
        let (activity, mut seen) = (Arc::new(Activity::default()), Seen::default());
        activity.received(true);
        let request = InFlight::new(&activity);
        activity.received(true);
        assert_eq!(looks(&activity, &mut seen, HEAD_LOOKS * 2), Command::Run);
        drop(request);
        assert_eq!(looks(&activity, &mut seen, HEAD_LOOKS * 2), Command::Run);
    }

    #[test]
    fn an_idle_connection_is_drained_after_an_hour_and_a_busy_one_is_not() {
        let (activity, mut seen) = (Arc::new(Activity::default()), Seen::default());
        assert_eq!(looks(&activity, &mut seen, IDLE_LOOKS - 1), Command::Run);
        let request = InFlight::new(&activity);
        assert_eq!(looks(&activity, &mut seen, IDLE_LOOKS * 2), Command::Run);
        drop(request);
        assert_eq!(looks(&activity, &mut seen, IDLE_LOOKS), Command::Drain);
    }
}
