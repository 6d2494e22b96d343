//! Several sidecars with one connection, several keys with one, and one key with two.

use tokio::time::sleep;

use super::gateway::*;
use super::*;
use crate::credential::refresh::Role;

#[tokio::test(start_paused = true)]
async fn of_sidecars_that_share_a_connection_one_refreshes_and_the_others_find_it_done() {
    for life in [5 * SECOND, 20 * MINUTE, HOUR] {
        let gateway = Arc::new(Gateway::default());
        gateway.stores(1, "first", life, Refresh::Issues(life));
        gateway.delay(1, 40 * MILLI);
        // Three whose first places are apart; what follows keeps them so.
        let caches = [2, 7, 8].map(|seed| {
            let refresh = RefreshSettings {
                seed,
                ..RefreshSettings::default()
            };
            let settings = CacheSettings {
                refresh,
                ..CacheSettings::default()
            };
            another(&gateway, settings)
        });
        let began = Moment::now();
        while gateway.refreshes(1) < 30 {
            for cache in &caches {
                assert!(got(cache, 1).await.is_ok());
            }
            sleep(life / 100).await;
        }
        assert!(!gateway.with(1, |it| it.raced), "{life:?}");
        let took = Moment::now().since(began);
        assert!(took > life * 15, "{life:?}: {took:?}");
        let roles = caches.each_ref().map(|cache| {
            let slot = cache.slots.peek(&key(1)).unwrap();
            slot.gates.first.budget(|budget| budget.role)
        });
        let led = roles.iter().filter(|role| **role == Role::Leads).count();
        assert_eq!(led, 1, "{life:?}: {roles:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_connection_under_two_strategies_is_asked_about_by_one_call_at_a_time() {
    let (gateway, cache) = start();
    gateway.stores(1, "old", Duration::ZERO, Refresh::Issues(HOUR));
    gateway.delay(1, SECOND);
    let spec: StrategySpec =
        serde_json::from_str(r#"{"type":"header","config":{"header_name":"X-Key"}}"#).unwrap();
    let spec = Arc::new(spec);
    let other = CredentialKey::new(connection(1), strategy_digest(Some(&spec)));
    let (first, second) = tokio::join!(
        cache.get(key(1), connection(1), None),
        cache.get(other, connection(1), Some(&spec))
    );
    assert_eq!(value(&first.unwrap()), "refreshed-1");
    assert_eq!(value(&second.unwrap()), "refreshed-1");
    assert_eq!(gateway.with(1, |it| it.most_in_flight), 1);
    assert_eq!(gateway.refreshes(1), 1);
}

#[tokio::test(start_paused = true)]
async fn fields_of_a_second_connection_go_under_the_firsts() {
    let (gateway, cache) = start();
    let pair = |first: u128, second: u128| Connection {
        key_id: Some(connection(second).id),
        ..connection(first)
    };
    gateway.set(
        1,
        200,
        r#"{"strategy":{"type":"basic_auth"},"credentials":{"username":"first","password":null}}"#,
    );
    gateway.set(
        2,
        200,
        r#"{"strategy":{"type":"basic_auth"},"credentials":{"username":"second","password":"p","expires_at":4000000000}}"#,
    );
    gateway.delay(1, SECOND);
    gateway.delay(2, SECOND);
    // Both ways round at once: neither waits for the other for ever.
    let (merged, reverse) = (pair(1, 2), pair(2, 1));
    let (credential, reversed) = tokio::join!(
        cache.get(CredentialKey::new(merged, 0), merged, None),
        cache.get(CredentialKey::new(reverse, 0), reverse, None)
    );
    let credential = credential.unwrap();
    assert_eq!(value(&credential), "Basic Zmlyc3Q6cA==");
    assert!(credential.expires_at().is_some());
    assert_eq!(value(&reversed.unwrap()), "Basic c2Vjb25kOnA=");
    assert_eq!(gateway.with(1, |it| it.most_in_flight), 1);
}

#[tokio::test(start_paused = true)]
async fn of_two_connections_the_one_that_expires_is_refreshed() {
    let (gateway, cache) = start();
    let both = Connection {
        key_id: Some(connection(2).id),
        ..connection(1)
    };
    let key = CredentialKey::new(both, 0);
    gateway.stores(1, "long", 10 * HOUR, Refresh::Issues(10 * HOUR));
    gateway.stores(2, "under the first", HOUR, Refresh::Issues(HOUR));
    for _ in 0..3 {
        let credential = cache.get(key, both, None).await.unwrap();
        assert_eq!(value(&credential), "long");
        sleep(55 * MINUTE).await;
    }
    assert_eq!(gateway.refreshes(1), 0);
    assert!((2..=3).contains(&gateway.refreshes(2)));
}
