//! Shutdown: one trigger, many watchers, and a way to wait until the last watcher is gone.

use std::convert::Infallible;

use tokio::sync::{mpsc, watch};

/// Makes a connected pair.
pub fn pair() -> (Trigger, Watcher) {
    let (signal, receiver) = watch::channel(false);
    let (alive, last) = mpsc::channel(1);
    (
        Trigger { signal, last },
        Watcher {
            receiver,
            _alive: alive,
        },
    )
}

/// Starts the shutdown.
#[derive(Debug)]
pub struct Trigger {
    signal: watch::Sender<bool>,
    last: mpsc::Receiver<Infallible>,
}

impl Trigger {
    /// Tells every watcher, without waiting for them.
    pub fn start(&self) {
        self.signal.send_replace(true);
    }

    /// Resolves when every watcher was dropped.
    pub async fn finished(mut self) {
        self.last.recv().await;
    }
}

/// Held by what has to finish before the process may end.
#[derive(Clone, Debug)]
pub struct Watcher {
    receiver: watch::Receiver<bool>,
    _alive: mpsc::Sender<Infallible>,
}

impl Watcher {
    /// Resolves when the shutdown starts.
    pub async fn started(&mut self) {
        if self.receiver.wait_for(|&started| started).await.is_err() {
            // The trigger is gone without a shutdown: nothing will ever start one.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_trigger_waits_for_the_last_watcher() {
        let (trigger, mut watcher) = pair();
        let second = watcher.clone();
        trigger.start();
        watcher.started().await;
        let finished = tokio::spawn(trigger.finished());
        drop(watcher);
        tokio::task::yield_now().await;
        assert!(!finished.is_finished());
        drop(second);
        finished.await.unwrap();
    }
}
