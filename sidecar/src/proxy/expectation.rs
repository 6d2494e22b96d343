//! Bodies that were announced with `Expect: 100-continue`, and are held back until the upstream wants them.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Sleep;

use super::body::BodyError;

/// A body that was announced with `Expect: 100-continue` (RFC 9110 section 10.1.1) and is held back: taking its first
/// byte is what makes the server side ask the agent for it.
#[derive(Debug, Default)]
pub struct Expectation(Mutex<Announced>);

#[derive(Debug, Default)]
struct Announced {
    wanted: Wanted,
    waker: Option<Waker>,
}

/// Whether the upstream wants an announced body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wanted {
    #[default]
    NotYet,
    Yes,
    /// It has answered without: what the agent sends next is another request, never this body.
    No,
    /// That answer has ended, and with it the use of the connection whose request lacks a body.
    Over,
}

impl Expectation {
    /// The upstream asked for the body.
    pub fn asked(&self) {
        self.advance(Wanted::NotYet, Wanted::Yes);
    }

    /// The upstream answered finally. True if it never asked; then [`over`](Self::over) has to follow.
    pub fn answered(&self) -> bool {
        self.advance(Wanted::NotYet, Wanted::No)
    }

    /// The answer without the body has ended: lets go of the body and of what waits for it.
    pub fn over(&self) {
        self.advance(Wanted::No, Wanted::Over);
    }

    fn advance(&self, from: Wanted, to: Wanted) -> bool {
        let mut announced = self.lock();
        let advances = announced.wanted == from;
        if advances {
            announced.wanted = to;
            if let Some(waker) = announced.waker.take() {
                waker.wake();
            }
        }
        advances
    }

    fn lock(&self) -> MutexGuard<'_, Announced> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds an announced body back until the upstream wants it, or for a while if it says nothing.
pub struct ContinueGate {
    expectation: Arc<Expectation>,
    patience: Pin<Box<Sleep>>,
}

impl ContinueGate {
    /// Opens as `expectation` says, or after `patience`.
    pub fn new(expectation: Arc<Expectation>, patience: Duration) -> Self {
        Self {
            expectation,
            patience: Box::pin(tokio::time::sleep(patience)),
        }
    }

    /// Ready when the body may go, or never will.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let mut announced = self.expectation.lock();
        if announced.wanted == Wanted::NotYet && self.patience.as_mut().poll(cx).is_ready() {
            announced.wanted = Wanted::Yes;
        }
        match announced.wanted {
            Wanted::Yes => Poll::Ready(Ok(())),
            Wanted::Over => Poll::Ready(Err(BodyError::Unwanted)),
            Wanted::NotYet | Wanted::No => {
                announced.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    async fn opened(expectation: &Arc<Expectation>) -> Option<Result<(), BodyError>> {
        let mut gate = ContinueGate::new(Arc::clone(expectation), PATIENCE);
        timeout(PATIENCE * 2, poll_fn(|cx| gate.poll(cx)))
            .await
            .ok()
    }

    #[tokio::test(start_paused = true)]
    async fn an_announced_body_goes_when_it_is_asked_for_or_patience_ends() {
        let expectation = Arc::new(Expectation::default());
        assert!(
            matches!(opened(&expectation).await, Some(Ok(()))),
            "patience"
        );
        assert!(!expectation.answered(), "the body is under way");
        let expectation = Arc::new(Expectation::default());
        expectation.asked();
        assert!(matches!(opened(&expectation).await, Some(Ok(()))));
        assert!(!expectation.answered());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_nobody_asked_for_never_goes_and_is_let_go_with_the_answer() {
        let expectation = Arc::new(Expectation::default());
        assert!(expectation.answered());
        assert!(
            opened(&expectation).await.is_none(),
            "held though patience ended"
        );
        expectation.asked();
        assert!(
            opened(&expectation).await.is_none(),
            "a late 100 changes nothing"
        );
        expectation.over();
        assert!(matches!(
            opened(&expectation).await,
            Some(Err(BodyError::Unwanted))
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_back_hears_of_the_end() {
        let expectation = Arc::new(Expectation::default());
        let told = Arc::clone(&expectation);
        let held = tokio::spawn(async move { opened(&told).await });
        tokio::task::yield_now().await;
        assert!(expectation.answered());
        expectation.over();
        assert!(matches!(
            held.await.unwrap(),
            Some(Err(BodyError::Unwanted))
        ));
    }
}
