//! HTTP/1.1 connections: one request at a time, kept in a last-in-first-out list in between, so that the fewest
//! connections stay busy and the rest age out.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::{Request, Response, StatusCode, Version};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::runtime::Handle;

use super::body::{Lease, Reusable, UpstreamBody};
use super::error::{ConnectError, SendError};
use super::pool::{Pool, Sent};
use super::stream::{Received, Stream};
use super::{IDLE_TICKS, RequestBody};

/// Largest head of an answer, and most that is read ahead of its reader, in bytes. Well above what any server or
/// client takes, and low enough that a thousand slow readers fit into a small container.
const MAX_BUFFER: usize = 256 * 1024;
/// How long an answered connection may take to become usable again, for instance because the request's body is
/// still on its way.
const MAX_SETTLE: Duration = Duration::from_secs(5);

/// A connection that carries no request.
pub(super) struct Connection<B: RequestBody> {
    sender: http1::SendRequest<B>,
    received: Received,
    /// It has carried a request to its answer.
    used: bool,
    pool: Weak<Pool<B>>,
}

impl<B: RequestBody> Connection<B> {
    /// Speaks HTTP/1.1 over `stream`. `pool` is where the connection goes when it has carried a request.
    pub(super) async fn open(
        stream: Stream,
        pool: Weak<Pool<B>>,
    ) -> Result<Box<Self>, ConnectError> {
        let received = stream.received();
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ConnectError::Http1)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "upstream connection ended"
                );
            }
        });
        Ok(Box::new(Self {
            sender,
            received,
            used: false,
            pool,
        }))
    }

    /// Sends `request`, or returns it if the connection had ended before any of it was written. Dropping the future
    /// closes the connection.
    pub(super) async fn send(
        mut self: Box<Self>,
        mut request: Request<B>,
    ) -> Result<Sent<B>, SendError> {
        *request.version_mut() = Version::HTTP_11;
        let before = self.received.bytes();
        match self.sender.try_send_request(request).await {
            Ok(answer) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Err(SendError::UnaskedUpgrade)
            }
            Ok(answer) => Ok(Sent::Answer(self.lend(answer))),
            Err(mut failed) => match failed.take_message() {
                Some(request) => Ok(Sent::Not(request)),
                None => Err(self.failure(failed.into_error(), before)),
            },
        }
    }

    fn lend(
        mut self: Box<Self>,
        answer: Response<hyper::body::Incoming>,
    ) -> Response<UpstreamBody> {
        self.used = true;
        answer.map(|body| UpstreamBody::new(body, Lease::Http1(self)))
    }

    fn failure(&self, error: hyper::Error, received_before: u64) -> SendError {
        if error.is_user() {
            SendError::RequestBody(error)
        } else if self.received.bytes() == received_before {
            SendError::Unanswered {
                source: error,
                reused: self.used,
            }
        } else {
            SendError::BadAnswer(error)
        }
    }

    fn keep(self: Box<Self>) {
        if let Some(pool) = self.pool.upgrade() {
            pool.keep(self);
        }
    }
}

impl<B: RequestBody> Reusable for Connection<B> {
    fn give_back(mut self: Box<Self>) {
        if self.sender.is_ready() {
            return self.keep();
        }
        if self.sender.is_closed() {
            return;
        }
        // Outside a runtime the process is ending, and so may the connection.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                let settled = tokio::time::timeout(MAX_SETTLE, self.sender.ready()).await;
                if matches!(settled, Ok(Ok(()))) {
                    self.keep();
                }
            });
        }
    }
}

/// The connections that carry no request, each with the number of reaper's rounds it has seen there.
pub(super) struct Idle<B: RequestBody> {
    list: Mutex<VecDeque<(Box<Connection<B>>, u8)>>,
    limit: usize,
}

impl<B: RequestBody> Idle<B> {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            list: Mutex::default(),
            limit,
        }
    }

    /// The connection used last.
    pub(super) fn take(&self) -> Option<Box<Connection<B>>> {
        self.lock().pop_back().map(|(connection, _)| connection)
    }

    /// Keeps a connection; beyond the limit the one unused longest is closed.
    pub(super) fn keep(&self, connection: Box<Connection<B>>) {
        let mut list = self.lock();
        list.push_back((connection, 0));
        if list.len() > self.limit {
            list.pop_front();
        }
    }

    /// Closes all of them.
    pub(super) fn clear(&self) {
        let closed = std::mem::take(&mut *self.lock());
        drop(closed);
    }

    /// Closes what has not been used for [`IDLE_TICKS`] rounds, and forgets what the upstream closed.
    pub(super) fn reap(&self) {
        self.lock().retain_mut(|(connection, rounds)| {
            *rounds += 1;
            *rounds < IDLE_TICKS && !connection.sender.is_closed()
        });
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Box<Connection<B>>, u8)>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
