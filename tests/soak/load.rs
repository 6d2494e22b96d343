//! Agents: each sends one request after the other over a kept connection, and counts what comes back.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use nexus_tests::upstream::hex;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::judge::{ID, Judge, SENT, SHA};
use crate::{BUFFER, ROUTES, TENANTS, TOKEN_PREFIX};

/// Longest pause of an agent between two requests.
const PAUSE_MILLIS: u64 = 100;
/// After an outage, until failures are no longer put down to it.
const AFTERMATH: Duration = Duration::from_secs(10);

/// What came back to the agents.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    next: AtomicU64,
    outage: AtomicBool,
    inner: Mutex<Counts>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) succeeded: u64,
    /// 401s of the upstream that came back.
    pub(crate) rejections: u64,
    /// Everything else, by code or kind.
    pub(crate) codes: BTreeMap<String, u64>,
    /// Sent while the control plane was there, and had been for a while.
    pub(crate) sent_in_peace: u64,
    pub(crate) succeeded_in_peace: u64,
    /// What an agent must never see: the first of each kind.
    pub(crate) surprises: BTreeMap<String, String>,
    pub(crate) surprising: u64,
    ended: Option<tokio::time::Instant>,
}

impl Tally {
    pub(crate) fn counts(&self) -> Counts {
        self.inner.lock().unwrap().clone()
    }

    pub(crate) fn outage(&self, begins: bool) {
        self.outage.store(begins, Ordering::SeqCst);
        let mut inner = self.inner.lock().unwrap();
        inner.ended = Some(tokio::time::Instant::now());
    }

    fn is_peace(&self) -> bool {
        let ended = self.inner.lock().unwrap().ended;
        !self.outage.load(Ordering::SeqCst) && ended.is_none_or(|at| at.elapsed() > AFTERMATH)
    }

    fn count(&self, peace: bool, outcome: Outcome) {
        let mut inner = self.inner.lock().unwrap();
        inner.sent += 1;
        inner.sent_in_peace += u64::from(peace);
        match outcome {
            Outcome::Success => {
                inner.succeeded += 1;
                inner.succeeded_in_peace += u64::from(peace);
            }
            Outcome::Rejected => inner.rejections += 1,
            Outcome::Unavailable => {
                let code = "broker_unavailable".to_owned();
                *inner.codes.entry(code).or_default() += 1;
            }
            Outcome::Surprise(kind, what) => {
                inner.surprising += 1;
                *inner.codes.entry(kind.clone()).or_default() += 1;
                inner.surprises.entry(kind).or_insert(what);
            }
        }
    }
}

enum Outcome {
    Success,
    Rejected,
    Unavailable,
    /// Kind, and all of it.
    Surprise(String, String),
}

/// One request to be sent.
struct Job {
    route: u32,
    tenant: u32,
    method: Method,
    content: Bytes,
    chunked: bool,
}

pub(crate) struct Agent {
    proxy: SocketAddr,
    random: fastrand::Rng,
    judge: Arc<Judge>,
    tally: Arc<Tally>,
    sender: Option<SendRequest<Content>>,
}

impl Agent {
    pub(crate) fn new(proxy: SocketAddr, seed: u64, judge: Arc<Judge>, tally: Arc<Tally>) -> Self {
        Self {
            proxy,
            random: fastrand::Rng::with_seed(seed),
            judge,
            tally,
            sender: None,
        }
    }

