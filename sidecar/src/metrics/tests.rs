use std::time::Duration;

use http::StatusCode;

use super::*;
use crate::error::Code;

fn has(metrics: &Metrics, line: &str) -> bool {
    metrics.encode().lines().any(|other| other == line)
}

#[test]
fn requests_count_by_route_provider_and_outcome_class() {
    let metrics = Metrics::new();
    let github = metrics.route("agents/github", "github");
    for (status, label) in [
        (101, "1xx"),
        (204, "2xx"),
        (302, "3xx"),
        (404, "4xx"),
        (503, "5xx"),
        (999, "other"),
    ] {
        let outcome = Outcome::Upstream(StatusCode::from_u16(status).unwrap());
        assert_eq!(outcome.label(), label);
        github.record(outcome);
        let line = format!(
            "nexus_requests_total{{route=\"agents/github\",provider=\"github\",outcome=\"{label}\"}} 1"
        );
        assert!(has(&metrics, &line), "{}", metrics.encode());
    }
    metrics
        .unrouted()
        .record(Outcome::Error(Code::ProviderUnknown));
    assert!(has(
        &metrics,
        "nexus_requests_total{route=\"\",provider=\"\",outcome=\"provider_unknown\"} 1"
    ));
}

#[test]
fn every_code_counts_under_its_own_name() {
    for (index, code) in Code::ALL.into_iter().enumerate() {
        assert_eq!(
            code as usize, index,
            "the order of ALL is that of the declaration"
        );
        assert_eq!(Outcome::Error(code).label(), code.class().code);
    }
    assert_eq!(Outcome::Cancelled.label(), "cancelled");
    let metrics = Metrics::new();
    metrics.control_call(ControlCall::Get, Ok(()));
    metrics.control_call(ControlCall::Refresh, Err(Code::BrokerUnavailable));
    for line in [
        "nexus_control_plane_calls_total{call=\"get\",outcome=\"success\"} 1",
        "nexus_control_plane_calls_total{call=\"refresh\",outcome=\"broker_unavailable\"} 1",
    ] {
        assert!(has(&metrics, line), "{}", metrics.encode());
    }
}

#[test]
fn a_reloaded_table_goes_on_counting_and_a_removed_route_leaves_after_one_more_reading() {
    let metrics = Metrics::new();
    let old = metrics.route("a", "p");
    old.record(Outcome::Cancelled);
    let new = metrics.route("a", "p");
    assert!(Arc::ptr_eq(&old, &new));
    drop(old);
    new.record(Outcome::Cancelled);
    let line = "nexus_requests_total{route=\"a\",provider=\"p\",outcome=\"cancelled\"} 2";
    assert!(has(&metrics, line));
    assert!(has(&metrics, line));
    drop(new);
    assert!(has(&metrics, line));
    assert!(!has(&metrics, line));
    assert!(Arc::ptr_eq(&metrics.route("", ""), metrics.unrouted()));
}

#[test]
fn a_level_counts_what_is_held() {
    let metrics = Metrics::new();
    let held = [metrics.in_flight.hold(), metrics.in_flight.hold()];
    assert!(has(&metrics, "nexus_requests_in_flight 2"));
    drop(held);
    assert!(has(&metrics, "nexus_requests_in_flight 0"));
    assert_eq!(metrics.in_flight.get(), 0);
}

#[test]
fn durations_are_cumulative_with_inclusive_bounds() {
    let metrics = Metrics::new();
    for milliseconds in [1, 5, 6, 700_000] {
        metrics.observe_duration(Duration::from_millis(milliseconds));
    }
    for line in [
        "nexus_request_duration_seconds_bucket{le=\"0.005\"} 2",
        "nexus_request_duration_seconds_bucket{le=\"0.01\"} 3",
        "nexus_request_duration_seconds_bucket{le=\"600.0\"} 3",
        "nexus_request_duration_seconds_bucket{le=\"+Inf\"} 4",
        "nexus_request_duration_seconds_count 4",
        "nexus_request_duration_seconds_sum 700.012",
    ] {
        assert!(has(&metrics, line), "{line}\n{}", metrics.encode());
    }
}

#[test]
fn readings_are_taken_anew_each_time_and_the_last_source_counts() {
    let metrics = Metrics::new();
    let value = Arc::new(std::sync::atomic::AtomicU64::new(3));
    let source = value.clone();
    metrics.read_from(Reading::CredentialCacheEntries, || 1);
    metrics.read_from(Reading::CredentialCacheEntries, move || {
        source.load(std::sync::atomic::Ordering::Relaxed)
    });
    metrics.read_from(Reading::UpstreamConnectionsOpened, || 7);
    assert!(has(&metrics, "nexus_credential_cache_entries 3"));
    assert!(has(&metrics, "nexus_upstream_connections_opened_total 7"));
    value.store(4, std::sync::atomic::Ordering::Relaxed);
    assert!(has(&metrics, "nexus_credential_cache_entries 4"));
}

#[test]
fn every_metric_has_help_a_prefix_and_is_described_once() {
    let metrics = Metrics::new();
    for reading in [
        Reading::CredentialCacheEntries,
        Reading::UpstreamConnectionsOpened,
        Reading::AccessLinesDropped,
        Reading::AccessWritesFailed,
        Reading::AccessLinesUnwritten,
    ] {
        metrics.read_from(reading, || 0);
    }
    for event in [
        AuditEvent::Refusal,
        AuditEvent::ScrubHit,
        AuditEvent::ForcedRefresh,
        AuditEvent::TableChange,
    ] {
        metrics.audit(event);
        assert!(has(
            &metrics,
            &format!("nexus_audit_events_total{{event=\"{}\"}} 1", event.label())
        ));
    }
    metrics.route("r", "p").add_scrub_hits(2);
    metrics.route("r", "p").add_access_warning();
    metrics.table_revision.set(1_793_000_000_000);
    let text = metrics.encode();
    let names: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(names.len(), distinct.len());
    assert_eq!(names.len(), text.matches("# HELP ").count());
    assert!(
        names.iter().all(|name| name.starts_with("nexus_")),
        "{names:?}"
    );
    assert!(text.contains("nexus_route_table_revision 1793000000000"));
    assert!(text.ends_with("# EOF\n"));
}
