//! The listener, its connections, and one call from its request to the last byte of its answer.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Front;
use super::answer::{Answer, Reply};
use super::render::{self, Saying};
use super::state::{Call, State, UnderWay};
use super::weather::Outage;
use crate::raw::Message;

/// A port that stays ours while nothing listens on it.
pub(super) struct Address {
    reserved: TcpSocket,
}

impl Address {
    /// Takes an address; port 0 is a free one.
    pub(super) fn reserve(addr: SocketAddr) -> Self {
        Self {
            reserved: bound(addr),
        }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.reserved.local_addr().unwrap()
    }

    fn listen(&self) -> TcpListener {
        bound(self.addr()).listen(1024).unwrap()
    }
}

/// A socket that shares its port with others of ours; only those that listen get connections.
fn bound(addr: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(addr).unwrap();
    socket
}

pub(super) async fn accept(address: Address, state: Arc<State>) {
    let mut outage = state.outage.subscribe();
    let mut connections = JoinSet::new();
    let mut listener = Some(address.listen());
    loop {
        let now = *outage.borrow_and_update();
        if now == Outage::Refused {
            listener = None;
            connections.shutdown().await;
        } else {
            listener.get_or_insert_with(|| address.listen());
        }
        state.seen_outage.send_replace(Some(now));
        loop {
            tokio::select! {
                changed = outage.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                Ok((stream, _)) = incoming(listener.as_ref()) => {
                    connections.spawn(serve(stream, Arc::clone(&state)));
                    while connections.try_join_next().is_some() {}
                }
            }
        }
    }
}

async fn incoming(
    listener: Option<&TcpListener>,
) -> io::Result<(tokio::net::TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A caller's connection.
struct Channel {
    stream: Box<dyn Duplex>,
    buffer: Vec<u8>,
    socket: Arc<TcpStream>,
    client_certificate: Option<Vec<u8>>,
}

/// The caller has hung up.
struct Gone;

impl Channel {
    async fn open(stream: tokio::net::TcpStream, state: &State) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let socket = TcpStream::from(stream.as_fd().try_clone_to_owned()?);
        let tls = state.tls.lock().unwrap().clone();
        let mut client_certificate = None;
        let stream: Box<dyn Duplex> = match tls {
            None => Box::new(stream),
            Some(config) => {
                let stream = TlsAcceptor::from(config).accept(stream).await?;
                let certificates = stream.get_ref().1.peer_certificates();
                client_certificate = certificates
                    .and_then(|certificates| certificates.first())
                    .map(|certificate| certificate.to_vec());
                Box::new(stream)
            }
        };
        Ok(Self {
            stream,
            buffer: Vec::new(),
            socket: Arc::new(socket),
            client_certificate,
        })
    }

    async fn request(&mut self) -> Result<Message, Gone> {
        loop {
            match Message::take(&mut self.buffer) {
                Ok(Some(request)) => return Ok(request),
                Ok(None) => self.read().await?,
                Err(reason) => panic!("the control plane got a malformed request: {reason}"),
            }
        }
    }

    async fn read(&mut self) -> Result<(), Gone> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) | Err(_) => Err(Gone),
            Ok(_) => Ok(()),
        }
    }

    async fn gone(&mut self) {
        while self.read().await.is_ok() {}
    }

    /// Runs `work` unless the caller hangs up first.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Gone> {
        tokio::select! {
            done = work => Ok(done),
            () = self.gone() => Err(Gone),
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        let written = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        written.await.map_err(|_: io::Error| Gone)
    }
}

async fn serve(stream: tokio::net::TcpStream, state: Arc<State>) {
    // A caller that refuses our certificate, or has none of its own, never sends a request.
    let Ok(mut channel) = Channel::open(stream, &state).await else {
        return;
    };
    while let Ok(request) = channel.request().await {
        if answer(&request, &state, &mut channel).await.is_err() {
            return;
        }
    }
}

/// Answers one request; [`Gone`] when the connection is to be closed.
async fn answer(request: &Message, state: &Arc<State>, channel: &mut Channel) -> Result<(), Gone> {
    let outage = *state.outage.borrow();
    match outage {
        Outage::Hangs => {
            channel.gone().await;
            return Err(Gone);
        }
        Outage::Unavailable => {
            return channel
                .write(&Saying::Unavailable.render(state.front))
                .await;
        }
        Outage::None | Outage::Refused | Outage::Database => {}
    }
    if let Some(refusal) = refusal(request, state) {
        return channel.write(&refusal).await;
    }
    let Some((id, refresh)) = parse(request, state.front) else {
        return channel.write(&render::no_such_path(state.front)).await;
    };
    if !is_uuid(&id) {
        let refused = Saying::refused(400, "invalid_connection_id", "Invalid connection ID");
        return channel.write(&refused.render(state.front)).await;
    }
    let header = |name| request.header(name).map(str::to_owned);
    let call = Call {
        refresh,
        at: Instant::now(),
        api_key: header("x-api-key"),
        authorization: header("authorization"),
        rejected: header("x-nexus-rejected"),
        client_certificate: channel.client_certificate.clone(),
    };
    let under_way = UnderWay::enter(state, &id, call, Arc::clone(&channel.socket));
    let mut answer = if outage == Outage::Database {
        database_down(refresh)
    } else {
        state.plan(&id, refresh)
    };
    if let Some(fixed) = state.with(&id, |c| c.account.is_none().then(|| c.fixed(refresh))) {
        answer = answer.over(fixed);
    }
    let reply = perform(&answer, state, &id, refresh, channel).await?;
    send(&reply.bytes, answer.pace, under_way, channel).await?;
    if let Some(number) = reply.delivers {
        state.delivered(&id, number);
    }
    Ok(())
}

