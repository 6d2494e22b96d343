//! Which socket addresses may be connected to: a pure judgement that `dial` asks for right before every connection,
//! so that neither a literal, a name, nor a name that changes its mind can reach what a route must not reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Why an address must not be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Loopback, private, link-local, unique-local or shared (CGNAT) space, and the route does not allow it.
    #[error("the address is private and the route does not set allowPrivateAddresses")]
    Private,
    /// An address at which clouds hand out instance credentials.
    #[error("the address belongs to a cloud's metadata service, which is never connected to")]
    Metadata,
    /// Multicast or broadcast.
    #[error("the address is a multicast or broadcast address")]
    NotUnicast,
    /// A listener of this very process.
    #[error("the address is one the sidecar itself listens on")]
    OwnListener,
    /// The gateway or relay the sidecar gets credentials from.
    #[error("the address is the control plane's, which is never an upstream")]
    ControlPlane,
}

/// Judges `addr`, a literal of the route or an answer of the resolver. `own` are the listeners of this process: their
/// ports are refused on every loopback and unspecified address, and on the listener's own.
///
/// IPv4 addresses embedded in IPv6 ones (IPv4-mapped, -compatible and -translated, NAT64 of RFC 6052 and RFC 8215,
/// 6to4 of RFC 3056) are judged as the IPv4 addresses they lead to.
pub fn judge(
    addr: SocketAddr,
    allow_private: bool,
    own: &[SocketAddr],
) -> Result<(), AddressError> {
    let mut private = local_nat64(addr.ip());
    for ip in readings(addr.ip()) {
        if is_metadata(ip) {
            return Err(AddressError::Metadata);
        }
        if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(AddressError::NotUnicast);
        }
        if own.iter().any(|own| leads_to(ip, addr.port(), *own)) {
            return Err(AddressError::OwnListener);
        }
        private |= is_private(ip);
    }
    if private && !allow_private {
        return Err(AddressError::Private);
    }
    Ok(())
}

/// The address itself, IPv4 where it is IPv4-mapped, and the IPv4 addresses it leads to.
pub(super) fn readings(ip: IpAddr) -> impl Iterator<Item = IpAddr> {
    let ip = ip.to_canonical();
    let embedded = embedded(ip).into_iter().flatten().map(IpAddr::V4);
    std::iter::once(ip).chain(embedded)
}

/// True for addresses that only mean something on this host or network.
pub(super) fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            a == 0 // "this network"; 0.0.0.0 reaches loopback
                || ip.is_loopback()
                || ip.is_private()
                || (a == 100 && (64..128).contains(&b)) // shared address space, RFC 6598
                || (a == 192 && b == 0 && c == 0) // protocol assignments, RFC 6890
                || (a == 198 && (18..20).contains(&b)) // benchmarking, RFC 2544
                || a >= 240 // reserved
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
                || ip.segments()[0] & 0xffc0 == 0xfec0 // site-local, RFC 3879
        }
    }
}

fn is_metadata(ip: IpAddr) -> bool {
    const ALIBABA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
    const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
    const GOOGLE_V6: Ipv6Addr = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);
    match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip == ALIBABA || ip == AZURE,
        IpAddr::V6(ip) => {
            let [a, b, ..] = ip.segments();
            (a, b) == (0xfd00, 0xec2) || ip == GOOGLE_V6
        }
    }
}

fn leads_to(ip: IpAddr, port: u16, own: SocketAddr) -> bool {
    port == own.port() && (ip.is_loopback() || ip.is_unspecified() || ip == own.ip().to_canonical())
}

/// The IPv4 addresses `ip` leads to. RFC 6052 puts them in two places, depending on the prefix's length, and the one
/// used with the local prefix of RFC 8215 is the network's choice.
fn embedded(ip: IpAddr) -> [Option<Ipv4Addr>; 2] {
    let IpAddr::V6(ip) = ip else {
        return [None; 2];
    };
    let bytes = ip.octets();
    let at = |positions: [usize; 4]| Some(Ipv4Addr::from(positions.map(|i| bytes[i])));
    let last = at([12, 13, 14, 15]);
    match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] => [last, None],
        [0x64, 0xff9b, 1, ..] => [last, at([6, 7, 9, 10])],
        [0x2002, ..] => [at([2, 3, 4, 5]), None],
        // `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => [last, None],
        _ => [None; 2],
    }
}

