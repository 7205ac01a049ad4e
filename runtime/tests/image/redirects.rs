//! Redirects: which are followed, and what goes along.

use skiff_runtime::ErrorKind;
use skiff_runtime::image::PullOptions;

use crate::liar::{Answer, Liar, answer, image, plain, with_password};
use crate::support::*;
use crate::wire::TlsFront;

const MANIFEST_PATH: &str = "/v2/x/manifests/1";

fn to(location: &str) -> Answer {
    answer("307 Temporary Redirect", &format!("Location: {location}\r\n"), b"")
}

#[tokio::test]
async fn from_https_none_leads_to_http() {
    let place = Place::new();
    let (layout, descriptor, layer, packed) = image(&place);
    let (liar, other) = (Liar::start().await, Liar::start().await);
    let name = liar.serve_image(&layout, &descriptor);
    let good = liar.answers.lock().unwrap()[MANIFEST_PATH][0].clone();
    let front = TlsFront::start(place.dir.path(), &liar, &[]);
    let name = name.replace(&liar.address, &front.address);
    let ca_files = vec![place.path("ca.pem")];
    let options = PullOptions { plain_http: false, ca_files, ..with_password() };
    // What it leads to would be right.
    other.say("/manifest", std::slice::from_ref(&good));
    other.say("/layer", &[answer("200 OK", "", &packed)]);
    let blob = format!("/v2/x/blobs/{layer}");
    let refused = async |manifest: Answer, layer: Answer| {
        liar.say(MANIFEST_PATH, &[manifest]);
        liar.say(&blob, &[layer]);
        let error = Place::new().error(&name, &options).await;
        assert_eq!(error.kind(), ErrorKind::RegistryFailed, "{error:?}");
        assert!(error.to_string().contains("does not follow: from HTTPS to another scheme"), "{error}");
        assert!(error.to_string().contains(&front.address), "{error}");
    };
    refused(to(&format!("http://{}/manifest", other.address)), good.clone()).await;
    refused(good.clone(), to(&format!("http://{}/layer", other.address))).await;
    refused(good.clone(), to(&format!("http://{}{MANIFEST_PATH}", front.address))).await;
    refused(good.clone(), to("ftp://example.com/layer")).await;
    assert!(other.requests("").is_empty(), "{:?}", other.requests(""));
    // Within HTTPS it is followed.
    liar.say(&blob, &[to(&format!("https://{}/layer", front.address))]);
    liar.say("/layer", &[answer("200 OK", "", &packed)]);
    place.pull_with(&name, &options).await.unwrap();
}

#[tokio::test]
async fn none_leads_to_an_address_with_a_user_or_to_none() {
    let place = Place::new();
    let (layout, descriptor, ..) = image(&place);
    let (liar, other) = (Liar::start().await, Liar::start().await);
    let name = liar.serve_image(&layout, &descriptor);
    let at = &other.address;
    for (location, why) in [
        (format!("http://me:s3cret@{at}/manifest"), "to an address with a user in it"),
        (format!("http://me@{at}/manifest"), "to an address with a user in it"),
        (format!("http://:s3cret@{at}/manifest"), "to an address with a user in it"),
        ("http://".to_owned(), "to what is no address"),
        ("file:///etc/passwd".to_owned(), "to what is no address"),
    ] {
        liar.say(MANIFEST_PATH, &[to(&location)]);
        let error = Place::new().error(&name, &plain()).await;
        assert_eq!(error.kind(), ErrorKind::RegistryFailed, "{location}: {error:?}");
        assert!(error.to_string().contains(&format!("does not follow: {why}")), "{location}: {error}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
    assert!(other.requests("").is_empty(), "{:?}", other.requests(""));
}

#[tokio::test]
async fn five_are_followed_and_no_more() {
    let place = Place::new();
    let (layout, descriptor, ..) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let good = liar.answers.lock().unwrap()[MANIFEST_PATH][0].clone();
    liar.say(MANIFEST_PATH, &[to("/1")]);
    for step in 1..7 {
        liar.say(&format!("/{step}"), &[to(&format!("/{}", step + 1))]);
    }
    let error = place.error(&name, &plain()).await;
    assert_eq!(error.kind(), ErrorKind::RegistryFailed, "{error:?}");
    assert!(error.to_string().ends_with("does not follow: more than 5 times"), "{error}");
    assert_eq!((liar.requests("GET /5 ").len(), liar.requests("GET /6 ").len()), (1, 0));
    liar.say("/5", &[good]);
    place.pull_with(&name, &plain()).await.expect("the fifth leads to it");
    // Round and round.
    liar.requests.lock().unwrap().clear();
    liar.say(MANIFEST_PATH, &[to(MANIFEST_PATH)]);
    let error = Place::new().error(&name, &plain()).await;
    assert!(error.to_string().ends_with("more than 5 times"), "{error}");
    assert_eq!(liar.requests("").len(), 6);
}

#[tokio::test]
async fn what_was_left_is_not_shown_a_password_when_it_is_come_back_to() {
    let place = Place::new();
    let (layout, descriptor, layer, packed) = image(&place);
    let (liar, other) = (Liar::start().await, Liar::start().await);
    let name = liar.serve_image(&layout, &descriptor);
    let good = liar.answers.lock().unwrap()[MANIFEST_PATH][0].clone();
    let asks = answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", b"");
    liar.say(MANIFEST_PATH, &[asks, to(&format!("http://{}/manifest", other.address))]);
    liar.say(&format!("/v2/x/blobs/{layer}"), &[to(&format!("http://{}/layer", other.address))]);
    for (path, good) in [("/manifest", good), ("/layer", answer("200 OK", "", &packed))] {
        other.say(path, &[to(&format!("http://{}/back{path}", liar.address))]);
        liar.say(&format!("/back{path}"), &[good]);
    }
    place.pull_with(&name, &with_password()).await.unwrap();
    assert!(liar.requests(MANIFEST_PATH)[1].contains("authorization: Basic dXNlcjpzM2NyZXQ=\r\n"));
    assert!(liar.requests(&layer)[0].contains("authorization: Basic "));
    let back = liar.requests("GET /back/");
    assert_eq!((back.len(), other.requests("").len()), (2, 2));
    for request in [back, other.requests("")].concat() {
        assert!(!request.to_lowercase().contains("authorization"), "{request}");
    }

    // Nor does it get one by asking for it there.
    other.say("/manifest", &[to(&format!("http://{}/asks", liar.address))]);
    let asks = answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", b"");
    liar.say("/asks", &[asks]);
    let error = Place::new().error(&name, &with_password()).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert_eq!(liar.requests("GET /asks ").len(), 1);
}
