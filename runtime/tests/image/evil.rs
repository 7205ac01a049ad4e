//! A registry that means harm, and gets credentials: wrong bytes of everything, bodies without an
//! end, lies about lengths and types. The documents themselves are in `evil_documents`.

use std::path::Path;

use serde_json::{Value, json};
use skiff_runtime::image::{Attestations, Limits, PullOptions, PullPolicy};
use skiff_runtime::{Error, ErrorKind, Fault};

use crate::liar::{Answer, Liar, answer, image, plain, with_password};
use crate::support::*;

/// The password of [`with_password`], plain and as it goes over the wire.
const SECRETS: [&str; 2] = ["s3cret", "dXNlcjpzM2NyZXQ="];
/// Where the manifest is asked for.
pub(crate) const TAG: &str = "/v2/x/manifests/1";

/// A registry that asks for the password, and a good image in it for the test to spoil.
pub(crate) struct Evil {
    pub(crate) place: Place,
    pub(crate) layout: Layout,
    pub(crate) liar: Liar,
    pub(crate) name: String,
    /// The good manifest.
    pub(crate) manifest: Value,
    /// Digest of the layer.
    pub(crate) layer: String,
    /// Packed bytes of the layer.
    pub(crate) packed: Vec<u8>,
}

impl Evil {
    pub(crate) async fn new() -> Self {
        let place = Place::new();
        let (layout, descriptor, layer, packed) = image(&place);
        let liar = Liar::start().await;
        let name = liar.serve_image(&layout, &descriptor);
        let bytes = std::fs::read(layout.blob_path(descriptor["digest"].as_str().unwrap())).unwrap();
        let manifest = serde_json::from_slice(&bytes).unwrap();
        Self { place, layout, liar, name, manifest, layer, packed }
    }

    /// A copy of the good manifest with one change.
    pub(crate) fn changed(&self, change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut manifest = self.manifest.clone();
        change(&mut manifest);
        manifest.to_string().into_bytes()
    }

    /// Where the configuration is asked for.
    pub(crate) fn config_path(&self) -> String {
        format!("/v2/x/blobs/{}", self.manifest["config"]["digest"].as_str().unwrap())
    }

    pub(crate) fn layer_path(&self) -> String {
        format!("/v2/x/blobs/{}", self.layer)
    }

    /// Pulls with `answers` for the manifest, after the registry has asked for the password. It must
    /// fail with this kind, leave nothing, and tell no secret.
    pub(crate) async fn refuse_answers(&self, answers: &[Answer], kind: ErrorKind, text: &str) -> Error {
        let asks = answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", b"");
        self.liar.say(TAG, &[&[asks], answers].concat());
        self.liar.requests.lock().unwrap().clear();
        let error = self.place.error(&self.name, &with_password()).await;
        assert_eq!(error.kind(), kind, "{text}: {error:?}");
        let all = format!("{error:?} {}", error.advice().unwrap_or_default());
        assert!(all.contains(text), "{text:?} is not in {all}");
        assert!(all.len() < 2000, "the error is long: {all:.300}");
        assert!(SECRETS.iter().all(|secret| !all.contains(secret)), "{all}");
        nothing_believed(&self.place);
        error
    }

    /// As [`Evil::refuse_answers`], for a manifest with nothing wrong on the way.
    pub(crate) async fn refuse(&self, manifest: &[u8], kind: ErrorKind, text: &str) -> Error {
        let good = answer("200 OK", &format!("Content-Type: {MANIFEST}\r\n"), manifest);
        self.refuse_answers(&[good], kind, text).await
    }

    /// As [`Evil::refuse`], and no blob may have been asked for.
    pub(crate) async fn refuse_at_once(&self, manifest: &[u8], kind: ErrorKind, text: &str) -> Error {
        let error = self.refuse(manifest, kind, text).await;
        assert_eq!(self.liar.requests("/blobs/"), Vec::<String>::new(), "{text}");
        error
    }

