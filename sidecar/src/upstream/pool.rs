//! The connections to one upstream: which of them carries a request, and when another one is opened.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::{Request, Response};
use nexus_crds::matcher::Upstream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::body::UpstreamBody;
use super::dial::dial;
use super::error::{ConnectError, SendError};
use super::stream::Stream;
use super::target::{Target, make_http1};
use super::tls::TlsError;
use super::{RequestBody, Upstreams, h1, h2};

/// New connections that may end before they carried a request until it is given up.
const MAX_CLOSED_AT_ONCE: u8 = 3;
/// Longest time to connect, in place of absurd ones that overflow.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_hours(24);

/// The connections to one upstream.
pub struct Pool<B: RequestBody> {
    me: Weak<Self>,
    upstreams: Weak<Upstreams<B>>,
    target: Target,
    /// True if requests take connections of their own; false if they share some, or it is not known yet.
    exclusive: AtomicBool,
    idle: h1::Idle<B>,
    shared: Mutex<Shared<B>>,
}

/// HTTP/2 connections, and the one attempt to open another connection.
struct Shared<B: RequestBody> {
    connections: Vec<h2::Connection<B>>,
    attempt: Option<Attempt>,
}

/// How an attempt to connect ended, for everyone who waits for it; `None` while it lasts.
type Attempt = watch::Receiver<Option<Result<(), Arc<ConnectError>>>>;

/// What became of a request.
pub(super) enum Sent<B> {
    /// It was answered.
    Answer(Response<UpstreamBody>),
    /// The connection ended before any of it was written; it can go to another one.
    Not(Request<B>),
}

/// Until when a request may wait for connections. Starts with the first wait, so that a request that waits for none
/// does not read the clock.
struct Deadline {
    limit: Duration,
    at: Option<Instant>,
}

