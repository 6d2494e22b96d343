//! What can go wrong between the sidecar and its egress proxy.

use std::borrow::Cow;
use std::io;

use http::StatusCode;

use super::credentials::CredentialsError;
use crate::upstream::address::AddressError;
use crate::upstream::error::reason_of;
use crate::upstream::tls::{self, Peer};

/// Why the egress proxy did not connect to an upstream.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// The proxy's name has no address.
    #[error("the egress proxy's name cannot be resolved")]
    Resolve(#[source] io::Error),
    /// Every address of the proxy is one that must not be connected to; the reason is the first one's.
    #[error("the egress proxy's address is refused")]
    Refused(#[source] AddressError),
    /// No address of the proxy accepted a connection.
    #[error("the egress proxy cannot be connected to")]
    Io(#[source] io::Error),
    /// The TLS handshake with the proxy failed.
    #[error("the TLS handshake with the egress proxy failed")]
    Handshake(#[source] io::Error),
    /// The file of `--egress-proxy-credentials` cannot be used.
    #[error("--egress-proxy-credentials")]
    Credentials(#[source] CredentialsError),
    /// CONNECT cannot be written.
    #[error("CONNECT cannot be written for the upstream's address")]
    Request(#[source] http::Error),
    /// CONNECT could not be sent, or its answer is not HTTP, too large or cut off.
    #[error("the egress proxy gave no answer to CONNECT that can be read")]
    Answer(#[source] hyper::Error),
    /// The proxy wants other credentials than it got.
    #[error("the egress proxy answered CONNECT with {status}")]
    Unauthorized {
        /// 407, or 401 as tinyproxy has it for a wrong password.
        status: StatusCode,
        /// True if some were sent.
        sent: bool,
    },
    /// The proxy answered anything else that is not a success.
    #[error("the egress proxy answered CONNECT with {0}")]
    Status(StatusCode),
}

impl EgressError {
    /// True if another address of the upstream would fare no better, since the proxy itself is at fault.
    pub(in crate::upstream) fn is_the_proxys(&self) -> bool {
        match self {
            Self::Resolve(_)
            | Self::Refused(_)
            | Self::Io(_)
            | Self::Handshake(_)
            | Self::Credentials(_)
            | Self::Unauthorized { .. } => true,
            Self::Request(_) | Self::Answer(_) | Self::Status(_) => false,
        }
    }

    /// What the agent is told: the cause, without addresses and paths.
    pub(in crate::upstream) fn detail(&self) -> Cow<'static, str> {
        match self {
            Self::Resolve(_) => "the egress proxy's host name cannot be resolved".into(),
            Self::Refused(reason) => format!("the egress proxy is refused: {reason}").into(),
            Self::Io(error) => {
                let reason = reason_of(error).unwrap_or("the connection failed");
                format!("the egress proxy cannot be connected to: {reason}").into()
            }
            Self::Handshake(error) => tls::explain(error, Peer::EgressProxy),
            Self::Credentials(_) => {
                "the sidecar's file of --egress-proxy-credentials cannot be used".into()
            }
            Self::Request(_) => "CONNECT cannot be written for the upstream's address".into(),
            Self::Answer(error) if error.is_parse() => {
                "the egress proxy's answer to CONNECT is malformed or its head too large".into()
            }
            Self::Answer(_) => {
                "the egress proxy closed the connection before it answered CONNECT".into()
            }
            Self::Unauthorized { status, sent: true } => format!(
                "the egress proxy does not accept the user name and password of --egress-proxy-credentials ({})",
                status.as_str()
            )
            .into(),
            Self::Unauthorized { status, sent: false } => format!(
                "the egress proxy demands a user name and password ({}): the sidecar needs --egress-proxy-credentials",
                status.as_str()
            )
            .into(),
            Self::Status(status) => {
                format!("the egress proxy answered CONNECT with {status}").into()
            }
        }
    }
}
