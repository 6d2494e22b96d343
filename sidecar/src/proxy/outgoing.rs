//! What is sent, before it is signed: kept for as long as it may be sent again, with another credential.

use std::borrow::Cow;

use http::header::UPGRADE;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Uri};

use super::headers;
use super::resolve::Target;
use crate::credential::{Credential, QueryPair};
use crate::error::{Code, ProxyError};
use crate::routes::Route;

/// A request as it is sent, but for what the credential puts on it.
#[derive(Clone)]
pub(super) struct Outgoing {
    pub(super) method: Method,
    /// Path and query, without what the strategy adds to the query.
    pub(super) target: PathAndQuery,
    pub(super) headers: HeaderMap,
}

impl Outgoing {
    pub(super) fn new(parts: Parts, target: &Target) -> Result<Self, ProxyError> {
        if parts.headers.contains_key(UPGRADE) && is_websocket(&parts.headers) {
            return Err(ProxyError::new(
                Code::UpgradeRefused,
                "this version does not carry WebSockets",
            ));
        }
        Ok(Self {
            method: parts.method,
            target: target.path_and_query.clone(),
            headers: parts.headers,
        })
    }

    /// Step 4. Leaves exactly what is sent. Doing it again, for another credential, only takes away more.
    pub(super) fn prepare(
        &mut self,
        route: &Route,
        credential: &Credential,
    ) -> Result<(), ProxyError> {
        headers::prepare(&mut self.headers, &route.compiled, &route.host, credential);
        let Some(query) = self.target.query() else {
            return Ok(());
        };
        if let Cow::Owned(clean) = headers::prepare_query(query, credential.sets_query()) {
            let separator = if clean.is_empty() { "" } else { "?" };
            self.target =
                PathAndQuery::try_from(format!("{}{separator}{clean}", self.target.path()))
                    .map_err(|_| ProxyError::new(Code::BadRequest, "the query is not valid"))?;
        }
        Ok(())
    }

    pub(super) fn uri(target: PathAndQuery, injected: &[QueryPair]) -> Result<Uri, ProxyError> {
        if injected.is_empty() {
            return Ok(Uri::from(target));
        }
        let mut text = target.as_str().to_owned();
        for pair in injected {
            match text.find('?') {
                Some(mark) if mark + 1 == text.len() => {}
                Some(_) => text.push('&'),
                None => text.push('?'),
            }
            text.push_str(&pair.encoded);
        }
        PathAndQuery::try_from(text).map(Uri::from).map_err(|_| {
            ProxyError::new(
                Code::CredentialInvalid,
                "the credential does not fit into a query",
            )
        })
    }
}

fn is_websocket(headers: &HeaderMap) -> bool {
    headers
        .get_all(UPGRADE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| {
            value
                .split(',')
                .any(|protocol| protocol.trim().eq_ignore_ascii_case("websocket"))
        })
}