impl<B: RequestBody> Pool<B> {
    pub(super) fn new(
        upstreams: &Arc<Upstreams<B>>,
        upstream: &Upstream,
    ) -> Result<Arc<Self>, TlsError> {
        let target = Target::new(&upstreams.tls, upstream)?;
        let exclusive = target.always_http1();
        let limit = upstreams.settings.max_idle_per_upstream;
        Ok(Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            upstreams: Arc::downgrade(upstreams),
            target,
            exclusive: AtomicBool::new(exclusive),
            idle: h1::Idle::new(limit),
            shared: Mutex::new(Shared {
                connections: Vec::new(),
                attempt: None,
            }),
        }))
    }

    /// Sends one request, whose URI is in origin form and which has a `Host`; over HTTP/2 both become `:scheme`,
    /// `:authority` and `:path`. Ready when the answer's head is there. `connect_timeout` bounds the time without a
    /// connection: names, egress proxy, TLS and HTTP/2 settings included.
    ///
    /// A request that cannot be written to a kept connection, because it ended in the meantime, goes to another one;
    /// any other failure is the caller's to judge. Dropping the future cancels the request.
    pub async fn send(
        &self,
        mut request: Request<B>,
        connect_timeout: Duration,
    ) -> Result<Response<UpstreamBody>, SendError> {
        let mut deadline = Deadline {
            limit: connect_timeout.min(MAX_CONNECT_TIMEOUT),
            at: None,
        };
        let mut closed_at_once = 0;
        while closed_at_once < MAX_CLOSED_AT_ONCE {
            let sent = if self.exclusive.load(Ordering::Relaxed) {
                match self.idle.take() {
                    Some(connection) => connection
                        .send(request)
                        .await
                        .inspect_err(|error| self.distrust_idle(error))?,
                    // Boxed: it is large, and most requests never come here.
                    None => match Box::pin(self.connect(&mut deadline)).await? {
                        Some(connection) => connection.send(request).await?,
                        None => continue,
                    },
                }
            } else {
                match self.room_or_attempt(&mut deadline) {
                    Ok(room) => self.send_shared(room, request).await?,
                    Err(attempt) => {
                        let Some(room) = self.joined(attempt, &mut deadline).await? else {
                            closed_at_once += u8::from(self.has_closed_again());
                            continue;
                        };
                        self.send_shared(room, request).await?
                    }
                }
            };
            request = match sent {
                Sent::Answer(answer) => return Ok(answer),
                Sent::Not(request) => request,
            };
            closed_at_once += u8::from(deadline.at.is_some());
        }
        Err(ConnectError::ClosedAtOnce.into())
    }

    /// Puts back a connection that carried its request.
    pub(super) fn keep(&self, connection: Box<h1::Connection<B>>) {
        self.idle.keep(connection);
    }

    /// A round of the reaper.
    pub(super) fn reap(&self) {
        self.idle.reap();
        self.lock().connections.retain_mut(h2::Connection::stays);
    }

    pub(super) fn ca_bundle(&self) -> Option<&Arc<str>> {
        self.target.tls.as_ref()?.ca_bundle.as_ref()
    }

    async fn send_shared(
        &self,
        room: h2::Room<B>,
        mut request: Request<B>,
    ) -> Result<Sent<B>, SendError> {
        self.target.make_http2(&mut request)?;
        match room.send(request).await? {
            Sent::Not(mut request) => {
                make_http1(&mut request)?;
                Ok(Sent::Not(request))
            }
            answer @ Sent::Answer(_) => Ok(answer),
        }
    }

    /// Closes the connections that carry no request, if one that was kept turned out to have been closed by the
    /// upstream. Others of the same age probably were as well, and nobody has read that yet: a request that is
    /// repeated gets one that was in use since, or a new one.
    fn distrust_idle(&self, error: &SendError) {
        if let SendError::Unanswered { reused: true, .. } = error {
            self.idle.clear();
        }
    }

    /// Room on a shared connection, or the attempt to open another one, which is started if there is none.
    fn room_or_attempt(&self, deadline: &mut Deadline) -> Result<h2::Room<B>, Attempt> {
        let mut shared = self.lock();
        if let Some(room) = shared.room() {
            return Ok(room);
        }
        // An attempt whose sender is gone without a word was ended from outside.
        if let Some(attempt) = &shared.attempt
            && attempt.has_changed().is_ok()
        {
            return Err(attempt.clone());
        }
        let attempt = self.attempt(deadline);
        shared.attempt = Some(attempt.clone());
        Err(attempt)
    }

    /// True if a shared connection was opened and not even it is there any more.
    fn has_closed_again(&self) -> bool {
        let closed = self
            .lock()
            .connections
            .iter()
            .all(h2::Connection::is_closed);
        closed && !self.exclusive.load(Ordering::Relaxed)
    }

    /// Opens a connection in a task of its own, so that the request that asked first may be cancelled.
    fn attempt(&self, deadline: &mut Deadline) -> Attempt {
        let (outcome, attempt) = watch::channel(None);
        let mut deadline = deadline.started();
        if let Some(pool) = self.me.upgrade() {
            tokio::spawn(async move {
                let connected = match pool.connect(&mut deadline).await {
                    Ok(Some(connection)) => {
                        pool.keep(connection);
                        Ok(())
                    }
                    Ok(None) => Ok(()),
                    Err(error) => Err(Arc::new(error)),
                };
                // First forgotten, then told, so that nobody who was told joins it again.
                pool.lock().attempt = None;
                outcome.send_replace(Some(connected));
            });
        }
        attempt
    }

    /// Waits for an attempt. If it failed, returns room that others left in the meantime, or the failure.
    async fn joined(
        &self,
        mut attempt: Attempt,
        deadline: &mut Deadline,
    ) -> Result<Option<h2::Room<B>>, SendError> {
        let waited = timeout_at(deadline.at(), attempt.wait_for(Option::is_some)).await;
        let failure = match waited {
            Ok(Ok(outcome)) => match &*outcome {
                Some(Err(error)) => Arc::clone(error),
                Some(Ok(())) | None => return Ok(None),
            },
            Ok(Err(_)) => Arc::new(ConnectError::Abandoned),
            Err(_) => Arc::new(ConnectError::Timeout(deadline.limit)),
        };
        let room = self.lock().room();
        room.map(Some).ok_or(SendError::Connect(failure))
    }

    /// Opens a connection: a shared one is added to the others, one for a single request is returned.
    async fn connect(
        &self,
        deadline: &mut Deadline,
    ) -> Result<Option<Box<h1::Connection<B>>>, ConnectError> {
        let Some(upstreams) = self.upstreams.upgrade() else {
            return Err(ConnectError::Abandoned);
        };
        upstreams.start_reaper();
        timeout_at(deadline.at(), self.open(&upstreams))
            .await
            .map_err(|_| ConnectError::Timeout(deadline.limit))?
    }

    async fn open(
        &self,
        upstreams: &Upstreams<B>,
    ) -> Result<Option<Box<h1::Connection<B>>>, ConnectError> {
        let target = &self.target;
        let socket = dial(
            &target.host,
            target.port,
            target.allow_private,
            &upstreams.settings,
        )
        .await?;
        let (stream, http2) = match &target.tls {
            None => (Stream::from(socket), target.always_http2()),
            Some(tls) => {
                let config = tls
                    .config(&upstreams.tls)
                    .await
                    .map_err(ConnectError::Tls)?;
                let stream = TlsConnector::from(config)
                    .connect(tls.name.clone(), socket)
                    .await
                    .map_err(ConnectError::Handshake)?;
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                if !http2 && target.always_http2() {
                    return Err(ConnectError::NotHttp2);
                }
                (Stream::from(stream), http2)
            }
        };
        if http2 {
            let connection = h2::Connection::open(stream).await?;
            self.lock().connections.push(connection);
            self.exclusive.store(false, Ordering::Relaxed);
            Ok(None)
        } else {
            let connection = h1::Connection::open(stream, Weak::clone(&self.me)).await?;
            self.exclusive.store(true, Ordering::Relaxed);
            Ok(Some(connection))
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared<B>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deadline {
    fn at(&mut self) -> Instant {
        *self.at.get_or_insert_with(|| Instant::now() + self.limit)
    }

    /// A copy that runs, too.
    fn started(&mut self) -> Self {
        Self {
            limit: self.limit,
            at: Some(self.at()),
        }
    }
}

impl<B: RequestBody> Shared<B> {
    /// Room on the first connection that has some, so that those opened for a peak run empty afterwards.
    fn room(&mut self) -> Option<h2::Room<B>> {
        self.connections
            .retain(|connection| !connection.is_closed());
        self.connections.iter_mut().find_map(h2::Connection::room)
    }
}