    /// The good image as a pull that works: what was refused before has spoilt nothing.
    pub(crate) async fn works(&self) {
        let manifest = self.manifest.to_string();
        self.liar
            .say(TAG, &[answer("200 OK", &format!("Content-Type: {MANIFEST}\r\n"), manifest.as_bytes())]);
        self.place.pull_with(&self.name, &plain()).await.expect("the good image");
    }
}

/// No layer, no image and no secret may be in the store.
fn nothing_believed(place: &Place) {
    let state = place.path("state");
    for dir in ["layers/sha256", "layers/sha512", "images"] {
        let left: Vec<_> = std::fs::read_dir(state.join(dir)).unwrap().collect();
        assert!(left.is_empty(), "{dir}: {left:?}");
    }
    search(&state);
}

fn search(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            search(&path);
        } else {
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            assert!(SECRETS.iter().all(|secret| !text.contains(secret)), "{}", path.display());
        }
    }
}

fn endless(content_type: &str) -> Answer {
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{content_type}\r\n");
    Answer {
        head,
        body: vec![b' '; 64 << 10].into(),
        send: 64 << 10,
        endless: true,
        stalls: false,
        resets: false,
    }
}

#[tokio::test]
async fn wrong_bytes_of_index_manifest_and_configuration() {
    let evil = Evil::new().await;
    // A good index, by its digest, in which the manifest's and then the configuration's bytes are wrong.
    let manifest = evil.manifest.to_string();
    let descriptor = evil.layout.blob(MANIFEST, manifest.as_bytes());
    let with_platform = |mut d: Value| {
        d["platform"] = json!({"os": "linux", "architecture": "amd64"});
        d
    };
    let inner =
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [with_platform(descriptor.clone())]});
    let inner = inner.to_string();
    let nested = with_platform(evil.layout.blob(INDEX, inner.as_bytes()));
    let outer = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [nested.clone()]}).to_string();
    let digest = sha256(outer.as_bytes());
    let path = |digest: &str| format!("/v2/x/manifests/{digest}");
    let paths = [
        digest.clone(),
        nested["digest"].as_str().unwrap().into(),
        descriptor["digest"].as_str().unwrap().into(),
    ];
    let good = [outer.as_bytes(), inner.as_bytes(), manifest.as_bytes()];
    let pinned = format!("{}/x@{digest}", evil.liar.address);
    for wrong in 0..3 {
        for (at, bytes) in good.iter().enumerate() {
            let mut bytes = bytes.to_vec();
            if at == wrong {
                // White space: a document that says the same, and is another.
                bytes.push(b' ');
            }
            evil.liar.say(&path(&paths[at]), &[answer("200 OK", "", &bytes)]);
        }
        let error = evil.place.error(&pinned, &plain()).await;
        assert_eq!((error.kind(), error.fault()), (ErrorKind::DigestMismatch, Fault::Registry), "{wrong}");
        assert!(error.to_string().contains(&paths[wrong]), "{error}");
    }
    evil.liar.say(&path(&paths[2]), &[answer("200 OK", "", good[2])]);
    let config =
        std::fs::read(evil.layout.blob_path(evil.manifest["config"]["digest"].as_str().unwrap())).unwrap();
    let mut wrong = config.clone();
    *wrong.last_mut().unwrap() = b' ';
    evil.liar.say(&evil.config_path(), &[answer("200 OK", "", &wrong)]);
    assert_eq!(evil.place.error(&pinned, &plain()).await.kind(), ErrorKind::DigestMismatch);
    assert!(evil.liar.requests(&evil.layer).is_empty(), "a layer was fetched before all was verified");
    evil.liar.say(&evil.config_path(), &[answer("200 OK", "", &config)]);
    evil.place.pull_with(&pinned, &plain()).await.expect("the right bytes");
}

