//! What of a request's body can be sent again: the pieces that went by so far, and the rest that the agent still has.
//!
//! The buffer fills while the body streams, so the first attempt waits for nothing. Pieces are shared, not copied. A
//! body that outgrows the route's `replay.maxBodyBytes`, or the memory all buffers may use, is let go of and not sent
//! again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::timeout;

/// Bytes that all buffers of the process may hold.
const REPLAY_BYTES: u64 = 32 * 1024 * 1024;
/// How long the first attempt may take to let go of a body. It does so when it is polled next, unless its connection
/// is stuck with an upstream that reads no more.
const LETTING_GO: Duration = Duration::from_secs(1);

/// The body of one request, for sending it again. `B` is what brings it.
#[derive(Debug)]
pub struct ReplayBuffer<B = Incoming> {
    state: Mutex<State<B>>,
    returned: Notify,
    limit: u64,
    budget: Arc<AtomicU64>,
}

#[derive(Debug)]
struct State<B> {
    stage: Stage,
    pieces: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    bytes: u64,
    rest: Option<B>,
    /// Of the attempt that sends the body.
    sender: Option<Waker>,
}

/// How far the buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The body streams by.
    Filling,
    /// All of it has.
    Complete,
    /// It did not fit, or is not needed any more.
    Gone,
    /// The attempt that sends it has to let go of it.
    Wanted,
}

/// A part of a body that was kept.
#[derive(Debug)]
pub enum Piece {
    /// Some bytes.
    Data(Bytes),
    /// Its trailer section.
    Trailers(HeaderMap),
}

