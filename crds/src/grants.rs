//! What a namespace may have: the origins and connections that others granted.

use std::collections::{BTreeMap, BTreeSet};

use crate::matcher::upstream::{UpstreamUrl, default_port};
use crate::names::ConnectionId;
use crate::status::Problem;

/// What stands between a route and what it asks for.
#[derive(Clone, Debug, Default)]
pub enum Grants {
    /// Files on the machine that runs the sidecar: whoever writes them holds the credentials anyway.
    #[default]
    Local,
    /// A cluster, where teams share a control plane.
    Cluster(ClusterGrants),
}

/// Grants of a cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterGrants {
    /// Whether a route may name an upstream that no administrator granted.
    pub inline_upstreams: InlineUpstreams,
    /// Whether `http://` upstreams are allowed at all.
    pub allow_insecure_upstreams: bool,
    /// By provider: the gateway's `api_base_url`, whose origin counts where there is no NexusProvider.
    pub gateway_urls: BTreeMap<String, String>,
    /// NexusProviders that there are and that cannot be read: what they forbid is not known, so their routes wait.
    pub unreadable_providers: BTreeSet<String>,
    /// By namespace: connections it may use although another namespace named them first.
    pub connections: BTreeMap<String, ConnectionGrant>,
}

/// Whether a route may name an upstream that no administrator granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InlineUpstreams {
    /// No: the origin must be granted.
    #[default]
    Deny,
    /// Yes, for clusters where one team writes everything.
    Allow,
}

/// Connections that a namespace may use although another named them first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionGrant {
    /// Every one.
    All,
    /// These.
    Listed(BTreeSet<ConnectionId>),
}

impl ConnectionGrant {
    /// Reads the Namespace annotation `nexus.io/connections`: `*`, or ids separated by commas. What is no id grants nothing.
    pub fn from_annotation(text: &str) -> Self {
        let entries = || text.split(',').map(str::trim);
        if entries().any(|entry| entry == "*") {
            return Self::All;
        }
        Self::Listed(entries().filter_map(|entry| entry.parse().ok()).collect())
    }

    /// `true` if the connection may be used.
    pub fn allows(&self, id: ConnectionId) -> bool {
        match self {
            Self::All => true,
            Self::Listed(ids) => ids.contains(&id),
        }
    }
}

/// `scheme://host:port`; the leftmost label of a granted host may be `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    tls: bool,
    /// Without the `*.` of a wildcard.
    host: String,
    wildcard: bool,
    port: u16,
}

impl Origin {
    /// The origin of a URL.
    pub(crate) fn of(url: &str) -> Result<Self, Problem> {
        let UpstreamUrl {
            tls, host, port, ..
        } = UpstreamUrl::parse(url)?;
        Ok(Self {
            tls,
            host,
            wildcard: false,
            port,
        })
    }

    /// Parses an entry of `origins`. An error is a message.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (plain, wildcard) = match text.split_once("://*.") {
            Some((scheme, rest)) => (format!("{scheme}://{rest}"), true),
            None => (text.to_owned(), false),
        };
        let url = UpstreamUrl::parse(&plain).map_err(|problem| problem.message)?;
        if !url.base_path.is_empty() {
            return Err("must not have a path".to_owned());
        }
        if url.host.contains('*') {
            return Err("may have `*` for the leftmost label only".to_owned());
        }
        if wildcard && (!url.host.contains('.') || url.host.parse::<std::net::Ipv4Addr>().is_ok()) {
            return Err("is too wide: `*` needs a domain of two labels behind it".to_owned());
        }
        Ok(Self {
            tls: url.tls,
            host: url.host,
            wildcard,
            port: url.port,
        })
    }

    /// `true` if this grants the other one.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let host = if self.wildcard {
            let label = other
                .host
                .strip_suffix(&self.host)
                .and_then(|rest| rest.strip_suffix('.'));
            label.is_some_and(|label| !label.is_empty() && !label.contains('.'))
        } else {
            self.host == other.host
        };
        host && self.tls == other.tls && self.port == other.port && !other.wildcard
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let star = if self.wildcard { "*." } else { "" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]", self.host)?;
        } else {
            write!(f, "{scheme}://{star}{}", self.host)?;
        }
        if self.port == default_port(self.tls) {
            return Ok(());
        }
        write!(f, ":{}", self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_covers_itself_and_a_wildcard_one_label() {
        for (granted, url, expected) in [
            ("https://h.example", "https://H.example:443/api", true),
            ("https://h.example", "http://h.example", false),
            ("https://h.example", "https://h.example:8443", false),
            ("https://h.example:8443", "https://h.example:8443/x", true),
            ("https://*.h.example", "https://a.h.example", true),
            ("https://*.h.example", "https://h.example", false),
            ("https://*.h.example", "https://a.b.h.example", false),
            ("https://*.h.example", "https://evilh.example", false),
            ("https://*.h.example", "https://.h.example", false),
            ("http://[::1]:80", "http://[::1]", true),
        ] {
            let covers =
                Origin::of(url).is_ok_and(|url| Origin::parse(granted).unwrap().covers(&url));
            assert_eq!(covers, expected, "{granted} {url}");
        }
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in [
            "h.example",
            "https://h.example/api",
            "https://*",
            "https://*.com",
            "https://a.*.example",
            "https://*.*.example.com",
            "https://*.0.0.1",
            "https://u@h.example",
            "",
        ] {
            assert!(Origin::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_origin_is_written_as_it_is_granted() {
        for text in [
            "https://h.example",
            "http://h.example:8080",
            "https://*.h.example",
            "https://[::1]:8443",
        ] {
            assert_eq!(Origin::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_connection_annotation_lists_ids_or_all() {
        let id: ConnectionId = "11111111-1111-4111-8111-111111111111".parse().unwrap();
        let listed =
            ConnectionGrant::from_annotation(" 11111111-1111-4111-8111-111111111111, nonsense");
        assert!(listed.allows(id));
        assert!(!ConnectionGrant::from_annotation("").allows(id));
        assert!(ConnectionGrant::from_annotation("x, *").allows(id));
    }
}
