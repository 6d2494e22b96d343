//! Step 4, prepare: what of the agent's request may reach the upstream. Pure.
//!
//! A request carries few headers and the lists are long, so each header is judged by name once, instead of
//! looking every listed name up.

use std::borrow::Cow;

use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, IF_RANGE, RANGE,
    SEC_WEBSOCKET_PROTOCOL, TE, TRAILER, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use nexus_crds::header::{self, alike};
use nexus_crds::matcher::{CompiledRoute, HeaderRules, Scrub};

use crate::credential::{Credential, QueryPair};

/// What happens to a header of the agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Forward,
    /// Belongs to one connection (RFC 9110 section 7.6.1), or to the sidecar; nothing brings it back.
    Never,
    /// Could authenticate, or says where the request came from; `headers.keep` brings it back.
    UnlessKept,
}

fn fate(name: &HeaderName) -> Fate {
    let name = name.as_str();
    if name.contains('_') {
        return fate_of(&name.replace('_', "-"));
    }
    fate_of(name)
}

fn fate_of(name: &str) -> Fate {
    match name {
        "connection"
        | "keep-alive"
        | "proxy-connection"
        | "transfer-encoding"
        | "upgrade"
        | "http2-settings"
        | "proxy-authenticate"
        | "proxy-authentication-info"
        | "proxy-authorization"
        | "host"
        | "x-http-method-override"
        | "x-method-override"
        | "x-http-method"
        | "x-original-url"
        | "x-rewrite-url" => Fate::Never,
        "cookie2"
        | "forwarded"
        | "via"
        | "x-forwarded"
        | "x-forwarded-for"
        | "x-forwarded-host"
        | "x-forwarded-port"
        | "x-forwarded-proto"
        | "x-forwarded-prefix"
        | "x-forwarded-server"
        | "x-forwarded-scheme"
        | "x-forwarded-ssl"
        | "x-real-ip"
        | "x-client-ip"
        | "x-cluster-client-ip"
        | "true-client-ip"
        | "cf-connecting-ip" => Fate::UnlessKept,
        _ if header::is_credential(name) => Fate::UnlessKept,
        other if other.starts_with("x-nexus-") => Fate::Never,
        _ => Fate::Forward,
    }
}

/// Set or removed here whatever the agent sends.
fn is_ours(name: &HeaderName, route: &CompiledRoute, credential: &Credential) -> bool {
    let HeaderRules { set, remove, .. } = &route.headers;
    credential.sets_headers().any(|ours| alike(ours, name))
        || remove.iter().any(|ours| alike(ours, name))
        || set.iter().any(|(ours, _)| alike(ours, name))
}

