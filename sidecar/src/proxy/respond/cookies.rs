//! Cookies of an upstream become cookies of the caller's own addressing (`setCookie: Pass`). Pure.
//!
//! The agent's cookie store sees the sidecar where the upstream's host would be, so `Domain` goes and `Path` is
//! rewritten. With `/via/...` that keeps the cookies of one provider from the requests to another. Callers who name
//! the provider in a header have one store for all of them, as far as the paths agree.

use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue};

use crate::proxy::links::{Addressing, Sent, below};

/// Rewrites every `Set-Cookie` (RFC 6265 section 5.2). One whose path the caller cannot reach through the route is
/// dropped, since it would only ever go to somebody else.
pub(super) fn rewrite(headers: &mut HeaderMap, sent: &Sent<'_>, addressing: Addressing<'_>) {
    if !headers.contains_key(SET_COOKIE) {
        return;
    }
    let cookies: Vec<HeaderValue> = headers
        .get_all(SET_COOKIE)
        .iter()
        .filter_map(|cookie| rewritten(cookie, sent, addressing))
        .collect();
    headers.remove(SET_COOKIE);
    for cookie in cookies {
        headers.append(SET_COOKIE, cookie);
    }
}

fn rewritten(
    cookie: &HeaderValue,
    sent: &Sent<'_>,
    addressing: Addressing<'_>,
) -> Option<HeaderValue> {
    let mut parts = cookie.as_bytes().split(|byte| *byte == b';');
    let pair = parts.next().unwrap_or_default();
    let keeps_secure = keeps_secure(pair, addressing);
    let mut path = None;
    let mut out = pair.to_vec();
    for part in parts {
        let mut sides = part.splitn(2, |byte| *byte == b'=');
        let name = sides.next().unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"domain")
            || (name.eq_ignore_ascii_case(b"secure") && !keeps_secure)
        {
            continue;
        }
        if name.eq_ignore_ascii_case(b"path") {
            // The last one counts.
            path = std::str::from_utf8(sides.next().unwrap_or_default().trim_ascii()).ok();
            continue;
        }
        out.push(b';');
        out.extend_from_slice(part);
    }
    let path = path.filter(|path| path.starts_with('/'));
    if let Some(path) = agent_path(path, sent, addressing)? {
        out.extend_from_slice(b"; Path=");
        out.extend_from_slice(path.as_bytes());
    }
    let mut out = HeaderValue::from_bytes(&out).ok()?;
    out.set_sensitive(cookie.is_sensitive());
    Some(out)
}

/// `Secure` keeps a cookie from plain http, which is what the agent speaks to the sidecar, so strict cookie stores
/// would never send it back. The hop that it is meant for is the sidecar's, to the upstream.
///
/// It stays where the caller believes in https, and where the cookie's name demands it (RFC 6265bis section 4.1.3):
/// who knows those names and takes no cookie without it also takes loopback for safe.
fn keeps_secure(pair: &[u8], addressing: Addressing<'_>) -> bool {
    let believes = match addressing {
        Addressing::Absolute { scheme } => scheme.eq_ignore_ascii_case("https"),
        Addressing::Prefix(_) | Addressing::Headers => false,
    };
    let name = pair.trim_ascii_start();
    let demands = [&b"__Secure-"[..], b"__Host-"].iter().any(|prefix| {
        name.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    });
    believes || demands
}

/// The caller's path for the upstream's. `Some(None)` leaves it to the agent, `None` is a path that the caller cannot
/// reach.
#[expect(
    clippy::option_option,
    reason = "no path to say and no way to it differ"
)]
fn agent_path(
    path: Option<&str>,
    sent: &Sent<'_>,
    addressing: Addressing<'_>,
) -> Option<Option<String>> {
    let prefix = match addressing {
        // The caller's URLs have the upstream's host and paths.
        Addressing::Absolute { .. } => return Some(path.map(str::to_owned)),
        Addressing::Prefix(prefix) => prefix.trim_end_matches('/'),
        Addressing::Headers => "",
    };
    // Said even where the upstream leaves it out: the agent's own default for `/via/p` would be all providers.
    let path = path.unwrap_or_else(|| default_path(sent.path));
    let base = sent.base_path.trim_end_matches('/');
    let rest = match below(path, base) {
        Some("/") => "",
        Some(rest) => rest,
        // Everything below the base path, and more that does not concern the caller.
        None if contains(path, base) => "",
        None => return None,
    };
    Some(Some(match format!("{prefix}{rest}") {
        whole if whole.is_empty() => "/".to_owned(),
        path => path,
    }))
}

/// RFC 6265 section 5.1.4.
fn default_path(request: &str) -> &str {
    match request.rfind('/') {
        None | Some(0) => "/",
        Some(last) => &request[..last],
    }
}

