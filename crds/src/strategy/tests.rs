use serde_json::json;

use super::*;

fn spec(value: Value) -> StrategySpec {
    serde_json::from_value(value).unwrap()
}

fn parse(value: Value) -> Result<Strategy, StrategyError> {
    Strategy::parse(&spec(value))
}

fn header(name: &'static str, field: &str, prefix: &str) -> HeaderPart {
    HeaderPart {
        name: HeaderName::from_static(name),
        credential_field: field.to_owned(),
        value_prefix: prefix.to_owned(),
    }
}

fn param(name: &str, field: &str) -> ParamPart {
    ParamPart {
        name: name.to_owned(),
        credential_field: field.to_owned(),
        value_prefix: String::new(),
    }
}

#[test]
fn each_type_has_the_defaults_of_the_protocol() {
    let table = [
        (json!({"type": "oauth2"}), Strategy::Oauth2),
        (
            json!({"type": "header"}),
            Strategy::Header(vec![header("authorization", "api_key", "")]),
        ),
        (
            json!({"type": "api_key", "config": {"header_name": "X-API-Key"}}),
            Strategy::Header(vec![header("x-api-key", "api_key", "")]),
        ),
        (
            json!({"type": "query_param", "config": {"param_name": "key"}}),
            Strategy::QueryParam(vec![param("key", "api_key")]),
        ),
        (
            json!({"type": "basic_auth"}),
            Strategy::BasicAuth {
                username: Username::Field("username".to_owned()),
                password_field: "password".to_owned(),
            },
        ),
        (
            json!({"type": "hmac_payload", "config": {"header_name": "X-Sig"}}),
            Strategy::HmacPayload {
                header_name: HeaderName::from_static("x-sig"),
                secret_field: "api_secret".to_owned(),
                algorithm: HmacAlgorithm::Sha256,
                encoding: HmacEncoding::Hex,
            },
        ),
        (
            json!({"type": "aws_sigv4", "config": {"service": "s3"}}),
            Strategy::AwsSigv4 {
                service: "s3".to_owned(),
                region: None,
            },
        ),
    ];
    for (document, expected) in table {
        assert_eq!(parse(document.clone()), Ok(expected), "{document}");
    }
}

#[test]
fn settings_are_taken_literally() {
    assert_eq!(
        parse(json!({"type": "header", "config":
            {"header_name": "X-Key", "credential_field": "token", "value_prefix": "Token "}})),
        Ok(Strategy::Header(vec![header("x-key", "token", "Token ")]))
    );
    assert_eq!(
        parse(json!({"type": "basic_auth", "config":
            {"username": "x-access-token", "password_field": "access_token"}})),
        Ok(Strategy::BasicAuth {
            username: Username::Literal("x-access-token".to_owned()),
            password_field: "access_token".to_owned(),
        })
    );
    assert_eq!(
        parse(json!({"type": "hmac_payload", "config":
            {"header_name": "S", "algo": "sha1", "encoding": "base64", "secret_field": "k"}})),
        Ok(Strategy::HmacPayload {
            header_name: HeaderName::from_static("s"),
            secret_field: "k".to_owned(),
            algorithm: HmacAlgorithm::Sha1,
            encoding: HmacEncoding::Base64,
        })
    );
}

#[test]
fn set_is_an_array_or_a_string_that_holds_one() {
    let entries = json!([{"name": "DD-API-KEY"}, {"name": "X-App", "credential_field": "app", "value_prefix": "v "}]);
    let expected = Strategy::Header(vec![
        header("dd-api-key", "api_key", ""),
        header("x-app", "app", "v "),
    ]);
    for set in [entries.clone(), Value::String(entries.to_string())] {
        let document = json!({"type": "header", "config": {"set": set}});
        assert_eq!(parse(document), Ok(expected.clone()));
    }
    assert_eq!(
        parse(json!({"type": "query_param", "config":
            {"set": [{"name": "key"}, {"name": "token", "credential_field": "t"}]}})),
        Ok(Strategy::QueryParam(vec![
            param("key", "api_key"),
            param("token", "t")
        ]))
    );
}

#[test]
fn what_is_missing_malformed_or_reserved_is_an_error_that_names_the_setting() {
    let table = [
        (json!({"type": "query_param"}), "param_name"),
        (
            json!({"type": "query_param", "config": {"param_name": ""}}),
            "param_name",
        ),
        (json!({"type": "hmac_payload"}), "header_name"),
        (json!({"type": "aws_sigv4"}), "service"),
        (
            json!({"type": "aws_sigv4", "config": {"service": "s3/x"}}),
            "service",
        ),
        (
            json!({"type": "header", "config": {"header_name": 1}}),
            "header_name",
        ),
        (json!({"type": "header", "config": {"odd": null}}), "odd"),
        (
            json!({"type": "header", "config": {"header_name": "a b"}}),
            "header_name",
        ),
        (
            json!({"type": "header", "config": {"header_name": "Host"}}),
            "header_name",
        ),
        (
            json!({"type": "header", "config": {"header_name": "Transfer-Encoding"}}),
            "header_name",
        ),
        (
            json!({"type": "header", "config": {"header_name": "X-Nexus-Tenant"}}),
            "header_name",
        ),
        (
            json!({"type": "header", "config": {"value_prefix": "a\nb"}}),
            "value_prefix",
        ),
        (
            json!({"type": "header", "config": {"credential_field": ""}}),
            "credential_field",
        ),
        (json!({"type": "header", "config": {"set": {}}}), "set"),
        (json!({"type": "header", "config": {"set": "[]"}}), "set"),
        (
            json!({"type": "header", "config": {"set": "nonsense"}}),
            "set",
        ),
        (json!({"type": "header", "config": {"set": [1]}}), "set[0]"),
        (
            json!({"type": "header", "config": {"set": [{}]}}),
            "set[0].name",
        ),
        (
            json!({"type": "header", "config": {"set": [{"name": "A"}, {"name": "a"}]}}),
            "set",
        ),
        (
            json!({"type": "header", "config": {"set": [{"name": "A"}], "header_name": "B"}}),
            "header_name",
        ),
        (
            json!({"type": "hmac_payload", "config": {"header_name": "S", "algo": "SHA256"}}),
            "algo",
        ),
        (
            json!({"type": "hmac_payload", "config": {"header_name": "S", "encoding": "hexa"}}),
            "encoding",
        ),
        (
            json!({"type": "basic_auth", "config": {"username": "a:b"}}),
            "username",
        ),
    ];
    for (document, expected) in table {
        match parse(document.clone()) {
            Err(StrategyError::Config { field, .. }) => assert_eq!(field, expected, "{document}"),
            other => panic!("{document}: {other:?}"),
        }
    }
}