/// Leaves of the agent's headers what may reach the upstream, and adds what the route sets.
///
/// What `Connection` names is gone already, since the rules must not see it either. Signing comes after this and may
/// rely on the result being what is sent.
pub fn prepare(
    headers: &mut HeaderMap,
    route: &CompiledRoute,
    host: &HeaderValue,
    credential: &Credential,
) {
    let (mut trailers, mut announced, mut keyed) = (false, false, false);
    let (mut coded, mut lengths) = (false, 0);
    let mut doomed = Vec::new();
    for (name, value) in &*headers {
        trailers |= name == TE && accepts_trailers(value);
        announced |= name == TRAILER;
        keyed |= name == SEC_WEBSOCKET_PROTOCOL;
        coded |= name == TRANSFER_ENCODING;
        lengths += u32::from(name == CONTENT_LENGTH);
        let leaves = match fate(name) {
            Fate::Forward => name == TE || is_ours(name, route, credential),
            // The upstream's own takes its place below.
            Fate::Never => name != HOST,
            Fate::UnlessKept => !is_kept(name, route) || is_ours(name, route, credential),
        };
        if leaves {
            doomed.push(name.clone());
        }
    }
    for name in &doomed {
        headers.remove(name);
    }
    if coded || lengths > 1 {
        // The message is framed anew from what the parser made of it: one framing reaches the upstream.
        headers.remove(CONTENT_LENGTH);
    }
    if keyed {
        strip_websocket_key(headers);
    }
    if announced {
        filter_trailer_announcement(headers, route, credential);
    }
    for (name, value) in &route.headers.set {
        headers.insert(name.clone(), value.clone());
    }
    if route.response.scrub == Scrub::Block {
        // A credential pieced together from ranges would pass the scrubber.
        headers.remove(RANGE);
        headers.remove(IF_RANGE);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if !route.response.pass_compression {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    headers.insert(HOST, host.clone());
}

fn is_kept(name: &HeaderName, route: &CompiledRoute) -> bool {
    route.headers.keep.iter().any(|kept| alike(kept, name))
        || (*name == COOKIE && route.response.pass_cookies)
}

/// Drops the fields of a trailer section that could not have come as headers either.
pub fn filter_trailers(trailers: &mut HeaderMap, route: &CompiledRoute, credential: &Credential) {
    let doomed: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| !may_trail(name, route, credential))
        .cloned()
        .collect();
    for name in doomed {
        trailers.remove(name);
    }
}

/// RFC 9110 section 6.5.1: nothing that frames, routes or authenticates may come in a trailer.
fn may_trail(name: &HeaderName, route: &CompiledRoute, credential: &Credential) -> bool {
    fate(name) == Fate::Forward
        && !is_ours(name, route, credential)
        && ![
            CONTENT_LENGTH,
            TRAILER,
            TE,
            EXPECT,
            http::header::CONTENT_TYPE,
            http::header::CONTENT_ENCODING,
        ]
        .contains(name)
        && !name.as_str().starts_with("x-amz-")
}

/// Removes the hop-by-hop fields of a message that its `Connection` names.
pub fn remove_connection_named(headers: &mut HeaderMap) {
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        // Framing and addressing are not the agent's to hide from us.
        .filter(|name| {
            *name != CONTENT_LENGTH && *name != HOST && *name != TE && *name != TRANSFER_ENCODING
        })
        .collect();
    for name in named {
        headers.remove(name);
    }
}

fn accepts_trailers(te: &HeaderValue) -> bool {
    te.to_str().unwrap_or_default().split(',').any(|coding| {
        let coding = coding.split(';').next().unwrap_or_default();
        coding.trim().eq_ignore_ascii_case("trailers")
    })
}

fn filter_trailer_announcement(
    headers: &mut HeaderMap,
    route: &CompiledRoute,
    credential: &Credential,
) {
    let kept: Vec<String> = headers
        .get_all(TRAILER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| {
            HeaderName::from_bytes(name.as_bytes())
                .is_ok_and(|name| may_trail(&name, route, credential))
        })
        .collect();
    headers.remove(TRAILER);
    if let Ok(value) = HeaderValue::from_str(&kept.join(", "))
        && !kept.is_empty()
    {
        headers.insert(TRAILER, value);
    }
}

/// OpenAI's browser clients put the key into a WebSocket subprotocol.
fn strip_websocket_key(headers: &mut HeaderMap) {
    let Some(value) = headers
        .get(SEC_WEBSOCKET_PROTOCOL)
        .and_then(|value| value.to_str().ok())
    else {
        return;
    };
    if !value
        .to_ascii_lowercase()
        .contains("openai-insecure-api-key.")
    {
        return;
    }
    let kept: Vec<&str> = value
        .split(',')
        .map(str::trim)
        .filter(|protocol| {
            !protocol
                .to_ascii_lowercase()
                .starts_with("openai-insecure-api-key.")
        })
        .collect();
    let kept = HeaderValue::from_str(&kept.join(", "))
        .ok()
        .filter(|value| !value.is_empty());
    match kept {
        Some(value) => headers.insert(SEC_WEBSOCKET_PROTOCOL, value),
        None => headers.remove(SEC_WEBSOCKET_PROTOCOL),
    };
}

/// Parameters of a presigned AWS request: an agent's own would compete with the signature in the header.
const PRESIGNED: [&str; 7] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
];

/// The agent's query without parameters that authenticate or that the strategy sets. The rest stays byte for
/// byte, in order. Names are compared decoded and without regard to case, since servers differ in both.
pub fn prepare_query<'a>(query: &'a str, injected: &[QueryPair]) -> Cow<'a, str> {
    let doomed = |pair: &str| {
        let name = decoded_name(pair);
        PRESIGNED
            .iter()
            .any(|presigned| name.eq_ignore_ascii_case(presigned))
            || injected
                .iter()
                .any(|set| name.eq_ignore_ascii_case(&set.name))
    };
    // Some servers separate parameters by `;` too.
    if !query.split(['&', ';']).any(doomed) {
        return Cow::Borrowed(query);
    }
    let mut kept = String::with_capacity(query.len());
    for (index, group) in query
        .split('&')
        .filter(|group| !group.is_empty() && !group.split(';').all(doomed))
        .enumerate()
    {
        if index > 0 {
            kept.push('&');
        }
        for (index, pair) in group.split(';').filter(|pair| !doomed(pair)).enumerate() {
            if index > 0 {
                kept.push(';');
            }
            kept.push_str(pair);
        }
    }
    Cow::Owned(kept)
}

