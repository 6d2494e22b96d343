//! The one place that opens upstream connections: resolve, judge every address, then race them (RFC 8305).

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::Settings;
use super::address::{AddressError, is_private, judge, readings};
use super::egress::EgressError;
use super::error::ConnectError;
use super::socket::Socket;

/// Head start of an address over the next one, the value RFC 8305 section 5 recommends.
const STAGGER: Duration = Duration::from_millis(250);
/// Silence after which the kernel asks whether the peer is still there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
/// Pause between such questions.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// How long sent data may stay unacknowledged (RFC 5482).
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_mins(1);

/// The same through an egress proxy, which has a connection of its own to make for every attempt.
const PROXIED_STAGGER: Duration = Duration::from_secs(2);

/// Connects to `host`, a name or an address literal, directly or through the egress proxy. Addresses that must not be
/// connected to are skipped; if none is left, the first one's reason is the error. The caller bounds the time.
pub(super) async fn dial(
    host: &str,
    port: u16,
    allow_private: bool,
    settings: &Settings,
) -> Result<Socket, ConnectError> {
    let allowed = addresses(host, port, allow_private, settings).await?;
    let direct = |addr| async move { connect(addr).await.map(Socket::from) };
    let egress = match &settings.egress {
        Some(egress) if !egress.bypass.has_name(host, port) => egress,
        _ => return race(allowed, STAGGER, direct).await,
    };
    if allowed.iter().all(|addr| egress.bypass.has_address(*addr)) {
        return race(allowed, STAGGER, direct).await;
    }
    let proxy = addresses(&egress.host, egress.port, true, settings)
        .await
        .map_err(of_the_proxy)?;
    race(allowed, PROXIED_STAGGER, |addr| {
        let (egress, proxy) = (Arc::clone(egress), proxy.clone());
        async move {
            if egress.bypass.has_address(addr) {
                return direct(addr).await;
            }
            let stream = race(proxy, STAGGER, connect).await.map_err(of_the_proxy)?;
            let tunnel = egress.tunnel(stream, addr).await;
            tunnel.map_err(ConnectError::Egress)
        }
    })
    .await
}

/// A failure of the way to the egress proxy, told as one.
fn of_the_proxy(error: ConnectError) -> ConnectError {
    match error {
        ConnectError::Resolve(error) => ConnectError::Egress(EgressError::Resolve(error)),
        ConnectError::Refused(reason) => ConnectError::Egress(EgressError::Refused(reason)),
        ConnectError::Io(error) => ConnectError::Egress(EgressError::Io(error)),
        other => other,
    }
}

/// The addresses of `host` that may be connected to, at least one, in the order of the attempts.
async fn addresses(
    host: &str,
    port: u16,
    allow_private: bool,
    settings: &Settings,
) -> Result<Vec<SocketAddr>, ConnectError> {
    if settings.forbids(host, port) {
        return Err(ConnectError::Refused(AddressError::ControlPlane));
    }
    let mut allowed = Vec::new();
    let mut refused = None;
    for addr in resolve(host, port, settings).await? {
        match judge_here(addr, allow_private, settings).await {
            Ok(()) => allowed.push(addr),
            Err(ConnectError::Refused(reason)) => {
                tracing::debug!(%addr, %reason, "address skipped");
                refused.get_or_insert(reason);
            }
            Err(other) => return Err(other),
        }
    }
    match (allowed.is_empty(), refused) {
        (false, _) => Ok(interleave(allowed)),
        (true, Some(reason)) => Err(ConnectError::Refused(reason)),
        (true, None) => Err(ConnectError::Resolve(io::Error::new(
            io::ErrorKind::NotFound,
            "the name has no address",
        ))),
    }
}

async fn resolve(
    host: &str,
    port: u16,
    settings: &Settings,
) -> Result<Vec<SocketAddr>, ConnectError> {
    let resolved = settings.resolver.resolve(host, port).await;
    resolved.map_err(ConnectError::Resolve)
}

/// [`judge`], and what only this host can know: whether the address is one of its own, and where the control plane
/// is at the moment.
async fn judge_here(
    addr: SocketAddr,
    allow_private: bool,
    settings: &Settings,
) -> Result<(), ConnectError> {
    judge(addr, allow_private, &settings.own_listeners).map_err(ConnectError::Refused)?;
    let port = addr.port();
    let listens_everywhere = |own: &SocketAddr| own.port() == port && own.ip().is_unspecified();
    if settings.own_listeners.iter().any(listens_everywhere) {
        let read = readings(addr.ip()).map(|ip| SocketAddr::new(ip, port));
        // Itself as well: a link-local address says by its scope where it is.
        if std::iter::once(addr).chain(read).any(is_local) {
            return Err(ConnectError::Refused(AddressError::OwnListener));
        }
    }
    // A public address says nothing about who is behind it: a content network answers for the control plane and for
    // upstreams on the same one. There the name, checked before, decides.
    for ip in readings(addr.ip()).filter(|ip| is_private(*ip)) {
        for (host, _) in settings.forbidden_at(port) {
            let theirs = resolve(host, port, settings).await?;
            if theirs.iter().any(|a| a.ip().to_canonical() == ip) {
                return Err(ConnectError::Refused(AddressError::ControlPlane));
            }
        }
    }
    Ok(())
}

/// True for an address of this host: packets to it would be sent from itself. A connected UDP socket tells without
/// sending any.
fn is_local(addr: SocketAddr) -> bool {
    let any: IpAddr = match addr {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0))
        .and_then(|socket| {
            socket.connect(addr)?;
            socket.local_addr()
        })
        .is_ok_and(|from| from.ip() == addr.ip())
}

