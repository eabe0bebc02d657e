#![allow(clippy::unwrap_used, clippy::expect_used)]

use tokio::time::advance;

use super::*;
use crate::testing::FakeApi;

const KEYS: &str = r#"{"keys":[{"kid":"a"}]}"#;
const NEW_KEYS: &str = r#"{"keys":[{"kid":"b"}]}"#;

fn source() -> (Arc<FakeApi>, JwksSource) {
    let api = Arc::new(FakeApi::default());
    api.set_jwks(Ok(KEYS.into()));
    (api.clone(), JwksSource::new(api, JwksPolicy::default()))
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_unknown_key_ids_is_one_request() {
    let (api, source) = source();
    api.hold();
    let callers = futures::future::join_all((0..20).map(|_| source.refetch()));
    let (outcomes, ()) = tokio::join!(callers, async {
        api.waiting().await;
        api.release();
    });
    assert_eq!(outcomes, [RefetchOutcome::Fresh; 20]);
    for _ in 0..1000 {
        assert_eq!(source.refetch().await, RefetchOutcome::RateLimited);
    }
    assert_eq!(api.calls(), 1);

    advance(Duration::from_secs(10)).await;
    assert_eq!(source.refetch().await, RefetchOutcome::Fresh);
    assert_eq!(api.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn failures_are_limited_too_and_the_last_good_set_stays() {
    let (api, source) = source();
    assert_eq!(source.refetch().await, RefetchOutcome::Fresh);
    let good = source.current().unwrap();
    assert_eq!(good.json, KEYS);

    let hopeless = [
        Err(ApiError::Unreachable("down".into())),
        Ok(r#"{"keys":[]}"#.to_string()),
        Ok("<html>".to_string()),
        Ok(r#"{"kind":"Status"}"#.to_string()),
    ];
    for answer in hopeless {
        api.set_jwks(answer);
        advance(Duration::from_secs(10)).await;
        assert_eq!(source.refetch().await, RefetchOutcome::Failed);
        assert_eq!(source.refetch().await, RefetchOutcome::RateLimited);
        assert_eq!(source.current().unwrap(), good);
    }
    assert_eq!(source.age(now()), Some(Duration::from_secs(40)));
}

#[tokio::test(start_paused = true)]
async fn it_is_refreshed_every_five_minutes_and_retried_sooner() {
    let (api, source) = source();
    let source = Arc::new(source);
    let mut updates = source.subscribe();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn({
        let source = source.clone();
        async move { source.run(async { drop(stopped.await) }).await }
    });
    updates.changed().await.unwrap();
    let began = now();
    api.set_jwks(Err(ApiError::Unreachable("down".into())));
    api.called(2).await;
    assert_eq!(now() - began, Duration::from_mins(5));
    api.set_jwks(Ok(NEW_KEYS.into()));
    updates.changed().await.unwrap();
    assert_eq!(now() - began, Duration::from_secs(310));
    assert_eq!(source.current().unwrap().json, NEW_KEYS);
    stop.send(()).unwrap();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_request_does_not_block_the_next() {
    let (api, source) = source();
    api.hold();
    let source = Arc::new(source);
    let caller = tokio::spawn({
        let source = source.clone();
        async move { source.refetch().await }
    });
    api.waiting().await;
    caller.abort();
    drop(caller.await);
    api.release();
    advance(Duration::from_secs(10)).await;
    assert_eq!(source.refetch().await, RefetchOutcome::Fresh);
}

#[test]
fn the_refresh_leaves_most_of_the_allowed_age_to_an_outage() {
    let refresh = |secs| {
        JwksPolicy::for_staleness(Duration::from_secs(secs))
            .refresh
            .as_secs()
    };
    assert_eq!(
        (refresh(36_000), refresh(600), refresh(60), refresh(10)),
        (300, 60, 10, 10)
    );
}