/// The translator behind the local prefix is this network's own, so wherever it leads is private.
fn local_nat64(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments()[..3] == [0x64, 0xff9b, 1])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Need the route to allow them.
    pub(in crate::upstream) const PRIVATE: &[&str] = &[
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.255.255.254",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "100.127.255.255",
        "192.0.0.8",
        "198.18.0.1",
        "240.0.0.1",
        "::",
        "::1",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "fc00::1",
        "fd12:3456::1",
        "::ffff:127.0.0.1",
        "::ffff:10.1.2.3",
        "::ffff:0.0.0.0",
        "::127.0.0.1",
        "::10.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::192.168.0.1",
        "64:ff9b::100.64.0.1",
        "64:ff9b:1::1.1.1.1",
        "2002:7f00:1::1",
        "2002:a00:1::1",
        "2002:c0a8:101::1",
    ];

    /// Never connected to.
    pub(in crate::upstream) const METADATA: &[&str] = &[
        "169.254.169.254",
        "169.254.170.2",
        "169.254.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "fd00:ec2::254",
        "fd00:ec2:0:1::23",
        "fd20:ce::254",
        "::ffff:169.254.169.254",
        "::169.254.169.254",
        "::ffff:0:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::169.254.169.254",
        "64:ff9b:1:a9fe:a9:fe00::",
        "64:ff9b::100.100.100.200",
        "2002:a9fe:a9fe::1",
        "2002:a83f:8110::",
    ];

    /// Never connected to.
    pub(in crate::upstream) const NOT_UNICAST: &[&str] = &[
        "224.0.0.1",
        "239.255.255.250",
        "255.255.255.255",
        "ff02::1",
        "::ffff:224.0.0.1",
        "64:ff9b::255.255.255.255",
        "2002:e000:1::1",
    ];

    fn at_443(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 443)
    }

    #[test]
    fn public_addresses_are_allowed_in_every_notation() {
        for ip in [
            "1.1.1.1",
            "93.184.216.34",
            "172.15.255.255",
            "172.32.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "192.169.0.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
        ] {
            assert_eq!(judge(at_443(ip), false, &[]), Ok(()), "{ip}");
        }
    }

    #[test]
    fn private_addresses_need_the_route_to_allow_them_in_every_notation() {
        for ip in PRIVATE {
            assert_eq!(
                judge(at_443(ip), false, &[]),
                Err(AddressError::Private),
                "{ip}"
            );
            assert_eq!(judge(at_443(ip), true, &[]), Ok(()), "{ip}");
        }
    }

    #[test]
    fn metadata_services_are_refused_even_where_private_addresses_are_allowed() {
        for ip in METADATA {
            assert_eq!(
                judge(at_443(ip), true, &[]),
                Err(AddressError::Metadata),
                "{ip}"
            );
        }
    }

    #[test]
    fn multicast_and_broadcast_are_refused() {
        for ip in NOT_UNICAST {
            assert_eq!(
                judge(at_443(ip), true, &[]),
                Err(AddressError::NotUnicast),
                "{ip}"
            );
        }
    }

    #[test]
    fn own_listeners_are_refused_on_every_address_that_leads_to_them() {
        let own = [
            "127.0.0.1:8080".parse().unwrap(),
            "[::]:9901".parse().unwrap(),
            "10.0.0.5:7000".parse().unwrap(),
            "[::ffff:10.0.0.6]:7001".parse().unwrap(),
        ];
        for addr in [
            "127.0.0.1:8080",
            "127.0.0.2:8080",
            "0.0.0.0:8080",
            "[::1]:8080",
            "[::]:8080",
            "[::ffff:127.0.0.1]:8080",
            "[::ffff:0.0.0.0]:8080",
            "[64:ff9b::127.0.0.1]:8080",
            "[2002:7f00:1::]:8080",
            "127.0.0.1:9901",
            "10.0.0.5:7000",
            "[::ffff:10.0.0.5]:7000",
            "10.0.0.6:7001",
        ] {
            let verdict = judge(addr.parse().unwrap(), true, &own);
            assert_eq!(verdict, Err(AddressError::OwnListener), "{addr}");
        }
        for addr in ["127.0.0.1:8081", "10.0.0.5:8080", "10.0.0.6:7000"] {
            assert_eq!(judge(addr.parse().unwrap(), true, &own), Ok(()), "{addr}");
        }
    }
}
