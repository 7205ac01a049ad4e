//! Temporary credentials of programs and services: they run out within a pull and are asked for again.

use std::fs;
use std::process::Command;

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{CredentialEndpoint, CredentialSources, PullOptions};

use crate::liar::{Liar, answer, basic, behind_a_password, image, plain};
use crate::support::*;

/// "user:p0" and "user:p1" in Base64.
const FIRST: &str = "authorization: Basic dXNlcjpwMA==\r\n";
const SECOND: &str = "authorization: Basic dXNlcjpwMQ==\r\n";

/// Seconds that the first password is good for, at most; and that its layer has to wait.
const LIFE: u32 = 4;
const WAIT: u32 = 5;

/// A registry that sends the layer's first request away for longer than the first password lives.
struct Slow {
    place: Place,
    liar: Liar,
    name: String,
    layer: String,
}

impl Slow {
    async fn start() -> Self {
        let place = Place::new();
        let (liar, name, layer, packed) = behind_a_password(&place).await;
        let busy = answer("503 Service Unavailable", &format!("Retry-After: {WAIT}\r\n"), b"");
        liar.say(&format!("/v2/x/blobs/{layer}"), &[busy, answer("200 OK", "", &packed)]);
        Self { place, liar, name, layer }
    }

    /// Pulls and checks what the registry was shown.
    async fn is_pulled_with_both(&self, credentials: CredentialSources) {
        let options = PullOptions { credentials, ..plain() };
        let image = self.place.pull_with(&self.name, &options).await.unwrap();
        assert_eq!(read(&image, 0, "noise").len(), 300_000);
        assert!(self.liar.requests("/manifests/")[1].contains(FIRST));
        let asked = self.liar.requests(&self.layer);
        assert_eq!(asked.len(), 2, "nothing was refused: {asked:?}");
        assert!(asked[0].contains(FIRST) && asked[1].contains(SECOND), "{asked:?}");
    }
}

#[tokio::test]
async fn a_helper_is_asked_again_when_its_password_runs_out() {
    let slow = Slow::start().await;
    let asked = slow.place.path("asked");
    let text = format!(
        r#"read server; echo "$1 $server" >> {asked}
        [ "$(wc -l < {asked})" = 1 ] || exec echo '{{"Username":"user","Secret":"p1"}}'
        printf '{{"Username":"user","Secret":"p0","Expiry":"%s"}}' "$(date -u -d '+{LIFE} seconds' +%Y-%m-%dT%H:%M:%SZ)""#,
        asked = asked.display()
    );
    let helper = Some(script(slow.place.path("helper"), &text));
    slow.is_pulled_with_both(CredentialSources { helper, ..Default::default() }).await;
    let line = format!("get {}\n", slow.liar.address);
    assert_eq!(fs::read_to_string(&asked).unwrap(), line.repeat(2));
}

#[tokio::test]
async fn a_service_is_asked_again_when_its_password_runs_out() {
    let slow = Slow::start().await;
    let service = Liar::start().await;
    let in_time = ["-u", "-d", &format!("+{LIFE} seconds"), "+%Y-%m-%dT%H:%M:%SZ"].map(str::to_owned);
    let expiry = Command::new("date").args(in_time).output().unwrap().stdout;
    let expiry = String::from_utf8(expiry).unwrap();
    let first = format!(r#"{{"username":"user","password":"p0","expiry":"{}"}}"#, expiry.trim());
    let second = br#"{"username":"user","password":"p1"}"#;
    service.say("/get", &[answer("200 OK", "", first.as_bytes()), answer("200 OK", "", second)]);
    let endpoint = CredentialEndpoint { url: format!("http://{}/get", service.address), token: None };
    slow.is_pulled_with_both(CredentialSources { endpoint: Some(endpoint), ..Default::default() }).await;
    let asked = service.requests("");
    let wanted = format!("GET /get?registry={}&repository=x ", slow.liar.address.replace(':', "%3A"));
    assert!(asked.len() == 2 && asked.iter().all(|request| request.starts_with(&wanted)), "{asked:?}");
}

#[tokio::test]
async fn a_service_and_a_helper_that_know_nothing_mean_an_anonymous_pull() {
    let place = Place::new();
    let (layout, descriptor, layer, _) = image(&place);
    let (liar, service) = (Liar::start().await, Liar::start().await);
    let name = liar.serve_image(&layout, &descriptor);
    let good = liar.answers.lock().unwrap()["/v2/x/manifests/1"][0].clone();
    let realm = format!("WWW-Authenticate: Bearer realm=\"http://{}/token\"\r\n", liar.address);
    liar.say("/token", &[answer("200 OK", "", br#"{"token":"anyone"}"#)]);
    // A service that has nothing under this path answers 404.
    let endpoint = CredentialEndpoint { url: format!("http://{}/get", service.address), token: None };
    let endpoint = CredentialSources { endpoint: Some(endpoint), ..Default::default() };
    let helper = script(place.path("helper"), "echo 'credentials not found in native keychain'; exit 1");
    let helper = CredentialSources { helper: Some(helper), ..Default::default() };
    for (at, credentials) in [endpoint, helper].into_iter().enumerate() {
        liar.requests.lock().unwrap().clear();
        let options = PullOptions { credentials, ..plain() };
        liar.say("/v2/x/manifests/1", &[answer("401 Unauthorized", &realm, b""), good.clone()]);
        Place::new().pull_with(&name, &options).await.unwrap();
        let asked = liar.requests("/token");
        assert_eq!(asked.len(), 1, "{at}");
        assert!(asked[0].starts_with("GET /token?") && !asked[0].contains("authorization"), "{asked:?}");
        assert!(liar.requests(&layer)[0].contains("authorization: Bearer anyone\r\n"));

        liar.say("/v2/x/manifests/1", &[basic()]);
        let error = Place::new().error(&name, &options).await;
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
        assert!(error.advice().unwrap().starts_with("give credentials"), "{error:?}");
    }
    assert_eq!(service.requests("/get").len(), 2, "once in each pull");
}
