//! Mirrors: which host is asked, in which order, and what it is believed.

use std::path::PathBuf;

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{CredentialCallback, CredentialSources, PullOptions, TemporaryCredentials};

use crate::liar::{Answer, Liar, answer, image, plain, with_password};
use crate::support::*;

/// Options with mirrors for the registry `of`.
fn mirrored(place: &Place, of: &Liar, hosts: &str) -> PullOptions {
    PullOptions { hosts_dir: Some(hosts_file(place, of, hosts)), ..with_password() }
}

fn hosts_file(place: &Place, of: &Liar, hosts: &str) -> PathBuf {
    let dir = place.path("hosts");
    std::fs::create_dir_all(dir.join(&of.address)).unwrap();
    std::fs::write(dir.join(&of.address).join("hosts.toml"), hosts).unwrap();
    dir
}

fn host(mirror: &Liar, more: &str) -> String {
    format!("[host.\"http://{}\"]\n{more}\n", mirror.address)
}

#[tokio::test]
async fn a_mirror_serves_it_all_and_gets_no_credentials_of_the_registry() {
    let place = Place::new();
    let (layout, descriptor, ..) = image(&place);
    let (registry, mirror) = (Liar::start().await, Liar::start().await);
    let name = registry.serve_image(&layout, &descriptor);
    mirror.serve_image(&layout, &descriptor);
    let good = mirror.answers.lock().unwrap()["/v2/x/manifests/1"][0].clone();
    let asks = answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", b"");
    mirror.say("/v2/x/manifests/1", std::slice::from_ref(&good));
    let options = mirrored(&place, &registry, &host(&mirror, ""));
    place.pull_with(&name, &options).await.unwrap();
    assert!(registry.requests("").is_empty());
    let registry_name = registry.address.replace(':', "%3A");
    assert!(mirror.requests("")[0].contains(&format!("?ns={registry_name} ")), "{:?}", mirror.requests(""));

    // One that asks for credentials gets none of the registry's, and is passed over.
    mirror.say("/v2/x/manifests/1", std::slice::from_ref(&asks));
    Place::new().pull_with(&name, &options).await.unwrap();
    assert!(mirror.requests("uthorization:").is_empty());
    assert!(!registry.requests("/blobs/").is_empty());

    // A callback is asked by the mirror's own name.
    mirror.say("/v2/x/manifests/1", &[asks, good]);
    let own = mirror.address.clone();
    let callback = CredentialCallback::blocking(move |request| {
        assert_eq!(request.registry, own);
        Ok(Some(TemporaryCredentials::new("mirror", "pw")))
    });
    let credentials = CredentialSources { callback: Some(callback), ..Default::default() };
    Place::new().pull_with(&name, &PullOptions { credentials, ..options }).await.unwrap();
    assert!(mirror.requests("authorization: Basic bWlycm9yOnB3").len() >= 2);
}

#[tokio::test]
async fn mirrors_that_fail_are_passed_over_in_order() {
    let place = Place::new();
    let (layout, descriptor, ..) = image(&place);
    let (registry, second) = (Liar::start().await, Liar::start().await);
    let name = registry.serve_image(&layout, &descriptor);
    second.serve_image(&layout, &descriptor);
    for failure in ["404 Not Found", "500 Internal Server Error", "429 Too Many Requests", "401 Unauthorized"]
    {
        let first = Liar::start().await;
        first.say("/v2/x/manifests/1", &[answer(failure, "", b"")]);
        let hosts = format!("[host.\"http://127.0.0.1:1\"]\n{}{}", host(&first, ""), host(&second, ""));
        let before = second.requests("/manifests/").len();
        Place::new().pull_with(&name, &mirrored(&place, &registry, &hosts)).await.expect(failure);
        assert_eq!(first.requests("/manifests/").len(), 1, "{failure}: once and no more");
        assert_eq!(second.requests("/manifests/").len(), before + 1, "{failure}");
    }
    assert!(registry.requests("").is_empty());
    // When all fail, the error is the registry's own.
    registry.say("/v2/x/manifests/1", &[answer("404 Not Found", "", b"")]);
    second.say("/v2/x/manifests/1", &[answer("404 Not Found", "", b"")]);
    let error = place.error(&name, &mirrored(&place, &registry, &host(&second, ""))).await;
    assert_eq!(error.kind(), ErrorKind::ImageNotFound);
    assert!(error.to_string().contains(&registry.address), "{error}");
}