fn database_down(refresh: bool) -> Answer {
    let message = if refresh {
        "Connection not active or not found"
    } else {
        "Connection not found"
    };
    Reply::Says(Saying::refused(404, "connection_not_found", message)).into()
}

/// What the front says before it looks at the path.
fn refusal(request: &Message, state: &State) -> Option<Vec<u8>> {
    let access = state.access.lock().unwrap();
    if let Some(token) = &access.bearer
        && request.header("authorization") != Some(&format!("Bearer {token}"))
    {
        return Some(render::not_authenticated());
    }
    let key = access.api_key.as_deref()?;
    let (status, error) = match request.header("x-api-key").map(str::trim) {
        Some(sent) if sent == key => return None,
        Some(_) => (403, "invalid_api_key"),
        None => (401, "missing_api_key"),
    };
    let message = error.replace('_', " ");
    Some(Saying::refused(status, error, &message).render(state.front))
}

/// The connection id and whether this is a refresh, for a path of this front.
fn parse(request: &Message, front: Front) -> Option<(String, bool)> {
    let path = request.target();
    let (id, refresh) = match front {
        Front::Broker => {
            let rest = path.strip_prefix("/connections/")?;
            match rest.split_once('/')? {
                (id, "refresh") => (id, true),
                (id, "token") => (id, false),
                _ => return None,
            }
        }
        Front::Gateway | Front::Grpc => match path.strip_prefix("/v1/token/") {
            Some(id) => (id, false),
            None => (path.strip_prefix("/v1/refresh/")?, true),
        },
    };
    let method = if refresh { "POST" } else { "GET" };
    (request.method() == method && !id.contains(['/', '?'])).then(|| (id.to_owned(), refresh))
}

/// The canonical form only: the framework reads others too, but a sidecar that sends them has not normalized.
fn is_uuid(id: &str) -> bool {
    id.len() == 36
        && id.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}

/// Bytes to send, and which stored token they deliver.
struct Ready {
    bytes: Vec<u8>,
    delivers: Option<usize>,
}

async fn perform(
    answer: &Answer,
    state: &Arc<State>,
    id: &str,
    refresh: bool,
    channel: &mut Channel,
) -> Result<Ready, Gone> {
    let mut delivers = None;
    let mut reply = answer.reply.clone();
    if matches!(reply, Reply::Genuine) {
        let account = state.with(id, |c| {
            let account = c.account.as_ref()?;
            Some((account.token(), account.history.len().checked_sub(1)))
        });
        match account {
            Some((saying, number)) if !refresh => {
                delivers = number.filter(|_| matches!(saying, Saying::Credential { .. }));
                reply = Reply::Says(saying);
            }
            Some(_) => {
                // The broker goes on with a refresh whose caller has hung up.
                let work = tokio::spawn(refresh_account(Arc::clone(state), id.to_owned()));
                let saying = channel.during(work).await?;
                reply = Reply::Says(saying.expect("a refresh does not panic"));
            }
            None => return Err(Gone),
        }
    }
    if answer.delay > Duration::ZERO {
        channel.during(tokio::time::sleep(answer.delay)).await?;
    }
    let bytes = match reply {
        Reply::Says(saying) => saying.render(state.front),
        Reply::Raw(bytes) => bytes,
        Reply::Hang => {
            channel.gone().await;
            return Err(Gone);
        }
        Reply::Close | Reply::Genuine => return Err(Gone),
    };
    if answer.lost {
        return Err(Gone);
    }
    Ok(Ready { bytes, delivers })
}

/// As the broker does it: read the refresh token, call the provider, store what it answers. Nothing keeps two
/// of these apart.
async fn refresh_account(state: Arc<State>, id: String) -> Saying {
    let (begun, latency) =
        state.account(&id, |account| (account.begin_refresh(), account.latency()));
    let refresh_token = match begun {
        Ok(refresh_token) => refresh_token,
        Err(refused) => return refused,
    };
    tokio::time::sleep(latency / 2).await;
    let grant = state.account(&id, |account| account.grant(&refresh_token));
    tokio::time::sleep(latency / 2).await;
    state.account(&id, |account| account.finish_refresh(grant))
}

/// Sends an answer. The call is over before its last byte leaves, since the caller may call again at that byte.
async fn send(
    bytes: &[u8],
    pace: Option<Duration>,
    under_way: UnderWay<'_>,
    channel: &mut Channel,
) -> Result<(), Gone> {
    let Some(pause) = pace else {
        drop(under_way);
        return channel.write(bytes).await;
    };
    let last = bytes.len().saturating_sub(1);
    for byte in &bytes[..last] {
        channel.write(&[*byte]).await?;
        channel.during(tokio::time::sleep(pause)).await?;
    }
    drop(under_way);
    channel.write(&bytes[last..]).await
}
