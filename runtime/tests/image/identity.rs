//! An identity token: a refresh token that goes to the token realm in the body of a POST, and nowhere
//! else.

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{CredentialSources, PullOptions};

use crate::liar::{Answer, Liar, answer, image, plain};
use crate::support::*;

const MANIFEST_PATH: &str = "/v2/x/manifests/1";
const SECRET: &str = "refresh-s3cret";

/// A helper that gives the token.
fn identity(place: &Place) -> PullOptions {
    let answer = format!(r#"echo '{{"Username":"<token>","Secret":"{SECRET}"}}'"#);
    let helper = Some(script(place.path("helper"), &answer));
    PullOptions { credentials: CredentialSources { helper, ..Default::default() }, ..plain() }
}

fn bearer(host: &str) -> Answer {
    let header = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"s\"\r\n");
    answer("401 Unauthorized", &header, b"")
}

#[tokio::test]
async fn it_is_posted_to_the_realm() {
    let place = Place::new();
    let (layout, descriptor, layer, _) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let good = liar.answers.lock().unwrap()[MANIFEST_PATH][0].clone();
    liar.say(MANIFEST_PATH, &[bearer(&liar.address), good]);
    liar.say("/token", &[answer("200 OK", "", br#"{"access_token":"t0ken"}"#)]);
    place.pull_with(&name, &identity(&place)).await.unwrap();
    let [asked] = liar.requests("/token").try_into().expect("one request");
    let (head, body) = asked.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("POST /token HTTP/1.1\r\n"),
        "no secret and nothing else in the address: {head}"
    );
    assert!(head.contains("content-type: application/x-www-form-urlencoded"), "{head}");
    assert!(!head.contains("authorization") && !head.contains(SECRET), "{head}");
    let scope = "scope=repository%3Ax%3Apull";
    let form = format!("grant_type=refresh_token&client_id=skiff&service=s&{scope}&refresh_token={SECRET}");
    assert_eq!(body, form);
    for path in [MANIFEST_PATH, &layer] {
        assert!(liar.requests(path).last().unwrap().contains("authorization: Bearer t0ken\r\n"), "{path}");
    }
    assert_eq!(liar.requests(SECRET).len(), 1);
}

#[tokio::test]
async fn it_follows_no_redirect_and_goes_to_no_other_host() {
    let place = Place::new();
    let (layout, descriptor, ..) = image(&place);
    let (liar, other) = (Liar::start().await, Liar::start().await);
    let name = liar.serve_image(&layout, &descriptor);
    let options = identity(&place);
    other.say("/token", &[answer("200 OK", "", br#"{"access_token":"t0ken"}"#)]);
    let away = format!("Location: http://{}/token\r\n", other.address);
    liar.say(MANIFEST_PATH, &[bearer(&liar.address)]);
    // The first two would have it sent again with its body.
    for (status, said) in [
        ("307 Temporary Redirect", "answered 307"),
        ("308 Permanent Redirect", "answered 308"),
        ("302 Found", "answered 302"),
    ] {
        liar.say("/token", &[answer(status, &away, b"")]);
        let error = Place::new().error(&name, &options).await;
        assert_eq!(error.kind(), ErrorKind::RegistryFailed, "{error:?}");
        assert!(error.to_string().contains(said), "{error}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
    assert!(other.requests("").is_empty(), "{:?}", other.requests(""));
    let before = liar.requests(SECRET).len();
    let foreign = other.address.replace("127.0.0.1", "localhost");
    let basic = answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", b"");
    for challenge in [bearer(&foreign), basic] {
        liar.say(MANIFEST_PATH, &[challenge]);
        let error = Place::new().error(&name, &options).await;
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    }
    assert!(other.requests("").is_empty(), "{:?}", other.requests(""));
    assert_eq!(liar.requests(SECRET).len(), before, "no user name and password, so not for Basic");
}

#[tokio::test]
async fn one_that_the_realm_refuses_is_told_without_it() {
    let place = Place::new();
    let (layout, descriptor, ..) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    liar.say(MANIFEST_PATH, &[bearer(&liar.address)]);
    let said = br#"{"error":"invalid_grant","error_description":"refresh-s3cret"}"#;
    liar.say("/token", &[answer("400 Bad Request", "", said)]);
    let error = place.error(&name, &identity(&place)).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(error.to_string().contains("answered 400") && error.advice().is_some(), "{error:?}");
    assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
}
