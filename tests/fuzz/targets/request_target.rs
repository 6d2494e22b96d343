//! Request targets, as the resolve step reads them and the authorise step judges them.
//!
//! The input is a target on the first line, and `Name: value` headers on the following ones.

#![no_main]

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Uri};
use libfuzzer_sys::fuzz_target;
use nexus_crds::access::AccessRequest;
use nexus_crds::path::{self, PathError};
use nexus_crds::table::RouteTable;
use nexus_sidecar::metrics::Metrics;
use nexus_sidecar::proxy::guard::BrowserGuard;
use nexus_sidecar::proxy::resolve::{Addressing, Target, resolve};
use nexus_sidecar::proxy::streams::Owner;
use nexus_sidecar::routes::{RouteSet, Tenants};
use nexus_sidecar::upstream::{Settings, Upstreams};
use serde_json::json;

/// Tenants that requests may name.
const ALLOWED: [&str; 2] = ["a", "t"];
/// Under this nothing is allowed on any route.
const DENIED: &str = "/secret";

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let raw = lines.next().unwrap_or_default();
    if let Ok(path) = std::str::from_utf8(raw) {
        judge_path(path);
    }
    let Some(parts) = parts(raw, lines) else {
        return;
    };
    let guard = BrowserGuard::new(&[]);
    if guard.check(&parts).is_ok() && parts.uri.scheme().is_none() {
        assert_eq!(parts.headers.get_all("host").iter().count(), 1);
    }
    let routes = routes();
    if let Ok(target) = resolve(&parts, routes, tenants()) {
        // The HTTP parser drops a fragment unseen.
        let raw = raw.split(|byte| *byte == b'#').next().unwrap_or_default();
        let raw = std::str::from_utf8(raw).expect("what was accepted is a text");
        judge_target(raw, &parts, routes, &target);
    }
});

/// A request as the HTTP parser hands it over; `None` for what it refuses.
fn parts<'a>(target: &[u8], headers: impl Iterator<Item = &'a [u8]>) -> Option<Parts> {
    let mut request = Request::new(());
    *request.uri_mut() = Uri::try_from(target).ok()?;
    for line in headers {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        request.headers_mut().append(name, value);
    }
    Some(request.into_parts().0)
}

fn routes() -> &'static RouteSet {
    static ROUTES: OnceLock<RouteSet> = OnceLock::new();
    ROUTES.get_or_init(|| {
        let id = |n: u8| format!("00000000-0000-4000-8000-0000000000{n:02x}");
        let deny = json!({"deny": [{"methods": ["*"], "paths": [format!("{DENIED}/**"), format!("/*{DENIED}/**")]}]});
        let routes = json!([
            {"name": "p", "provider": "p", "upstream": {"url": "https://api.example.com/base"}, "access": deny,
             "connections": [{"id": id(1)}, {"tenant": "a", "id": id(2)}, {"tenant": "b", "id": id(3)}, {"tenant": "*", "id": id(4)}]},
            {"name": "q", "provider": "q.1", "upstream": {"url": "http://root.example:8080", "allowInsecure": true}, "access": deny,
             "connections": [{"tenant": "t", "id": id(5)}, {"tenant": "b", "id": id(6)}]},
            {"name": "r", "provider": "r", "upstream": {"url": "https://api.example.com/base/deeper"}, "access": deny,
             "connections": [{"id": id(7)}]},
            {"name": "s", "provider": "s", "upstream": {"url": "https://[2001:db8::1]"}, "access": deny,
             "connections": [{"id": id(8)}]},
        ]);
        let routes = serde_json::from_value(routes).expect("routes");
        let table = RouteTable::new("fuzz", routes);
        let upstreams = Upstreams::new(Settings::default());
        RouteSet::load(&table, &upstreams, &Metrics::new()).expect("a table")
    })
}

fn tenants() -> &'static Tenants {
    static TENANTS: OnceLock<Tenants> = OnceLock::new();
    TENANTS.get_or_init(|| Tenants::Listed(ALLOWED.into_iter().map(Box::from).collect()))
}