fn decoded_name(pair: &str) -> Cow<'_, str> {
    let name = pair.split('=').next().unwrap_or_default();
    if !name.contains(['%', '+']) {
        return Cow::Borrowed(name);
    }
    let spaced = name.replace('+', " ");
    Cow::Owned(
        percent_encoding::percent_decode_str(&spaced)
            .decode_utf8_lossy()
            .into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use nexus_crds::matcher::{LoadError, Matcher};
    use nexus_crds::table::RouteTable;

    use super::*;

    fn pair(name: &str) -> QueryPair {
        QueryPair {
            name: name.to_owned(),
            encoded: format!("{name}=secret").into(),
        }
    }

    #[test]
    fn a_parameter_that_the_strategy_sets_cannot_be_doubled() {
        let set = [pair("api_key")];
        for query in [
            "api_key=x",
            "API_KEY=x",
            "api%5Fkey=x",
            "%61pi_key=x",
            "api_key",
            "api_key=x&api_key=y",
            "api_key=",
            "a;api_key=x",
        ] {
            assert!(
                !prepare_query(query, &set).to_lowercase().contains("key"),
                "{query}"
            );
        }
        assert_eq!(prepare_query("a=1&api_key=x&b=2", &set), "a=1&b=2");
        assert_eq!(prepare_query("a=1;api_key=x;c=3&b=2", &set), "a=1;c=3&b=2");
    }

    #[test]
    fn a_clean_query_stays_byte_for_byte() {
        for query in ["", "a=1&&b", "b=2&a=%2f+%20", "x;y=1", "%zz=1"] {
            assert!(
                matches!(prepare_query(query, &[pair("api_key")]), Cow::Borrowed(same) if same == query)
            );
        }
    }

    #[test]
    fn presigned_parameters_are_dropped() {
        assert_eq!(
            prepare_query("list-type=2&X-Amz-Signature=ff&x-amz-credential=a", &[]),
            "list-type=2"
        );
    }

    fn route(headers: &str) -> CompiledRoute {
        let table: RouteTable = serde_json::from_str(&format!(
            r#"{{"format": 1, "minReader": 1, "revision": 1, "hash": "", "namespace": "n", "routes": [{{
                "name": "r", "provider": "p", "upstream": {{"url": "https://api.example"}},
                "connections": [], "headers": {headers}
            }}]}}"#
        ))
        .unwrap();
        let mut found = None;
        Matcher::<()>::load(&table, |route| {
            found = Some(route);
            Ok::<_, LoadError>(())
        })
        .unwrap();
        found.unwrap()
    }

    fn credential() -> Credential {
        let payload = br#"{"strategy": {"type": "header", "config": {"header_name": "X-My-Key"}},
            "credentials": {"api_key": "k"}}"#;
        Credential::parse(payload, None, std::time::SystemTime::UNIX_EPOCH).unwrap()
    }

    fn map(names: &[&'static str]) -> HeaderMap {
        names
            .iter()
            .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("x")))
            .collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn an_underscore_hides_no_header() {
        let mut headers = map(&[
            "x_api_key",
            "x-my_key",
            "x_http_method_override",
            "x_nexus_tenant",
            "x_removed",
            "x_set",
            "private_token",
            "x_kept",
        ]);
        let rules =
            r#"{"remove": ["X-Removed"], "set": {"X-Set": "1"}, "keep": ["Private-Token"]}"#;
        let host = HeaderValue::from_static("h");
        prepare(&mut headers, &route(rules), &host, &credential());
        assert_eq!(
            names(&headers),
            [
                "accept-encoding",
                "host",
                "private_token",
                "x-set",
                "x_kept"
            ]
        );
    }

    #[test]
    fn trailers_pass_the_same_filter_as_headers() {
        let mut trailers = map(&[
            "authorization",
            "x-nexus-tenant",
            "content-length",
            "cookie",
            "x-my-key",
            "x_my_key",
            "x-removed",
            "grpc-status",
            "x-checksum",
        ]);
        let route = route(r#"{"remove": ["X-Removed"]}"#);
        filter_trailers(&mut trailers, &route, &credential());
        assert_eq!(names(&trailers), ["grpc-status", "x-checksum"]);
    }

    #[test]
    fn connection_cannot_hide_the_framing() {
        let mut headers = HeaderMap::new();
        headers.insert(
            CONNECTION,
            HeaderValue::from_static("close, X-Private, content-length, host"),
        );
        headers.insert("x-private", HeaderValue::from_static("1"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("3"));
        headers.insert(HOST, HeaderValue::from_static("h"));
        remove_connection_named(&mut headers);
        assert!(!headers.contains_key("x-private"));
        assert!(headers.contains_key(CONTENT_LENGTH) && headers.contains_key(HOST));
    }

    #[test]
    fn a_key_in_a_websocket_subprotocol_is_dropped() {
        let mut headers = HeaderMap::new();
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static("realtime, openai-insecure-api-key.sk-1, beta"),
        );
        strip_websocket_key(&mut headers);
        assert_eq!(headers[SEC_WEBSOCKET_PROTOCOL], "realtime, beta");
    }
}