/// IPv6 first, then the families in turn, each in the resolver's order (RFC 8305 section 4).
fn interleave(addrs: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let total = addrs.len();
    let (v6, v4): (Vec<_>, Vec<_>) = addrs.into_iter().partition(SocketAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut ordered = Vec::with_capacity(total);
    while ordered.len() < total {
        ordered.extend(v6.next());
        ordered.extend(v4.next());
    }
    ordered
}

/// Starts an attempt every `stagger`, or as soon as the one before failed; the first connection wins and the other
/// attempts are dropped. The error is the last attempt's, or the egress proxy's own.
async fn race<T, F>(
    addrs: Vec<SocketAddr>,
    stagger: Duration,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<T, ConnectError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ConnectError>> + Send + 'static,
{
    let mut waiting = addrs.into_iter();
    let mut attempts = JoinSet::new();
    let mut last = ConnectError::Io(io::ErrorKind::AddrNotAvailable.into());
    loop {
        let more = if let Some(addr) = waiting.next() {
            if attempts.is_empty() && waiting.len() == 0 {
                return connect(addr).await;
            }
            attempts.spawn(connect(addr));
            waiting.len() > 0
        } else {
            false
        };
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(ConnectError::Egress(error)))) if error.is_the_proxys() => {
                    return Err(ConnectError::Egress(error));
                }
                Some(Ok(Err(error))) => last = error,
                Some(Err(aborted)) => last = ConnectError::Io(io::Error::other(aborted)),
                None => return Err(last),
            },
            () = tokio::time::sleep(stagger), if more => {}
        }
    }
}

async fn connect(addr: SocketAddr) -> Result<TcpStream, ConnectError> {
    open(addr).await.map_err(ConnectError::Io)
}

async fn open(addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY);
    let options = SockRef::from(&socket);
    options.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    options.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.connect(addr).await
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::Instant;

    use tokio::net::TcpListener;

    use super::*;

    fn addrs(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|addr| addr.parse().unwrap()).collect()
    }

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    }

    /// A port at which connections are refused at once.
    async fn refusing() -> SocketAddr {
        listener().await.1
    }

    #[test]
    fn families_take_turns_and_ipv6_is_first() {
        let ordered = interleave(addrs(&["1.1.1.1:1", "1.1.1.2:1", "[::5]:1", "1.1.1.3:1"]));
        let expected = addrs(&["[::5]:1", "1.1.1.1:1", "1.1.1.2:1", "1.1.1.3:1"]);
        assert_eq!(ordered, expected);
    }

    #[tokio::test]
    async fn a_failed_attempt_starts_the_next_without_waiting() {
        let (_listener, good) = listener().await;
        let started = Instant::now();
        let raced = race(
            vec![refusing().await, refusing().await, good],
            STAGGER,
            connect,
        )
        .await
        .unwrap();
        assert_eq!(raced.peer_addr().unwrap(), good);
        assert!(started.elapsed() < STAGGER);
    }

    #[tokio::test]
    async fn an_attempt_that_hangs_gets_company_after_the_stagger() {
        let (_listener, good) = listener().await;
        // Discards what it is sent; where there is no route at all the attempt fails, which is as well.
        let hanging = "192.0.2.1:9".parse().unwrap();
        let started = Instant::now();
        let raced = race(vec![hanging, good], STAGGER, connect).await.unwrap();
        assert_eq!(raced.peer_addr().unwrap(), good);
        assert!(started.elapsed() < STAGGER * 3);
    }

    #[tokio::test]
    async fn the_last_failure_is_told_when_all_fail() {
        let failed = race(vec![refusing().await, refusing().await], STAGGER, connect)
            .await
            .unwrap_err();
        let ConnectError::Io(error) = failed else {
            panic!("{failed:?}")
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn sockets_notice_dead_peers_and_do_not_delay_small_writes() {
        let (_listener, addr) = listener().await;
        let stream = connect(addr).await.unwrap();
        assert!(stream.nodelay().unwrap());
        let options = SockRef::from(&stream);
        assert!(options.keepalive().unwrap());
        assert_eq!(options.tcp_keepalive_time().unwrap(), KEEPALIVE_AFTER);
        #[cfg(target_os = "linux")]
        assert_eq!(options.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
    }

    #[tokio::test]
    async fn a_listener_on_every_address_is_refused_on_the_hosts_own() {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        if socket.connect("192.0.2.1:9").is_err() {
            return; // a host without a network has no other address
        }
        let IpAddr::V4(host) = socket.local_addr().unwrap().ip() else {
            panic!("an IPv4 socket has an IPv4 address")
        };
        let [a, b, c, d] = host.octets().map(u16::from);
        let translated = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d);
        let hosts = [host.into(), host.to_ipv6_mapped().into(), translated.into()];
        for (own, host) in ["0.0.0.0:9901", "[::]:9901"]
            .into_iter()
            .flat_map(|own| hosts.map(|host: IpAddr| (own, host)))
        {
            let settings = Settings {
                own_listeners: addrs(&[own]),
                ..Settings::default()
            };
            let judged = |port| judge_here(SocketAddr::new(host, port), true, &settings);
            let refused = judged(9901).await.unwrap_err();
            assert!(matches!(
                refused,
                ConnectError::Refused(AddressError::OwnListener)
            ));
            judged(9902).await.unwrap();
        }
    }

    #[test]
    fn addresses_of_this_host_are_told_from_others() {
        assert!(is_local("127.0.0.1:9".parse().unwrap()));
        assert!(!is_local("192.0.2.1:9".parse().unwrap()));
    }
}
