//! The list of `--no-egress-proxy`: what is connected to directly although there is an egress proxy.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// The entries of the list. Names are compared with the upstream's as the route has it, networks with every address
/// its name resolves to.
#[derive(Clone, Debug, Default)]
pub struct Bypass(Vec<Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    what: What,
    /// Every port, if there is none.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Everything,
    /// Lower case, without a dot at the end.
    Name(Box<str>),
    /// What names below a domain end in, the dot before it included.
    Suffix(Box<str>),
    Network(IpNet),
}

/// An entry that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is neither *, a host name, .suffix, *.suffix, an IP address nor a network such as 10.0.0.0/8, with or without :PORT"
)]
pub struct EntryError(String);

impl Bypass {
    /// Reads the entries; empty ones are skipped.
    pub fn new(entries: &[String]) -> Result<Self, EntryError> {
        entries
            .iter()
            .map(|entry| entry.trim())
            .filter(|entry| !entry.is_empty())
            .map(|entry| Entry::parse(entry).ok_or_else(|| EntryError(entry.to_owned())))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// True for an upstream that is listed by its name.
    pub(in crate::upstream) fn has_name(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.at(port).any(|what| match what {
            What::Everything => true,
            What::Name(name) => **name == *host,
            What::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
            What::Network(_) => false,
        })
    }

    /// True for an address that is listed, by itself or by its network.
    pub(in crate::upstream) fn has_address(&self, addr: SocketAddr) -> bool {
        let ip = addr.ip().to_canonical();
        self.at(addr.port())
            .any(|what| matches!(what, What::Network(network) if network.contains(&ip)))
    }

    fn at(&self, port: u16) -> impl Iterator<Item = &What> {
        self.0
            .iter()
            .filter(move |entry| entry.port.is_none_or(|only| only == port))
            .map(|entry| &entry.what)
    }
}

impl Entry {
    fn parse(text: &str) -> Option<Self> {
        if let Some(network) = network(text) {
            return Some(Self {
                what: What::Network(network),
                port: None,
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !text.ends_with(']') => (host, Some(port.parse().ok()?)),
            _ => (text, None),
        };
        let unbracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let what = match (unbracketed, network(host)) {
            (Some(inside), _) => What::Network(network(inside).filter(|n| n.addr().is_ipv6())?),
            (None, Some(network @ IpNet::V4(_))) => What::Network(network),
            // Without brackets nobody can say where the address ends.
            (None, Some(IpNet::V6(_))) => return None,
            (None, None) => name(host)?,
        };
        Some(Self { what, port })
    }
}

/// An address or a network; bits of an address beyond its network's prefix are ignored.
fn network(text: &str) -> Option<IpNet> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip.to_canonical().into());
    }
    text.parse::<IpNet>().ok()
}

fn name(host: &str) -> Option<What> {
    if host == "*" {
        return Some(What::Everything);
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let suffix = host.strip_prefix("*.").or_else(|| host.strip_prefix('.'));
    let labels = suffix.unwrap_or(&host);
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    // What ends in a number is an address that was mistyped (WHATWG URL, section 3.5), never a name.
    let last = labels.rsplit('.').next().unwrap_or_default();
    if !labels.split('.').all(is_label) || last.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(match suffix {
        Some(suffix) => What::Suffix(format!(".{suffix}").into()),
        None => What::Name(host.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &str) -> Bypass {
        let entries: Vec<_> = entries.split(',').map(str::to_owned).collect();
        Bypass::new(&entries).unwrap()
    }

    #[test]
    fn names_are_listed_alone_by_suffix_or_all_together() {
        for (entries, host, port, listed) in [
            ("a.example", "a.example", 443, true),
            ("A.Example.", "a.EXAMPLE", 443, true),
            ("a.example", "a.example.", 443, true),
            ("a.example", "b.a.example", 443, false),
            ("a.example", "ba.example", 443, false),
            (".a.example", "b.a.example", 443, true),
            (".a.example", "c.b.a.example", 443, true),
            (".a.example", "a.example", 443, false),
            (".a.example", "ba.example", 443, false),
            ("*.a.example", "b.a.example", 443, true),
            ("*.a.example", "a.example", 443, false),
            ("a.example:8443", "a.example", 8443, true),
            ("a.example:8443", "a.example", 443, false),
            (" x.example , .svc:80 ", "a.ns.svc", 80, true),
            (" x.example , .svc:80 ", "a.ns.svc", 81, false),
            ("*", "a.example", 443, true),
            ("*:80", "a.example", 443, false),
            ("*:80", "a.example", 80, true),
            ("", "a.example", 443, false),
            ("10.0.0.0/8", "10.1.2.3", 443, false),
        ] {
            let bypass = list(entries);
            assert_eq!(
                bypass.has_name(host, port),
                listed,
                "{entries}: {host}:{port}"
            );
        }
    }

    #[test]
    fn addresses_are_listed_alone_or_by_network_in_every_notation() {
        for (entries, addr, listed) in [
            ("10.1.2.3", "10.1.2.3:443", true),
            ("10.1.2.3", "[::ffff:10.1.2.3]:443", true),
            ("::ffff:10.1.2.3", "10.1.2.3:443", true),
            ("10.1.2.3", "10.1.2.4:443", false),
            ("10.0.0.0/8", "10.255.0.1:443", true),
            ("10.1.2.3/8", "10.255.0.1:443", true),
            ("10.0.0.0/8", "11.0.0.1:443", false),
            ("10.0.0.0/8:80", "10.0.0.1:443", false),
            ("10.0.0.0/8:80", "10.0.0.1:80", true),
            ("fd00::/8", "[fd12::1]:443", true),
            ("fd00::/8", "[fe80::1]:443", false),
            ("[fd00::/8]:80", "[fd12::1]:80", true),
            ("[fd00::1]:80", "[fd00::1]:80", true),
            ("[fd00::1]:80", "[fd00::1]:81", false),
            ("[fd00::1]", "[fd00::1]:81", true),
            ("fd00::1", "[fd00::1]:81", true),
            ("0.0.0.0/0", "[fd00::1]:81", false),
            ("*", "10.1.2.3:443", false),
        ] {
            let bypass = list(entries);
            let addr = addr.parse().unwrap();
            assert_eq!(bypass.has_address(addr), listed, "{entries}: {addr}");
        }
    }

    #[test]
    fn what_cannot_be_an_entry_is_refused_with_it() {
        for entry in [
            "http://a.example",
            "a example",
            "a.example:port",
            "a.example:99999",
            "a.*.example",
            "*a.example",
            "**",
            ".",
            "*.",
            "a..example",
            "10.0.0.0/33",
            "10.0.0",
            "10.0.0.256",
            "[10.0.0.1]:80",
            "[fd00::1",
            "fd00::/129",
        ] {
            let refused = Bypass::new(&[entry.to_owned()]).unwrap_err();
            assert_eq!(refused, EntryError(entry.to_owned()));
            assert!(refused.to_string().contains(entry));
        }
    }
}
