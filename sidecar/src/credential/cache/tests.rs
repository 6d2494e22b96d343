//! On a paused clock, against a control plane in memory: every rule about time is shown to the millisecond.
#![allow(
    clippy::unchecked_time_subtraction,
    reason = "a difference that is negative fails the test"
)]

mod fetching;
mod gateway;
mod rejections;
mod renewing;
mod sharing;

use nexus_crds::names::ConnectionId;

use super::*;

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

#[test]
fn strategies_differ_in_their_digest_where_they_differ() {
    let spec = |json: &str| -> StrategySpec { serde_json::from_str(json).unwrap() };
    let base = spec(r#"{"type":"header","config":{"a":"b","c":"d"}}"#);
    let same = spec(r#"{"config":{"c":"d","a":"b"},"type":"header"}"#);
    assert_eq!(strategy_digest(Some(&base)), strategy_digest(Some(&same)));
    for other in [
        r#"{"type":"header"}"#,
        r#"{"type":"api_key","config":{"a":"b","c":"d"}}"#,
        r#"{"type":"header","config":{"a":"bc","d":""}}"#,
        r#"{"type":"header","config":{"a":"b","c":"e"}}"#,
    ] {
        assert_ne!(
            strategy_digest(Some(&base)),
            strategy_digest(Some(&spec(other)))
        );
    }
    assert_eq!(strategy_digest(None), 0);
}
