//! Names that someone has to look at again: a set, so that it neither grows with the number of changes nor loses one.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// Names marked by many and taken by one.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    names: Mutex<BTreeSet<String>>,
    notify: Notify,
}

impl Touched {
    /// Has a name looked at.
    pub(crate) fn mark(&self, name: &str) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if !names.contains(name) {
            names.insert(name.to_owned());
            self.notify.notify_one();
        }
    }

    /// Waits until there is a name, and takes all there are. May be dropped at any time: nothing is lost.
    pub(crate) async fn take(&self) -> BTreeSet<String> {
        loop {
            let names = {
                let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *names)
            };
            if !names.is_empty() {
                return names;
            }
            self.notify.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_name_marked_often_is_taken_once_and_none_is_lost() {
        let touched = Arc::new(Touched::default());
        for name in ["a", "b", "a"] {
            touched.mark(name);
        }
        assert_eq!(
            touched.take().await.into_iter().collect::<Vec<_>>(),
            ["a", "b"]
        );
        let waiting = tokio::spawn({
            let touched = touched.clone();
            async move { touched.take().await }
        });
        tokio::task::yield_now().await;
        touched.mark("c");
        assert!(waiting.await.unwrap().contains("c"));
    }
}