impl<B> ReplayBuffer<B> {
    /// An empty buffer for `limit` bytes. `budget` counts what all buffers hold.
    pub fn new(limit: u64, budget: &Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                stage: Stage::Filling,
                pieces: Vec::new(),
                trailers: None,
                bytes: 0,
                rest: None,
                sender: None,
            }),
            returned: Notify::new(),
            limit,
            budget: Arc::clone(budget),
        })
    }

    /// The attempt that sends the body asks before each piece. False: it has to give the rest back and end.
    pub(super) fn may_go_on(&self, cx: &Context<'_>) -> bool {
        let mut state = self.lock();
        match state.stage {
            Stage::Wanted => false,
            Stage::Filling => {
                let sender = &mut state.sender;
                if sender.as_ref().is_none_or(|it| !it.will_wake(cx.waker())) {
                    *sender = Some(cx.waker().clone());
                }
                true
            }
            Stage::Complete | Stage::Gone => true,
        }
    }

    /// A piece went by.
    pub(super) fn keep(&self, data: &Bytes) {
        let mut state = self.lock();
        if state.stage != Stage::Filling {
            return;
        }
        let length = data.len() as u64;
        let held = self.budget.fetch_add(length, Ordering::Relaxed) + length;
        state.bytes += length;
        if state.bytes > self.limit || held > REPLAY_BYTES {
            self.let_go(&mut state);
        } else {
            state.pieces.push(data.clone());
        }
    }

    /// The trailer section went by, as the agent sent it.
    pub(super) fn keep_trailers(&self, trailers: &HeaderMap) {
        let mut state = self.lock();
        if state.stage == Stage::Filling {
            state.trailers = Some(trailers.clone());
        }
    }

    /// The body has ended.
    pub(super) fn complete(&self) {
        let mut state = self.lock();
        if state.stage == Stage::Filling {
            state.stage = Stage::Complete;
        }
    }

    /// The attempt that sent the body has ended before the body did.
    pub(super) fn give_back(&self, rest: B) {
        let mut state = self.lock();
        if matches!(state.stage, Stage::Filling | Stage::Wanted) {
            state.rest = Some(rest);
            drop(state);
            self.returned.notify_one();
        }
    }

    /// What was kept, from its beginning.
    pub(super) fn piece(&self, index: usize) -> Option<Piece> {
        let state = self.lock();
        let data = state.pieces.get(index).cloned().map(Piece::Data);
        data.or_else(|| {
            let trailers = state.trailers.as_ref()?;
            (index == state.pieces.len()).then(|| Piece::Trailers(trailers.clone()))
        })
    }

    /// Whether the body can still be sent again.
    pub fn holds(&self) -> bool {
        self.lock().stage != Stage::Gone
    }

    /// Takes the body from the attempt that sends it: the rest that the agent has not sent yet, if there is any.
    /// `None` if the body cannot be sent again; the first attempt then goes on undisturbed.
    pub async fn take_back(&self) -> Option<Option<B>> {
        {
            let mut state = self.lock();
            match state.stage {
                Stage::Gone => return None,
                Stage::Complete => return Some(None),
                Stage::Filling | Stage::Wanted => state.stage = Stage::Wanted,
            }
            if let Some(sender) = state.sender.take() {
                sender.wake();
            }
        }
        // A time-out is seen below: there is no rest then.
        let _ = timeout(LETTING_GO, async {
            while self.lock().rest.is_none() {
                self.returned.notified().await;
            }
        })
        .await;
        let mut state = self.lock();
        state.stage = Stage::Filling;
        let rest = state.rest.take();
        if rest.is_none() {
            self.let_go(&mut state);
        }
        rest.map(Some)
    }

    /// The body is not needed again.
    pub fn discard(&self) {
        self.let_go(&mut self.lock());
    }

    fn let_go(&self, state: &mut State<B>) {
        self.budget.fetch_sub(state.bytes, Ordering::Relaxed);
        state.stage = Stage::Gone;
        state.bytes = 0;
        state.pieces = Vec::new();
        state.trailers = None;
        state.rest = None;
    }

    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Drop for ReplayBuffer<B> {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.budget.fetch_sub(state.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(limit: u64) -> (Arc<ReplayBuffer<&'static str>>, Arc<AtomicU64>) {
        let budget = Arc::default();
        (ReplayBuffer::new(limit, &budget), budget)
    }

    fn kept(buffer: &ReplayBuffer<&'static str>) -> Vec<u8> {
        let mut all = Vec::new();
        let mut index = 0;
        while let Some(Piece::Data(data)) = buffer.piece(index) {
            all.extend_from_slice(&data);
            index += 1;
        }
        all
    }

    #[tokio::test]
    async fn a_body_that_went_by_can_be_taken_again() {
        let (buffer, budget) = buffer(10);
        buffer.keep(&Bytes::from_static(b"01234"));
        buffer.keep(&Bytes::from_static(b"56789"));
        buffer.complete();
        assert_eq!(buffer.take_back().await, Some(None));
        assert_eq!(kept(&buffer), b"0123456789");
        assert_eq!(budget.load(Ordering::Relaxed), 10);
        drop(buffer);
        assert_eq!(budget.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_body_past_the_limit_is_let_go_of() {
        let (buffer, budget) = buffer(9);
        buffer.keep(&Bytes::from_static(b"01234"));
        buffer.keep(&Bytes::from_static(b"56789"));
        assert!(!buffer.holds() && kept(&buffer).is_empty());
        buffer.complete();
        assert_eq!(buffer.take_back().await, None);
        assert_eq!(budget.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn buffers_share_one_budget() {
        let budget = Arc::new(AtomicU64::new(REPLAY_BYTES - 4));
        let buffer = ReplayBuffer::<&str>::new(100, &budget);
        buffer.keep(&Bytes::from_static(b"0123"));
        assert!(buffer.holds());
        buffer.keep(&Bytes::from_static(b"4"));
        assert!(!buffer.holds());
        assert_eq!(budget.load(Ordering::Relaxed), REPLAY_BYTES - 4);
    }

    #[tokio::test]
    async fn the_rest_comes_back_from_an_attempt_that_is_told_to_end() {
        let (buffer, _) = buffer(10);
        buffer.keep(&Bytes::from_static(b"0"));
        let cx = Context::from_waker(Waker::noop());
        assert!(buffer.may_go_on(&cx));
        let shared = Arc::clone(&buffer);
        let taken = tokio::spawn(async move { shared.take_back().await });
        tokio::task::yield_now().await;
        assert!(!buffer.may_go_on(&cx));
        buffer.give_back("rest");
        assert_eq!(taken.await.unwrap(), Some(Some("rest")));
        assert!(buffer.may_go_on(&cx), "the next attempt fills it further");
        buffer.keep(&Bytes::from_static(b"1"));
        assert_eq!(kept(&buffer), b"01");
    }

    #[tokio::test]
    async fn the_rest_of_an_attempt_that_died_is_there_at_once() {
        let (buffer, _) = buffer(10);
        buffer.give_back("rest");
        assert_eq!(buffer.take_back().await, Some(Some("rest")));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_is_stuck_keeps_its_body() {
        let (buffer, _) = buffer(10);
        assert_eq!(buffer.take_back().await, None);
        let cx = Context::from_waker(Waker::noop());
        assert!(buffer.may_go_on(&cx), "it goes on undisturbed");
        assert!(!buffer.holds());
    }
}
