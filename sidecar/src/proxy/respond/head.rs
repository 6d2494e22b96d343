//! The head and the trailers of an answer: what of them reaches the agent. Pure.

use http::header::WWW_AUTHENTICATE;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use hyper::ext::ReasonPhrase;
use nexus_crds::header::alike;
use nexus_crds::matcher::ResponseRules;

use crate::credential::Credential;
use crate::proxy::headers::remove_connection_named;
use crate::proxy::scrub::Scrubber;

/// Hop-by-hop fields, and what would reach beyond the answer: cookies, transport policy for `localhost`,
/// connection-bound authentication. What we injected and our own names do not come back.
pub(super) fn strip(headers: &mut HeaderMap, rules: &ResponseRules, credential: &Credential) {
    remove_connection_named(headers);
    let doomed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| match name.as_str() {
            "connection"
            | "keep-alive"
            | "proxy-connection"
            | "transfer-encoding"
            | "upgrade"
            | "te"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "alt-svc"
            | "strict-transport-security"
            | "clear-site-data"
            // RFC 6265 section 9.3: obsolete, with a domain and paths of its own that nobody rewrites.
            | "set-cookie2" => true,
            "set-cookie" => !rules.pass_cookies,
            // The scrubber masks values; the field as a whole says only what we injected.
            "www-authenticate" => false,
            other => {
                other.starts_with("x-nexus-") || credential.sets_headers().any(|set| alike(set, name))
            }
        })
        .cloned()
        .collect();
    for name in &doomed {
        headers.remove(name);
    }
    if headers.contains_key(WWW_AUTHENTICATE) {
        drop_connection_bound_challenges(headers);
    }
}

/// `Negotiate` and `NTLM` authenticate a connection, and the agent's is not the upstream's.
fn drop_connection_bound_challenges(headers: &mut HeaderMap) {
    let values: Vec<HeaderValue> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(without_connection_bound)
        .collect();
    headers.remove(WWW_AUTHENTICATE);
    for value in values {
        headers.append(WWW_AUTHENTICATE, value);
    }
}

/// One line may hold several challenges (RFC 9110 section 11.6.1). `None` if nothing is left of it.
fn without_connection_bound(value: &HeaderValue) -> Option<HeaderValue> {
    let bound = |element: &&[u8]| {
        let scheme = element.trim_ascii().split(|byte| *byte == b' ').next();
        scheme.is_some_and(|scheme| {
            scheme.eq_ignore_ascii_case(b"negotiate") || scheme.eq_ignore_ascii_case(b"ntlm")
        })
    };
    let elements = list_elements(value.as_bytes());
    if !elements.iter().any(bound) {
        return Some(value.clone());
    }
    let kept: Vec<&[u8]> = elements
        .into_iter()
        .filter(|element| !bound(element))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
        .collect();
    HeaderValue::from_bytes(&kept.join(&b", "[..]))
        .ok()
        .filter(|value| !value.is_empty())
}

/// What commas outside of quoted strings part (RFC 9110 section 5.6.1).
fn list_elements(value: &[u8]) -> Vec<&[u8]> {
    let (mut quoted, mut after_backslash) = (false, false);
    value
        .split(|byte| {
            if *byte == b'"' && !after_backslash {
                quoted = !quoted;
            }
            after_backslash = quoted && *byte == b'\\' && !after_backslash;
            *byte == b',' && !quoted
        })
        .collect()
}

/// Masks credentials in header values and says in how many. Validators of a changed message go with them.
pub(super) fn scrub_headers(headers: &mut HeaderMap, scrubber: &Scrubber) -> u64 {
    let mut hits = 0;
    for value in headers.values_mut() {
        if let Some(masked) = scrubber.header(value) {
            *value = masked;
            hits += 1;
        }
    }
    if hits > 0 {
        remove_validators(headers);
    }
    hits
}

/// HTTP/1.1 carries a text beside the status (RFC 9112 section 4), and some servers say there what they got.
pub(super) fn scrub_reason(extensions: &mut Extensions, scrubber: &Scrubber) -> u64 {
    let said = extensions
        .get::<ReasonPhrase>()
        .is_some_and(|reason| scrubber.contains(reason.as_bytes()));
    if said {
        extensions.remove::<ReasonPhrase>();
    }
    u64::from(said)
}

/// Removes what was computed over content that the agent does not get as it was.
pub(super) fn remove_validators(headers: &mut HeaderMap) {
    let doomed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| validates_content(name))
        .cloned()
        .collect();
    for name in doomed {
        headers.remove(name);
    }
}

