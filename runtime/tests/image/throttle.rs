//! `Retry-After`: what a registry or its token realm asks for is waited, or refused at once.

use std::time::Duration;

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{PullOptions, Times};

use crate::liar::{Answer, Liar, answer, image, with_password};
use crate::support::*;

const MANIFEST_PATH: &str = "/v2/x/manifests/1";

fn busy(status: &str, seconds: u64) -> Answer {
    answer(status, &format!("Retry-After: {seconds}\r\n"), b"")
}

fn bearer(liar: &Liar) -> Answer {
    let header =
        format!("WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"s\"\r\n", liar.address);
    answer("401 Unauthorized", &header, b"")
}

fn token(text: &str, seconds: u32) -> Answer {
    answer("200 OK", "", format!(r#"{{"token":"{text}","expires_in":{seconds}}}"#).as_bytes())
}

/// Waits of its own choice do not end within the test.
fn only_as_asked() -> PullOptions {
    let hour = Duration::from_secs(3600);
    let times = Times { first_wait: hour, longest_wait: hour, ..Times::default() };
    PullOptions { times, timeout: Some(Duration::from_secs(120)), ..with_password() }
}

#[tokio::test]
async fn the_wait_of_a_token_realm_is_kept() {
    let place = Place::new();
    let (layout, descriptor, layer, _) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let good = liar.answers.lock().unwrap()[MANIFEST_PATH][0].clone();
    liar.say(MANIFEST_PATH, &[bearer(&liar), bearer(&liar), bearer(&liar), good]);
    let failing = [busy("429 Too Many Requests", 1), busy("503 Service Unavailable", 1), token("t", 600)];
    liar.say("/token", &failing);
    place.pull_with(&name, &only_as_asked()).await.expect("the third token is one");
    assert_eq!(liar.requests("/token").len(), 3);
    assert!(liar.requests(&layer)[0].contains("authorization: Bearer t\r\n"));
}

/// With a shorter wait the first token would still be good.
#[tokio::test]
async fn a_wait_longer_than_skiffs_own_is_kept() {
    let place = Place::new();
    let (layout, descriptor, layer, packed) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let good = liar.answers.lock().unwrap()[MANIFEST_PATH][0].clone();
    liar.say(MANIFEST_PATH, &[bearer(&liar), good]);
    liar.say("/token", &[token("short", 2), token("long", 600)]);
    let path = format!("/v2/x/blobs/{layer}");
    liar.say(&path, &[busy("429 Too Many Requests", 3), answer("200 OK", "", &packed)]);
    let milli = Duration::from_millis(1);
    let times = Times { first_wait: milli, longest_wait: milli, ..Times::default() };
    place.pull_with(&name, &PullOptions { times, ..with_password() }).await.unwrap();
    let asked = liar.requests(&layer);
    assert_eq!(asked.len(), 2);
    assert!(asked[0].contains("Bearer short") && asked[1].contains("Bearer long"), "{asked:?}");
}

#[tokio::test]
async fn a_wait_beyond_the_time_of_the_pull_fails_at_once() {
    let place = Place::new();
    let (layout, descriptor, layer, _) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let good = liar.answers.lock().unwrap()[MANIFEST_PATH][0].clone();
    let blob = format!("/v2/x/blobs/{layer}");
    let options = only_as_asked();
    let throttled = busy("429 Too Many Requests", 86_400);
    for (manifests, blobs, tokens, path, kind) in [
        (vec![throttled.clone()], vec![], vec![], MANIFEST_PATH, ErrorKind::RegistryThrottled),
        (vec![good.clone()], vec![throttled.clone()], vec![], &blob, ErrorKind::RegistryThrottled),
        (vec![good], vec![busy("503 Service Unavailable", 86_400)], vec![], &blob, ErrorKind::RegistryFailed),
        (vec![bearer(&liar)], vec![], vec![throttled.clone()], "/token", ErrorKind::RegistryThrottled),
    ] {
        liar.requests.lock().unwrap().clear();
        liar.say(MANIFEST_PATH, &manifests);
        liar.say(&blob, &blobs);
        liar.say("/token", &tokens);
        let error = Place::new().error(&name, &options).await;
        assert_eq!(error.kind(), kind, "{path}: {error:?}");
        let wanted = "; it asks for 86400 s before the next attempt, and the pull has 1";
        assert!(error.to_string().contains(wanted), "{path}: {error}");
        assert!(error.is_retryable() && error.advice().unwrap().contains("later"), "{error:?}");
        assert_eq!(liar.requests(path).len(), 1, "{path}");
    }
    // A pull without an end does not wait for a day either.
    liar.say(MANIFEST_PATH, &[throttled]);
    let error = place.error(&name, &PullOptions { timeout: None, ..options }).await;
    assert!(error.to_string().ends_with("and Skiff waits for 3600 seconds at most"), "{error}");
}