/// True if a cookie for `path` goes to everything below `base` (RFC 6265 section 5.1.4, "path-match").
fn contains(path: &str, base: &str) -> bool {
    base.strip_prefix(path)
        .is_some_and(|rest| path.ends_with('/') || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: Sent<'_> = Sent {
        tls: true,
        authority: "api.example.com",
        base_path: "/v1",
        path: "/v1/users/7",
        injected_query: &[],
    };
    const VIA: Addressing<'_> = Addressing::Prefix("/via/p@t");
    const HTTP: Addressing<'_> = Addressing::Absolute { scheme: "http" };
    const HTTPS: Addressing<'_> = Addressing::Absolute { scheme: "https" };

    fn passed(cookie: &str, addressing: Addressing<'_>) -> Vec<String> {
        let mut headers = HeaderMap::new();
        headers.append(SET_COOKIE, HeaderValue::from_str(cookie).unwrap());
        rewrite(&mut headers, &SENT, addressing);
        headers
            .get_all(SET_COOKIE)
            .iter()
            .map(|value| value.to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn the_path_becomes_the_callers_own_and_the_domain_goes() {
        for (cookie, via, headers) in [
            ("a=b; Path=/v1", "a=b; Path=/via/p@t", "a=b; Path=/"),
            ("a=b; Path=/v1/", "a=b; Path=/via/p@t", "a=b; Path=/"),
            (
                "a=b;path = /v1/users",
                "a=b; Path=/via/p@t/users",
                "a=b; Path=/users",
            ),
            ("a=b; Path=/", "a=b; Path=/via/p@t", "a=b; Path=/"),
            ("a=b", "a=b; Path=/via/p@t/users", "a=b; Path=/users"),
            (
                "a=b; Path=; Path=v1",
                "a=b; Path=/via/p@t/users",
                "a=b; Path=/users",
            ),
            (
                "a=b; Path=/x; Path=/v1/y",
                "a=b; Path=/via/p@t/y",
                "a=b; Path=/y",
            ),
            (
                "a=b; Domain=.example.com; HttpOnly; SameSite=Lax; Max-Age=60; Path=/v1",
                "a=b; HttpOnly; SameSite=Lax; Max-Age=60; Path=/via/p@t",
                "a=b; HttpOnly; SameSite=Lax; Max-Age=60; Path=/",
            ),
        ] {
            assert_eq!(passed(cookie, VIA), [via], "{cookie}");
            assert_eq!(passed(cookie, Addressing::Headers), [headers], "{cookie}");
        }
    }

    #[test]
    fn in_absolute_form_the_paths_are_the_upstreams() {
        for (cookie, kept) in [
            ("a=b; Domain=example.com; Path=/v1", "a=b; Path=/v1"),
            ("a=b; Path=/elsewhere", "a=b; Path=/elsewhere"),
            ("a=b; HttpOnly", "a=b; HttpOnly"),
        ] {
            assert_eq!(passed(cookie, HTTP), [kept]);
        }
    }

    #[test]
    fn a_cookie_for_other_paths_of_the_host_is_dropped() {
        for path in ["/v2", "/v10", "/v", "/admin/v1"] {
            let cookie = format!("a=b; Path={path}");
            assert_eq!(passed(&cookie, VIA), [""; 0], "{path}");
            assert_eq!(passed(&cookie, Addressing::Headers), [""; 0], "{path}");
        }
    }

    #[test]
    fn secure_goes_where_the_agent_speaks_http_unless_the_name_demands_it() {
        for addressing in [VIA, Addressing::Headers, HTTP] {
            assert!(!passed("a=b; Secure", addressing)[0].contains("ecure"));
            for name in ["__Secure-a", "__Host-a", "__host-a"] {
                let kept = &passed(&format!("{name}=b; Secure"), addressing)[0];
                assert!(kept.contains("; Secure"), "{kept}");
            }
        }
        assert_eq!(passed("a=b;Secure", HTTPS), ["a=b;Secure"]);
    }

    #[test]
    fn each_cookie_is_judged_by_itself_and_odd_bytes_stay() {
        let mut headers = HeaderMap::new();
        for cookie in [
            &b"a=\xff\"x"[..],
            b"b=1; Path=/v2",
            b"",
            b"c=2; Path=/v1/\xff",
        ] {
            headers.append(SET_COOKIE, HeaderValue::from_bytes(cookie).unwrap());
        }
        rewrite(&mut headers, &SENT, VIA);
        let left: Vec<_> = headers.get_all(SET_COOKIE).iter().collect();
        assert_eq!(left[0].as_bytes(), b"a=\xff\"x; Path=/via/p@t/users");
        assert_eq!(left[1].as_bytes(), b"; Path=/via/p@t/users");
        assert_eq!(left[2].as_bytes(), b"c=2; Path=/via/p@t/users");
        assert_eq!(left.len(), 3);
    }

    #[test]
    fn a_request_for_the_base_path_itself_sets_no_cookie_for_other_providers() {
        let sent = Sent {
            base_path: "/",
            path: "/",
            ..SENT
        };
        let mut headers = HeaderMap::new();
        headers.append(SET_COOKIE, HeaderValue::from_static("a=b"));
        rewrite(&mut headers, &sent, Addressing::Prefix("/via/p/"));
        assert_eq!(headers[SET_COOKIE], "a=b; Path=/via/p");
    }
}