#[test]
fn names_are_case_sensitive_and_unknown_types_are_errors() {
    for kind in ["", "OAuth2", "Header", "bearer"] {
        assert_eq!(
            parse(json!({"type": kind})),
            Err(StrategyError::UnknownType(kind.to_owned()))
        );
    }
}

#[test]
fn types_of_later_versions_fail_closed() {
    for kind in ["dpop", "oauth1", "mtls", "hmac_template", "path"] {
        let unsupported = Err(StrategyError::Unsupported(kind.to_owned()));
        assert_eq!(parse(json!({"type": kind})), unsupported);
        let (route, delivered) = (spec(json!({"type": kind})), spec(json!({"type": "oauth2"})));
        assert_eq!(Strategy::effective(Some(&route), &delivered), unsupported);
        assert_eq!(Strategy::effective(Some(&route), &route), unsupported);
    }
}

#[test]
fn an_oauth2_credential_may_be_presented_as_header_or_basic_auth() {
    let delivered = spec(json!({"type": "oauth2"}));
    let as_header = spec(json!({"type": "header", "config": {"header_name": "X-Token"}}));
    assert_eq!(
        Strategy::effective(Some(&as_header), &delivered),
        Ok(Strategy::Header(vec![header(
            "x-token",
            "access_token",
            ""
        )]))
    );
    let as_set = spec(json!({"type": "header", "config": {"set": [{"name": "A"}]}}));
    assert_eq!(
        Strategy::effective(Some(&as_set), &delivered),
        Ok(Strategy::Header(vec![header("a", "access_token", "")]))
    );
    let as_basic = spec(json!({"type": "basic_auth", "config": {"username": "x-access-token"}}));
    assert_eq!(
        Strategy::effective(Some(&as_basic), &delivered),
        Ok(Strategy::BasicAuth {
            username: Username::Literal("x-access-token".to_owned()),
            password_field: "access_token".to_owned(),
        })
    );
}

#[test]
fn any_other_difference_of_type_fails_closed() {
    for (route, delivered) in [
        ("oauth2", "header"),
        ("header", "basic_auth"),
        ("query_param", "oauth2"),
        ("aws_sigv4", "oauth2"),
        ("dpop", "header"),
        ("dpop", "mtls"),
        ("header", "dpop"),
    ] {
        let (route, delivered) = (
            spec(json!({"type": route})),
            spec(json!({"type": delivered})),
        );
        assert_eq!(
            Strategy::effective(Some(&route), &delivered),
            Err(StrategyError::Mismatch {
                route: route.kind.clone(),
                delivered: delivered.kind.clone()
            })
        );
    }
}

#[test]
fn the_routes_settings_win_but_for_the_region() {
    let route = spec(
        json!({"type": "aws_sigv4", "config": {"service": "execute-api", "region": "eu-west-1"}}),
    );
    let with =
        spec(json!({"type": "aws_sigv4", "config": {"service": "s3", "region": "us-east-2"}}));
    let without = spec(json!({"type": "aws_sigv4", "config": {"service": "s3"}}));
    for (delivered, region) in [(with, "us-east-2"), (without, "eu-west-1")] {
        assert_eq!(
            Strategy::effective(Some(&route), &delivered),
            Ok(Strategy::AwsSigv4 {
                service: "execute-api".to_owned(),
                region: Some(region.to_owned())
            })
        );
    }
    let route = spec(json!({"type": "api_key", "config": {"value_prefix": "Token "}}));
    let delivered =
        spec(json!({"type": "header", "config": {"header_name": "X-K", "credential_field": "k"}}));
    assert_eq!(
        Strategy::effective(Some(&route), &delivered),
        Ok(Strategy::Header(vec![header("x-k", "k", "Token ")]))
    );
}

#[test]
fn a_setting_takes_the_place_of_its_alternative() {
    let one = spec(json!({"type": "header", "config": {"header_name": "X-K"}}));
    let several = spec(json!({"type": "header", "config": {"set": [{"name": "A"}]}}));
    assert_eq!(
        Strategy::effective(Some(&several), &one),
        Ok(Strategy::Header(vec![header("a", "api_key", "")]))
    );
    assert_eq!(
        Strategy::effective(Some(&one), &several),
        Ok(Strategy::Header(vec![header("x-k", "api_key", "")]))
    );
}

#[test]
fn no_route_strategy_means_the_delivered_one() {
    let delivered = spec(json!({"type": "oauth2"}));
    assert_eq!(Strategy::effective(None, &delivered), Ok(Strategy::Oauth2));
}