/// True if [`remove_validators`] would remove something.
pub(super) fn has_validators(headers: &HeaderMap) -> bool {
    headers.keys().any(validates_content)
}

fn validates_content(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "etag" | "content-md5" | "digest" | "repr-digest" | "content-digest"
    ) || name.as_str().starts_with("x-amz-checksum-")
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const TOKEN: &str = "tok_0123456789abcdef";

    fn credential() -> Credential {
        let payload = format!(
            r#"{{"strategy": {{"type": "header", "config": {{"header_name": "X-My-Key"}}}}, "credentials": {{"api_key": "{TOKEN}"}}}}"#
        );
        Credential::parse(payload.as_bytes(), None, SystemTime::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn a_secret_in_the_reason_phrase_takes_the_phrase_with_it() {
        let credential = credential();
        let scrubber = credential.scrubber().unwrap();
        for (reason, kept) in [(format!("Bad token {TOKEN}"), false), ("Fine".into(), true)] {
            let mut extensions = Extensions::new();
            extensions.insert(ReasonPhrase::try_from(reason).unwrap());
            assert_eq!(scrub_reason(&mut extensions, scrubber), u64::from(!kept));
            assert_eq!(extensions.get::<ReasonPhrase>().is_some(), kept);
        }
    }

    #[test]
    fn what_we_injected_and_our_own_names_do_not_come_back() {
        let mut headers = HeaderMap::new();
        for name in [
            "x-my-key",
            "x_my_key",
            "x-nexus-error",
            "set-cookie",
            "set-cookie2",
            "alt-svc",
            "strict-transport-security",
            "clear-site-data",
            "connection",
            "x-b",
            "x-c",
        ] {
            headers.insert(name, HeaderValue::from_static("x-b"));
        }
        strip(&mut headers, &ResponseRules::default(), &credential());
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["x-c"]);
    }

    #[test]
    fn cookies_pass_where_the_route_says_so_but_not_the_obsolete_ones() {
        let mut headers = HeaderMap::new();
        headers.insert("set-cookie", HeaderValue::from_static("a=b"));
        headers.insert("set-cookie2", HeaderValue::from_static("a=b"));
        let rules = ResponseRules {
            pass_cookies: true,
            ..ResponseRules::default()
        };
        strip(&mut headers, &rules, &credential());
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["set-cookie"]);
    }

    #[test]
    fn only_connection_bound_challenges_are_dropped() {
        for (sent, left) in [
            ("Negotiate", None),
            ("NTLM", None),
            ("ntlm TlRMTVNTUAAC", None),
            ("Negotiate, NTLM", None),
            (
                "Bearer realm=\"a, Negotiate b\"",
                Some("Bearer realm=\"a, Negotiate b\""),
            ),
            ("Basic realm=\"x\", Negotiate", Some("Basic realm=\"x\"")),
            (
                "NTLM ,Digest realm=\"a\\\", NTLM b\", qop=\"auth\"",
                Some("Digest realm=\"a\\\", NTLM b\", qop=\"auth\""),
            ),
            ("NegotiateX", Some("NegotiateX")),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(sent));
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
            strip(&mut headers, &ResponseRules::default(), &credential());
            let values: Vec<_> = headers.get_all(WWW_AUTHENTICATE).iter().collect();
            let expected: Vec<_> = left.into_iter().chain(["Basic"]).collect();
            assert_eq!(values, expected, "{sent}");
        }
    }

    #[test]
    fn a_masked_field_takes_the_validators_with_it() {
        let credential = credential();
        let mut headers = HeaderMap::new();
        for name in [
            "etag",
            "content-md5",
            "digest",
            "repr-digest",
            "content-digest",
            "x-amz-checksum-crc32",
            "last-modified",
        ] {
            headers.insert(name, HeaderValue::from_static("v"));
        }
        let scrubber = credential.scrubber().unwrap();
        assert_eq!(scrub_headers(&mut headers, scrubber), 0);
        assert_eq!(headers.len(), 7, "nothing was found, so nothing goes");
        assert!(has_validators(&headers));
        headers.insert("x-echo", HeaderValue::from_static(TOKEN));
        assert_eq!(scrub_headers(&mut headers, scrubber), 1);
        assert_eq!(headers.len(), 2);
        assert!(headers.contains_key("last-modified"));
        assert_eq!(headers["x-echo"], "*".repeat(TOKEN.len()));
    }
}