#[tokio::test]
async fn a_tag_is_believed_only_of_a_mirror_that_may_resolve() {
    let place = Place::new();
    let (layout, descriptor, ..) = image(&place);
    let (registry, mirror) = (Liar::start().await, Liar::start().await);
    let name = registry.serve_image(&layout, &descriptor);
    mirror.serve_image(&layout, &descriptor);
    let options = mirrored(&place, &registry, &host(&mirror, "capabilities = [\"pull\"]"));
    place.pull_with(&name, &options).await.unwrap();
    assert_eq!(mirror.requests("/manifests/").len(), 0);
    assert_eq!((registry.requests("/manifests/").len(), registry.requests("/blobs/").len()), (1, 0));
    assert!(!mirror.requests("/blobs/").is_empty());
}

#[tokio::test]
async fn wrong_bytes_of_a_mirror_are_asked_of_the_next_host() {
    let place = Place::new();
    let (layout, descriptor, layer, packed) = image(&place);
    let (registry, mirror) = (Liar::start().await, Liar::start().await);
    let name = registry.serve_image(&layout, &descriptor);
    mirror.serve_image(&layout, &descriptor);
    let path = format!("/v2/x/blobs/{layer}");
    let mut flipped = packed.clone();
    flipped[1000] ^= 1;
    let longer = [packed.clone(), vec![0; 5000]].concat();
    let cut = Answer { send: 1000, ..answer("200 OK", "", &packed) };
    let options = mirrored(&place, &registry, &host(&mirror, ""));
    for (bytes, of_registry) in [
        (answer("200 OK", "", &flipped), 1),
        (answer("200 OK", "", &packed[..5000]), 1),
        (answer("200 OK", "", &longer), 1),
        (answer("200 OK", "", b"<html>"), 1),
        (cut, 1),
    ] {
        let before = registry.requests(&layer).len();
        mirror.say(&path, &[bytes]);
        let fresh = Place::new();
        let image = fresh.pull_with(&name, &options).await.unwrap();
        assert_eq!(read(&image, 0, "noise").len(), 300_000);
        assert_eq!(registry.requests(&layer).len(), before + of_registry);
        fresh.nothing_half_made();
    }
    // Wrong of both: an error, and no loop.
    mirror.say(&path, &[answer("200 OK", "", &flipped)]);
    registry.say(&path, &[answer("200 OK", "", &flipped)]);
    assert_eq!(place.error(&name, &options).await.kind(), ErrorKind::DigestMismatch);
    // Wrong documents are asked elsewhere too.
    registry.say(&path, &[answer("200 OK", "", &packed)]);
    let digest = descriptor["digest"].as_str().unwrap();
    let manifest = std::fs::read(layout.blob_path(digest)).unwrap();
    let by_digest = format!("/v2/x/manifests/{digest}");
    registry.say(&by_digest, &[answer("200 OK", &format!("Content-Type: {MANIFEST}\r\n"), &manifest)]);
    mirror.say(&by_digest, &[answer("200 OK", "", b"{}")]);
    let pinned = format!("{}/x@{digest}", registry.address);
    place.pull_with(&pinned, &options).await.unwrap();
}

#[tokio::test]
async fn a_broken_hosts_file_is_an_error_and_another_server_can_be_named() {
    let place = Place::new();
    let (layout, descriptor, ..) = image(&place);
    let (registry, elsewhere) = (Liar::start().await, Liar::start().await);
    let name = registry.serve_image(&layout, &descriptor);
    elsewhere.serve_image(&layout, &descriptor);
    let error = place.error(&name, &mirrored(&place, &registry, "\nservers = \"x\"\n")).await;
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("hosts.toml, line 2: the key \"servers\""), "{error}");
    let hosts = format!("server = \"http://{}\"\nskip_verify = true\n", elsewhere.address);
    let error = place.error(&name, &mirrored(&place, &registry, &hosts)).await;
    assert!(error.to_string().contains("skip_verify") && error.advice().unwrap().contains("ca ="));
    let hosts = format!("server = \"http://{}\"\n", elsewhere.address);
    let mut options = mirrored(&place, &registry, &hosts);
    // The address in the file is plain HTTP: that is asking for it.
    options.plain_http = false;
    place.pull_with(&name, &options).await.unwrap();
    assert!(registry.requests("").is_empty());
    let other = PullOptions { hosts_dir: Some(place.path("none")), ..plain() };
    Place::new().pull_with(&name, &other).await.expect("no directory, no mirrors");
}
