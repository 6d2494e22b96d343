//! `nexus-sidecar probe`: asks the admin endpoint of a running sidecar, without a runtime or a client library,
//! since it runs every few seconds in every pod.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};

const PATIENCE: Duration = Duration::from_secs(2);

/// Succeeds if `/readyz` answers 200.
pub fn run(admin: SocketAddr) -> anyhow::Result<()> {
    let admin = reachable(admin);
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)
        .with_context(|| format!("no sidecar answers at {admin}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream
        .take(64 * 1024)
        .read_to_string(&mut answer)
        .context("the answer broke off")?;
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    bail!(
        "not ready: {}",
        answer.rsplit("\r\n\r\n").next().unwrap_or_default()
    )
}

/// The address to connect to for one that was listened on.
fn reachable(admin: SocketAddr) -> SocketAddr {
    let ip = match admin.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, admin.port())
}