fn judge_target(raw: &str, parts: &Parts, routes: &RouteSet, target: &Target) {
    let upstream = &target.route.compiled.upstream;
    let sent = target.path_and_query.as_str();
    let (authority, received) = split(raw);
    let expected = match &target.addressing {
        Addressing::Headers => format!("{}{}", upstream.base_path, absolute(received)),
        Addressing::Prefix(prefix) => {
            let provider = &target.route.compiled.provider;
            let name = prefix.strip_prefix("/via/").expect("a prefix");
            assert_eq!(name.split('@').next(), Some(&**provider));
            let rest = received.strip_prefix(&**prefix).expect("it came so");
            format!("{}{}", upstream.base_path, absolute(rest))
        }
        Addressing::Absolute(scheme) => {
            let authority = authority.expect("an absolute target");
            assert!(matches!(&**scheme, "http" | "https"));
            assert!(
                raw.to_ascii_lowercase()
                    .starts_with(&format!("{scheme}://"))
            );
            let host = host(authority);
            assert!(host.eq_ignore_ascii_case(&upstream.host), "{authority}");
            let path = parts.uri.path();
            let under = path.strip_prefix(&*upstream.base_path);
            assert!(under.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
            absolute(received).into_owned()
        }
    };
    assert_eq!(sent, expected, "the path is sent as it came");

    let tenant = target
        .tenant
        .as_ref()
        .map(|tenant| tenant.to_str().expect("a name"));
    assert!(
        tenant.is_none_or(|tenant| ALLOWED.contains(&tenant)),
        "{tenant:?}"
    );
    let owner = Owner {
        provider: Arc::clone(&target.route.compiled.provider),
        tenant: target.tenant.clone(),
        connection: target.connection,
    };
    assert!(
        routes.serves(&owner),
        "the connection is that of the tenant"
    );

    let path = target.path_and_query.path();
    judge_path(path);
    let access = target
        .route
        .compiled
        .access
        .as_ref()
        .expect("every route has rules");
    let request = AccessRequest {
        method: &parts.method,
        path,
        query: target.path_and_query.query(),
        headers: &parts.headers,
    };
    if path::check(path).is_ok() && access.allows(&request) {
        for reading in path::readings(path) {
            let denied = reading
                .split('/')
                .skip(1)
                .take(2)
                .any(|segment| format!("/{segment}") == DENIED);
            assert!(!denied, "{path} is allowed and can be read as {reading}");
        }
    }
}

/// The authority of an absolute target, and path and query.
fn split(raw: &str) -> (Option<&str>, &str) {
    let Some((_, rest)) = raw.split_once("://").filter(|_| !raw.starts_with('/')) else {
        return (None, raw);
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    (Some(&rest[..end]), &rest[end..])
}

/// A path is at least the root.
fn absolute(received: &str) -> Cow<'_, str> {
    if received.starts_with('/') {
        Cow::Borrowed(received)
    } else {
        Cow::Owned(format!("/{received}"))
    }
}

/// Without user and port, and an IPv6 address without brackets.
fn host(authority: &str) -> &str {
    let host = authority.rsplit('@').next().unwrap_or_default();
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    }
}

fn judge_path(path: &str) {
    let dots = (0..=3).any(|times| has_dot_segment(&decoded(path.as_bytes(), times)));
    match path::check(path) {
        Ok(()) => {
            assert!(!dots, "a dot segment was not seen");
            let readings = path::readings(path);
            assert!(readings.iter().any(|reading| reading == path));
            for (index, reading) in readings.iter().enumerate() {
                assert!(reading.starts_with('/'), "{reading}");
                assert!(!has_dot_segment(reading.as_bytes()), "{reading}");
                assert!(!reading.contains('\0'), "{reading}");
                assert!(
                    !readings[..index].contains(reading),
                    "{reading} is there twice"
                );
            }
        }
        Err(PathError::DotSegment) => assert!(dots, "there is no dot segment"),
        Err(PathError::NotAbsolute) => assert!(!path.starts_with('/')),
        Err(PathError::Nul) => assert!(path.contains('%')),
        Err(PathError::Control) => assert!(path.bytes().any(|byte| byte.is_ascii_control())),
        Err(PathError::NonAscii) => assert!(!path.is_ascii()),
        Err(PathError::Encoding) => assert!(has_bad_triplet(path.as_bytes())),
    }
}

/// Written anew rather than with the library that the judged code uses.
fn decoded(path: &[u8], times: usize) -> Vec<u8> {
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let mut text = path.to_vec();
    for _ in 0..times {
        let mut next = Vec::with_capacity(text.len());
        let mut at = 0;
        while at < text.len() {
            match (text[at], digit(text.get(at + 1)), digit(text.get(at + 2))) {
                (b'%', Some(high), Some(low)) => {
                    next.push(u8::try_from(high * 16 + low).expect("two digits"));
                    at += 3;
                }
                (byte, _, _) => {
                    next.push(byte);
                    at += 1;
                }
            }
        }
        text = next;
    }
    text
}

fn has_dot_segment(path: &[u8]) -> bool {
    let mut segment = Vec::new();
    let mut in_parameters = false;
    for byte in path.iter().copied().chain([b'/']) {
        match byte {
            b'/' | b'\\' => {
                if segment == b"." || segment == b".." {
                    return true;
                }
                segment.clear();
                in_parameters = false;
            }
            b';' => in_parameters = true,
            _ if in_parameters => {}
            other => segment.push(other),
        }
    }
    false
}

fn has_bad_triplet(path: &[u8]) -> bool {
    path.iter().enumerate().any(|(at, byte)| {
        let digits = path.get(at + 1..at + 3).unwrap_or_default();
        *byte == b'%' && !(digits.len() == 2 && digits.iter().all(u8::is_ascii_hexdigit))
    })
}