#[tokio::test]
async fn bodies_without_an_end() {
    let evil = Evil::new().await;
    let manifest = evil.manifest.to_string();
    let manifest = answer("200 OK", &format!("Content-Type: {MANIFEST}\r\n"), manifest.as_bytes());
    let limit = ErrorKind::LimitExceeded;
    evil.refuse_answers(&[endless("")], limit, "bytes of the manifest").await;
    let good =
        std::fs::read(evil.layout.blob_path(evil.manifest["config"]["digest"].as_str().unwrap())).unwrap();
    evil.liar.say(&evil.config_path(), &[endless("")]);
    evil.refuse_answers(std::slice::from_ref(&manifest), limit, "bytes of the configuration").await;
    evil.liar.say(&evil.config_path(), &[answer("200 OK", "", &good)]);
    // The layer goes on after its right bytes, and is nothing but noise.
    let again = Answer { endless: true, head: endless("").head, ..answer("200 OK", "", &evil.packed) };
    for (layer, kind) in [(again, ErrorKind::CorruptImage), (endless(""), ErrorKind::InvalidImage)] {
        evil.liar.say(&evil.layer_path(), &[layer]);
        let error = evil.refuse_answers(std::slice::from_ref(&manifest), kind, &evil.layer).await;
        assert_eq!(error.fault(), Fault::Image);
    }
    evil.liar.say(&evil.layer_path(), &[answer("200 OK", "", &evil.packed)]);
    evil.works().await;
}

#[tokio::test]
async fn lengths_that_are_lies() {
    let evil = Evil::new().await;
    let manifest = evil.manifest.to_string();
    let with_length = |length: usize| Answer {
        head: format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"),
        ..answer("200 OK", "", manifest.as_bytes())
    };
    // Shorter: what is left of the document is broken. Longer: the connection broke, each time.
    let shorter = with_length(manifest.len() - 1);
    evil.refuse_answers(&[shorter], ErrorKind::InvalidImage, "cannot be read").await;
    let longer = with_length(manifest.len() + 1);
    evil.refuse_answers(&[longer], ErrorKind::RegistryUnreachable, &evil.liar.address).await;
    // A server that tells no length and closes too early looks as if that were all.
    let cut = Answer {
        head: "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".into(),
        send: 40,
        ..answer("200 OK", "", manifest.as_bytes())
    };
    evil.refuse_answers(&[cut], ErrorKind::InvalidImage, "cannot be read").await;
    let large = vec![b' '; 10 << 20];
    evil.refuse_at_once(&large, ErrorKind::LimitExceeded, "4194304").await;
    evil.works().await;
}

#[tokio::test]
async fn types_that_are_lies() {
    let evil = Evil::new().await;
    let manifest = evil.manifest.to_string();
    let mut untyped = evil.manifest.clone();
    untyped.as_object_mut().unwrap().remove("mediaType");
    for text in [manifest.clone(), untyped.to_string()] {
        let as_index = answer("200 OK", &format!("Content-Type: {INDEX}\r\n"), text.as_bytes());
        evil.refuse_answers(&[as_index], ErrorKind::InvalidImage, "the manifest").await;
        assert!(evil.liar.requests("/blobs/").is_empty());
    }
    // A type that is none of an image says nothing: simple file servers serve images so.
    let as_picture = answer("200 OK", "Content-Type: image/png\r\n", manifest.as_bytes());
    evil.liar.say(TAG, &[as_picture]);
    evil.place.pull_with(&evil.name, &plain()).await.expect("an image all the same");
}

#[tokio::test]
async fn foreign_urls_are_never_contacted() {
    let evil = Evil::new().await;
    let other = Liar::start().await;
    other.say("/layer", &[answer("200 OK", "", &evil.packed)]);
    let url = format!("http://{}/layer", other.address);
    let foreign = evil.changed(|m| {
        m["config"]["urls"] = json!([url]);
        m["layers"][0]["urls"] = json!([url]);
    });
    evil.liar.say(&evil.layer_path(), &[answer("404 Not Found", "", b"")]);
    evil.refuse(&foreign, ErrorKind::ImageNotFound, &evil.layer).await;
    evil.liar.say(&evil.layer_path(), &[answer("200 OK", "", &evil.packed)]);
    evil.liar.say(TAG, &[answer("200 OK", "", &foreign)]);
    evil.place.pull_with(&evil.name, &plain()).await.expect("from the registry");
    assert_eq!(other.requests(""), Vec::<String>::new());
}

