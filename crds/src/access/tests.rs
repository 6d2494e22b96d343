use http::HeaderValue;
use serde_json::{Value, json};

use super::*;

fn access(spec: Value) -> Access {
    let access = Access::compile(&serde_json::from_value(spec).unwrap()).unwrap();
    access.build().unwrap();
    access
}

fn allows(access: &Access, method: &str, target: &str) -> bool {
    allows_with(access, method, target, &HeaderMap::new())
}

fn allows_with(access: &Access, method: &str, target: &str, headers: &HeaderMap) -> bool {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    access.allows(&AccessRequest {
        method: &method.parse().unwrap(),
        path,
        query,
        headers,
    })
}

#[test]
fn without_rules_everything_is_allowed() {
    assert!(allows(&access(json!({})), "DELETE", "/a/b?c"));
}

#[test]
fn allow_needs_a_match_and_deny_wins() {
    let access = access(json!({
        "allow": [{"methods": ["GET", "HEAD"], "paths": ["/user", "/repos/**"]}],
        "deny": [{"methods": ["*"], "paths": ["/repos/*/*/keys/**"]}],
    }));
    for (method, target, expected) in [
        ("GET", "/user", true),
        ("HEAD", "/repos/o/r", true),
        ("POST", "/user", false),
        ("GET", "/users", false),
        ("GET", "/repos", true),
        ("GET", "/repos/o/r/keys", false),
        ("GET", "/repos/o/r/keys/1", false),
    ] {
        assert_eq!(
            allows(&access, method, target),
            expected,
            "{method} {target}"
        );
    }
}

#[test]
fn a_deny_rule_meets_every_spelling_of_its_path() {
    let access = access(json!({"deny": [{"paths": ["/repos/*/*/keys/**"]}]}));
    for target in [
        "/repos/o/r/ke%79s",
        "/repos/o/r/%256beys",
        "/repos/o/r/%25256beys",
        "/repos//o/r/keys",
        "/repos/o/r/keys/",
        "/repos/o/r//keys//1",
        "/repos/o/r/keys;x=1",
        "/repos/o;a/r/keys",
        "/repos/o/r%2Fkeys",
        "/repos/o/r%5ckeys",
        "/repos/o/r\\keys",
        "/repos/o/r/%6b%65%79%73%3bx",
    ] {
        assert!(!allows(&access, "GET", target), "{target}");
    }
    assert!(allows(&access, "GET", "/repos/o/r/issues"));
}

#[test]
fn an_allow_rule_must_match_every_reading() {
    let one = access(json!({"allow": [{"paths": ["/projects/*"]}]}));
    assert!(allows(&one, "GET", "/projects/1"));
    assert!(!allows(&one, "GET", "/projects/group%2Fproject"));
    let any = access(json!({"allow": [{"paths": ["/projects/**"]}]}));
    assert!(allows(&any, "GET", "/projects/group%2Fproject"));
    let both = access(json!({"allow": [{"paths": ["/@s%2Fp"]}, {"paths": ["/@s/p"]}]}));
    assert!(allows(&both, "GET", "/@s%2Fp"));
}

#[test]
fn object_keys_with_empty_segments_are_reachable() {
    let access = access(json!({"allow": [{"paths": ["/bucket/**"]}]}));
    assert!(allows(&access, "PUT", "/bucket//a//b"));
    assert!(!allows(&access, "PUT", "/other//a"));
}

#[test]
fn a_deny_rule_takes_methods_in_any_case() {
    let access = access(json!({"deny": [{"methods": ["DELETE"]}]}));
    assert!(!allows(&access, "delete", "/a"));
    assert!(allows(&access, "GET", "/a"));
}

#[test]
fn a_rule_may_ask_for_headers() {
    let target = |values: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-amz-target", HeaderValue::from_static(value));
        }
        headers
    };
    let rule = json!([{"headers": {"X-Amz-Target": "DynamoDB.GetItem"}}]);
    let allow = access(json!({"allow": rule.clone()}));
    let deny = access(json!({"deny": rule}));
    let get = "DynamoDB.GetItem";
    for (values, allowed, denied) in [
        (&[][..], false, false),
        (&[get], true, true),
        (&["DynamoDB.PutItem"], false, false),
        (&[get, "DynamoDB.PutItem"], false, true),
        (&["DynamoDB.PutItem", get], false, true),
        (&["DynamoDB.PutItem, DynamoDB.GetItem"], false, true),
    ] {
        let headers = target(values);
        assert_eq!(
            allows_with(&allow, "POST", "/", &headers),
            allowed,
            "{values:?}"
        );
        assert_eq!(
            !allows_with(&deny, "POST", "/", &headers),
            denied,
            "{values:?}"
        );
    }
}

#[test]
fn a_deny_rule_meets_a_header_written_with_underscores() {
    let rule = json!([{"headers": {"X-Amz-Target": "a"}}]);
    let mut headers = HeaderMap::new();
    headers.insert("x_amz-target", HeaderValue::from_static("a"));
    let deny = access(json!({"deny": rule.clone()}));
    assert!(!allows_with(&deny, "POST", "/", &headers));
    let allow = access(json!({"allow": rule}));
    assert!(!allows_with(&allow, "POST", "/", &headers));
}

#[test]
fn a_rule_may_ask_for_query_parameters() {
    let deny = access(json!({"deny": [
        {"paths": ["/users/*/token"], "queryParams": {"type": "zak"}},
        {"paths": ["/bucket/**"], "queryParamsPresent": ["session"]},
    ]}));
    for (target, expected) in [
        ("/users/me/token", true),
        ("/users/me/token?type=zak", false),
        ("/users/me/token?type=a&typ%65=zak", false),
        ("/bucket/k?session", false),
        ("/bucket/k?x=1", true),
    ] {
        assert_eq!(allows(&deny, "GET", target), expected, "{target}");
    }
    let allow = access(json!({"allow": [{"queryParams": {"alt": "json"}}]}));
    assert!(allows(&allow, "GET", "/a?alt=json"));
    assert!(!allows(&allow, "GET", "/a?alt=json&alt=media"));
}

#[test]
fn case_of_paths_is_ignored_where_asked() {
    let access = access(json!({"pathsIgnoreCase": true, "deny": [{"paths": ["/Me/**"]}]}));
    assert!(!allows(&access, "GET", "/mE/x"));
}

#[test]
fn mistakes_name_their_place() {
    for (spec, field) in [
        (json!({"allow": []}), "allow"),
        (json!({"deny": [{"paths": []}]}), "deny[0].paths"),
        (
            json!({"deny": [{"paths": ["/a", "b"]}]}),
            "deny[0].paths[1]",
        ),
        (
            json!({"allow": [{}, {"methods": ["G T"]}]}),
            "allow[1].methods",
        ),
        (json!({"allow": [{"methods": []}]}), "allow[0].methods"),
        (
            json!({"deny": [{"headers": {"a b": "c"}}]}),
            "deny[0].headers",
        ),
    ] {
        let error = Access::compile(&serde_json::from_value(spec).unwrap()).unwrap_err();
        assert_eq!(error.field, field);
    }
}

#[test]
fn warn_mode_is_told_apart() {
    assert!(access(json!({"mode": "Warn"})).warn_only);
    assert!(!access(json!({})).warn_only);
}
