//! Names to addresses, as this host's resolver has them at the moment.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::lookup_host;

/// Who is asked for the addresses of a name. Literals are never asked for.
#[derive(Clone, Debug, Default)]
pub enum Resolver {
    /// The system: files, DNS, and what else `/etc/nsswitch.conf` names.
    #[default]
    System,
    /// A test's own, asked anew for every connection.
    #[cfg(test)]
    Scripted(Script),
}

/// A test's answers.
#[cfg(test)]
#[derive(Clone)]
pub struct Script(std::sync::Arc<Answer>);

#[cfg(test)]
type Answer = dyn Fn(&str) -> Vec<IpAddr> + Send + Sync;

#[cfg(test)]
impl Script {
    pub(super) fn new(answer: impl Fn(&str) -> Vec<IpAddr> + Send + Sync + 'static) -> Self {
        Self(std::sync::Arc::new(answer))
    }
}

#[cfg(test)]
impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

impl Resolver {
    /// The addresses of `host`, a name or an address literal.
    pub(super) async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        match self {
            Self::System => Ok(lookup_host((host, port)).await?.collect()),
            #[cfg(test)]
            Self::Scripted(script) => Ok((script.0)(host)
                .into_iter()
                .map(|ip| SocketAddr::new(ip, port))
                .collect()),
        }
    }
}