#[tokio::test]
async fn limits_hold_before_anything_is_fetched() {
    let evil = Evil::new().await;
    let mut limits = Limits::default();
    limits.owner = Some("some");
    limits.packed_bytes = 1 << 30;
    let options = PullOptions { limits, ..plain() };
    let large = evil.changed(|m| {
        let mut layer = m["layers"][0].clone();
        layer["size"] = json!(600 << 20);
        m["layers"] = json!([layer.clone(), layer]);
    });
    evil.liar.say(TAG, &[answer("200 OK", "", &large)]);
    let error = evil.place.error(&evil.name, &options).await;
    assert_eq!((error.kind(), error.fault()), (ErrorKind::LimitExceeded, Fault::Image));
    let text = error.to_string();
    assert!(text.contains("under some: 1258291200 is over the limit of 1073741824"), "{text}");
    assert!(error.advice().is_some_and(|advice| advice.contains("smaller")));
    assert_eq!(evil.liar.requests("").len(), 1, "one request, for the manifest");
}

#[tokio::test]
async fn an_image_that_is_here_is_held_to_the_limits_of_each_pull() {
    let evil = Evil::new().await;
    let manifest = evil.manifest.to_string();
    let mut image = evil.layout.blob(MANIFEST, manifest.as_bytes());
    image["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let mut provenance = evil.layout.blob(MANIFEST, b"{}");
    provenance["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [image, provenance]}).to_string();
    let digest = sha256(index.as_bytes());
    evil.liar.say(&format!("/v2/x/manifests/{digest}"), &[answer("200 OK", "", index.as_bytes())]);
    let path = format!("/v2/x/manifests/{}", image["digest"].as_str().unwrap());
    evil.liar.say(&path, &[answer("200 OK", "", manifest.as_bytes())]);
    let pinned = format!("{}/x@{digest}", evil.liar.address);
    let with = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        PullOptions { limits, ..plain() }
    };
    let refuse = with(|limits| limits.attestations = Attestations::Refuse);
    let error = evil.place.error(&pinned, &refuse).await;
    assert_eq!(error.kind(), ErrorKind::InvalidImage);
    assert!(error.to_string().starts_with("invalid image, platform of image is unknown/unknown"), "{error}");
    assert!(error.advice().is_some_and(|advice| advice.contains("--provenance=false")));

    evil.place.pull_with(&pinned, &plain()).await.expect("attestations are ignored");
    evil.liar.requests.lock().unwrap().clear();
    evil.place.pull_with(&pinned, &plain()).await.expect("from the store");
    for (options, kind) in [
        (refuse.clone(), ErrorKind::InvalidImage),
        (with(|limits| limits.packed_bytes = 10), ErrorKind::LimitExceeded),
        (with(|limits| limits.layers = 0), ErrorKind::LimitExceeded),
    ] {
        assert_eq!(evil.place.error(&pinned, &options).await.kind(), kind);
    }
    // The same by a tag, which is not asked for again.
    evil.liar.say(TAG, &[answer("200 OK", "", index.as_bytes())]);
    evil.place.pull_with(&evil.name, &plain()).await.expect("by its tag");
    evil.liar.requests.lock().unwrap().clear();
    let missing = |limits| PullOptions { limits, policy: PullPolicy::Missing, ..plain() };
    evil.place.pull_with(&evil.name, &missing(Limits::default())).await.expect("from the store");
    let error = evil.place.error(&evil.name, &missing(refuse.limits)).await;
    assert!(error.to_string().contains("unknown/unknown"), "{error}");
    assert!(evil.liar.requests("").is_empty(), "no network for what is here");
}