    pub(crate) async fn run(mut self, stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            let job = self.job();
            self.work(&job).await;
            let pause = self.random.u64(0..PAUSE_MILLIS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Asks a connection until it is served, for so long at most. True if it was.
    pub(crate) async fn insist(mut self, route: u32, tenant: u32, limit: Duration) -> bool {
        let job = Job {
            route,
            tenant,
            method: Method::GET,
            content: Bytes::new(),
            chunked: false,
        };
        let served = async {
            while !self.work(&job).await {
                tokio::time::sleep(Duration::from_millis(PAUSE_MILLIS)).await;
            }
        };
        tokio::time::timeout(limit, served).await.is_ok()
    }

    /// Sends a request and counts what comes of it. True for success.
    async fn work(&mut self, job: &Job) -> bool {
        let id = self.tally.next.fetch_add(1, Ordering::SeqCst);
        let peace = self.tally.is_peace();
        let outcome = self.send(job, id).await;
        self.judge.answered(id);
        let success = matches!(outcome, Outcome::Success);
        // Peace that ended meanwhile is none.
        self.tally.count(peace && self.tally.is_peace(), outcome);
        success
    }

    fn job(&mut self) -> Job {
        // Half of the requests go to few connections, so that some are always in use and others fall idle.
        let tenant = if self.random.bool() {
            self.random.u32(0..TENANTS)
        } else {
            self.random.u32(0..TENANTS / 10)
        };
        let length = match self.random.u32(0..20) {
            0..10 => 0,
            10..16 => self.random.usize(1..4096),
            16..19 => self.random.usize(4096..BUFFER),
            _ => self.random.usize(BUFFER + 1..2 * BUFFER),
        };
        let fill = self.random.u8(..);
        let content: Vec<u8> = (0..length)
            .map(|at| fill.wrapping_add(at.to_le_bytes()[0]))
            .collect();
        let method = if length == 0 {
            Method::GET
        } else {
            Method::POST
        };
        Job {
            route: self.random.u32(0..ROUTES),
            tenant,
            method,
            content: content.into(),
            chunked: length > 0 && self.random.bool(),
        }
    }

    async fn send(&mut self, job: &Job, id: u64) -> Outcome {
        match self.exchange(job, id).await {
            Ok(outcome) => outcome,
            Err(error) => {
                self.sender = None;
                let what = format!(
                    "{error:?} to {} with {} bytes, chunked: {}",
                    job.method,
                    job.content.len(),
                    job.chunked
                );
                Outcome::Surprise("no answer".to_owned(), what)
            }
        }
    }

    async fn exchange(&mut self, job: &Job, id: u64) -> hyper::Result<Outcome> {
        let mut sender = match self.sender.take() {
            Some(sender) if !sender.is_closed() => sender,
            Some(_) | None => connect(self.proxy).await?,
        };
        sender.ready().await?;
        let sent = u64::try_from(self.judge.started().elapsed().as_micros()).unwrap();
        let request = Request::builder()
            .method(job.method.clone())
            .uri(format!("/{}/{}", job.route, job.tenant))
            .header("host", "localhost")
            .header("x-nexus-provider", format!("p{}", job.route))
            .header("x-nexus-tenant", format!("tenant-{}", job.tenant))
            .header(ID, id)
            .header(SENT, sent)
            .header(SHA, hex(&Sha256::digest(&job.content)))
            .body(Content {
                content: Full::new(job.content.clone()),
                chunked: job.chunked,
            })
            .unwrap();
        let response = sender.send_request(request).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        self.sender = Some(sender);
        let text = String::from_utf8_lossy(&body);
        if text.contains(TOKEN_PREFIX) {
            return Ok(Outcome::Surprise("a token".to_owned(), text.into_owned()));
        }
        let header = |name| {
            parts
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let retry_after = header("retry-after").and_then(|value| value.parse::<u64>().ok());
        Ok(match (parts.status.as_u16(), header("x-nexus-error")) {
            (200, None) => Outcome::Success,
            (401, None) => Outcome::Rejected,
            (503, Some("broker_unavailable")) if retry_after.is_some_and(|after| after > 0) => {
                Outcome::Unavailable
            }
            (status, code) => Outcome::Surprise(
                code.map_or_else(|| status.to_string(), str::to_owned),
                format!("{status} {code:?}, Retry-After {retry_after:?}: {text}"),
            ),
        })
    }
}

async fn connect(proxy: SocketAddr) -> hyper::Result<SendRequest<Content>> {
    let stream = TcpStream::connect(proxy)
        .await
        .expect("the sidecar listens");
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its error is that of the request which was under way, if there was one.
    tokio::spawn(connection);
    Ok(sender)
}

/// Content with a length, or in chunks.
struct Content {
    content: Full<Bytes>,
    chunked: bool,
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.content).poll_frame(context)
    }

    fn size_hint(&self) -> SizeHint {
        if self.chunked {
            SizeHint::new()
        } else {
            self.content.size_hint()
        }
    }
}
