//! Whether the process may be sent requests: it may once everything that it needs has happened once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// What has to happen before the process is ready.
#[derive(Debug, Default)]
pub struct Readiness(Mutex<BTreeSet<&'static str>>);

impl Readiness {
    /// Waits for one more thing, until the task is done.
    pub fn task(self: &Arc<Self>, name: &'static str) -> Task {
        self.lock().insert(name);
        Task {
            name,
            readiness: self.clone(),
        }
    }

    /// What has not happened yet.
    pub fn waiting_for(&self) -> Vec<&'static str> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that has to happen. Dropping it is no deed: a task that ends early leaves the process not ready.
#[derive(Debug)]
pub struct Task {
    name: &'static str,
    readiness: Arc<Readiness>,
}

impl Task {
    /// It happened.
    pub fn done(self) {
        self.readiness.lock().remove(self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_must_be_done() {
        let readiness = Arc::new(Readiness::default());
        let (first, second) = (readiness.task("first"), readiness.task("second"));
        first.done();
        assert_eq!(readiness.waiting_for(), ["second"]);
        drop(second);
        assert_eq!(readiness.waiting_for(), ["second"]);
    }
}
