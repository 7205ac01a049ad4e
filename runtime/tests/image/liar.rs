//! Registries that lie, break and redirect: a small server that answers what each test wants.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{CredentialSources, PullOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;
use crate::wire::{unsent, whole_length};

/// One answer: status line and headers, body, and how many bytes of the body are sent.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) head: String,
    pub(crate) body: Arc<[u8]>,
    pub(crate) send: usize,
    /// The body is sent again and again, until no one reads any more.
    pub(crate) endless: bool,
    /// Nothing more comes after what is sent, and the connection stays.
    pub(crate) stalls: bool,
    /// The connection is reset (RST) once what is sent has come to the other side.
    pub(crate) resets: bool,
}

impl Answer {
    /// No answer at all, but a reset.
    pub(crate) fn reset() -> Self {
        Self { head: String::new(), body: [].into(), send: 0, endless: false, stalls: false, resets: true }
    }
}

pub(crate) fn answer(status: &str, headers: &str, body: &[u8]) -> Answer {
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
    Answer { head, body: body.into(), send: body.len(), endless: false, stalls: false, resets: false }
}

pub(crate) type Answers = Arc<Mutex<HashMap<String, Vec<Answer>>>>;

/// The server: the answers of each path in turn, the last one for ever. Requests are kept.
pub(crate) struct Liar {
    pub(crate) address: String,
    pub(crate) answers: Answers,
    pub(crate) requests: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Liar {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    pub(crate) async fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answers = Answers::default();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let (table, seen) = (Arc::clone(&answers), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&table), Arc::clone(&seen)));
            }
        });
        Self { address, answers, requests, task }
    }

    pub(crate) fn say(&self, path: &str, answers: &[Answer]) {
        self.answers.lock().unwrap().insert(path.to_owned(), answers.to_vec());
    }

    /// Serves the image of a layout as `x:1`.
    pub(crate) fn serve_image(&self, layout: &Layout, image: &serde_json::Value) -> String {
        let digest = image["digest"].as_str().unwrap();
        let manifest = std::fs::read(layout.blob_path(digest)).unwrap();
        self.say(
            "/v2/x/manifests/1",
            &[answer("200 OK", &format!("Content-Type: {MANIFEST}\r\n"), &manifest)],
        );
        for entry in std::fs::read_dir(layout.dir.join("blobs/sha256")).unwrap() {
            let entry = entry.unwrap();
            let path = format!("/v2/x/blobs/sha256:{}", entry.file_name().to_str().unwrap());
            self.say(&path, &[answer("200 OK", "", &std::fs::read(entry.path()).unwrap())]);
        }
        format!("{}/x:1", self.address)
    }

    pub(crate) fn requests(&self, part: &str) -> Vec<String> {
        self.requests.lock().unwrap().iter().filter(|r| r.contains(part)).cloned().collect()
    }
}

async fn serve(mut stream: TcpStream, answers: Answers, requests: Arc<Mutex<Vec<String>>>) {
    let mut request = Vec::new();
    let mut buffer = [0u8; 4096];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
            _ => return,
        }
    }
    let mut text = String::from_utf8_lossy(&request).into_owned();
    // The rest of a form.
    while text.len() < whole_length(&text) {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => text.push_str(&String::from_utf8_lossy(&buffer[..read])),
            _ => return,
        }
    }
    let path = text.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    requests.lock().unwrap().push(text);
    let found = match answers.lock().unwrap().get_mut(&path) {
        Some(list) if list.len() > 1 => list.remove(0),
        Some(list) if !list.is_empty() => list[0].clone(),
        _ => answer("404 Not Found", "", b"{}"),
    };
    let _ = stream.write_all(found.head.as_bytes()).await;
    while stream.write_all(&found.body[..found.send]).await.is_ok() && found.endless {}
    if found.stalls {
        // Until the client goes.
        let _ = stream.read(&mut buffer).await;
    }
    if found.resets {
        // A reset throws away what the other side's kernel does not have yet.
        while unsent(stream.local_addr().unwrap(), stream.peer_addr().unwrap()) > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        stream.set_zero_linger().unwrap();
        return;
    }
    let _ = stream.shutdown().await;
}

pub(crate) fn plain() -> PullOptions {
    PullOptions { plain_http: true, ..PullOptions::default() }
}

pub(crate) fn with_password() -> PullOptions {
    let pair = Some(("user".to_owned(), "s3cret".to_owned()));
    PullOptions { credentials: CredentialSources { pair, ..Default::default() }, ..plain() }
}

/// A layout with one gzip layer, its image, and the layer's digest and bytes.
pub(crate) fn image(place: &Place) -> (Layout, serde_json::Value, String, Vec<u8>) {
    let layout = Layout::new(&place.path("layout"));
    // Not compressible, so that the layer has some size.
    let mut state = 1u32;
    let noise: String = (0..300_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b' ' + (state >> 24) as u8 % 90)
        })
        .collect();
    let archive = tar(&[("noise", &noise)]);
    let packed = gzip(&archive);
    let image = layout.image(&[(GZIP, packed.clone(), archive)], "amd64");
    (layout, image, sha256(&packed), packed)
}

#[tokio::test]
async fn wrong_bytes_of_every_document() {
    let place = Place::new();
    let (layout, descriptor, layer, packed) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let layer_path = format!("/v2/x/blobs/{layer}");
    let pinned = format!("{}/x@{}", liar.address, descriptor["digest"].as_str().unwrap());
    let pinned_path = format!("/v2/x/manifests/{}", descriptor["digest"].as_str().unwrap());

    liar.say(&pinned_path, &[answer("200 OK", "", br#"{"schemaVersion":2}"#)]);
    assert_eq!(place.error(&pinned, &plain()).await.kind(), ErrorKind::DigestMismatch, "manifest");

    let mut flipped = packed.clone();
    flipped[1000] ^= 1;
    liar.say(&layer_path, &[answer("200 OK", "", &flipped)]);
    let error = place.error(&name, &plain()).await;
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "layer");
    assert!(error.to_string().contains(&layer), "{error}");

    liar.say(&layer_path, &[answer("200 OK", "", &packed[..5000])]);
    let error = place.error(&name, &plain()).await;
    assert_eq!(error.kind(), ErrorKind::CorruptImage, "a shorter layer");
    assert!(error.to_string().contains("truncated"), "{error}");

    let longer = [packed.clone(), vec![0; 100_000]].concat();
    liar.say(&layer_path, &[answer("200 OK", "", &longer)]);
    assert_eq!(place.error(&name, &plain()).await.kind(), ErrorKind::CorruptImage, "a longer layer");

    liar.say(&layer_path, &[answer("200 OK", "", &packed)]);
    place.pull_with(&name, &plain()).await.expect("the right bytes at last");
}

#[tokio::test]
async fn a_lying_configuration_and_huge_documents() {
    let place = Place::new();
    let (layout, descriptor, _, _) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let manifest: serde_json::Value = serde_json::from_slice(
        &std::fs::read(layout.blob_path(descriptor["digest"].as_str().unwrap())).unwrap(),
    )
    .unwrap();
    let path = format!("/v2/x/blobs/{}", manifest["config"]["digest"].as_str().unwrap());
    let size = usize::try_from(manifest["config"]["size"].as_u64().unwrap()).unwrap();
    liar.say(&path, &[answer("200 OK", "", &vec![b' '; size])]);
    assert_eq!(place.error(&name, &plain()).await.kind(), ErrorKind::DigestMismatch);
    liar.say(&path, &[answer("200 OK", "", &vec![b' '; size + 1])]);
    assert_eq!(place.error(&name, &plain()).await.kind(), ErrorKind::LimitExceeded);
    liar.say("/v2/x/manifests/1", &[answer("200 OK", "", &vec![b' '; (4 << 20) + 1])]);
    assert_eq!(place.error(&name, &plain()).await.kind(), ErrorKind::LimitExceeded);
    liar.say("/v2/x/manifests/1", &[answer("200 OK", "Content-Type: text/html\r\n", b"<html>")]);
    assert_eq!(place.error(&name, &plain()).await.kind(), ErrorKind::InvalidImage);
}

/// The header of a part from `start` on.
pub(crate) fn part(start: usize, all: usize) -> String {
    format!("Content-Range: bytes {start}-{}/{all}\r\n", all - 1)
}

#[tokio::test]
async fn broken_connections_are_continued() {
    let place = Place::new();
    let (layout, descriptor, layer, packed) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let cut = Answer { send: 70_000, ..answer("200 OK", "", &packed) };
    let rest = Answer {
        send: 30_000,
        ..answer("206 Partial Content", &part(70_000, packed.len()), &packed[70_000..])
    };
    // After the second break the server knows no ranges and sends all again.
    liar.say(&format!("/v2/x/blobs/{layer}"), &[cut, rest, answer("200 OK", "", &packed)]);
    let image = place.pull_with(&name, &plain()).await.unwrap();
    assert_eq!(read(&image, 0, "noise").len(), 300_000);
    let asked = liar.requests(&layer);
    assert_eq!(asked.len(), 3);
    assert!(asked[1].contains("bytes=70000-") && asked[2].contains("bytes=100000-"), "{asked:?}");
}

#[tokio::test]
async fn what_is_tried_again_and_what_is_not() {
    let place = Place::new();
    let (layout, descriptor, _, _) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let path = "/v2/x/manifests/1";
    let good = liar.answers.lock().unwrap()[path][0].clone();
    let slow = answer("429 Too Many Requests", "Retry-After: 0\r\n", b"");
    liar.say(path, &[slow.clone(), answer("503 Service Unavailable", "", b""), good]);
    place.pull_with(&name, &plain()).await.expect("the third answer is good");
    assert_eq!(liar.requests(path).len(), 3);
    for (status, kind, requests) in [
        ("429 Too Many Requests", ErrorKind::RegistryThrottled, 5),
        ("500 Internal Server Error", ErrorKind::RegistryFailed, 5),
        ("401 Unauthorized", ErrorKind::Unauthorized, 1),
        ("403 Forbidden", ErrorKind::Unauthorized, 1),
        ("404 Not Found", ErrorKind::ImageNotFound, 1),
        ("418 Teapot", ErrorKind::RegistryFailed, 1),
    ] {
        liar.requests.lock().unwrap().clear();
        liar.say(
            path,
            &[answer(status, "Retry-After: 0\r\n", br#"{"errors":[{"code":"SAID","message":"so"}]}"#)],
        );
        let error = place.error(&name, &plain()).await;
        assert_eq!(error.kind(), kind, "{status}");
        assert!(error.to_string().ends_with(": SAID so"), "{error}");
        assert_eq!(liar.requests(path).len(), requests, "{status}");
    }
}

#[tokio::test]
async fn credentials_stay_with_the_registry() {
    let place = Place::new();
    let (layout, descriptor, layer, packed) = image(&place);
    let (liar, other) = (Liar::start().await, Liar::start().await);
    let name = liar.serve_image(&layout, &descriptor);
    let asks = answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", b"");
    let good = liar.answers.lock().unwrap()["/v2/x/manifests/1"][0].clone();
    liar.say("/v2/x/manifests/1", &[asks, good]);
    // Layers come from storage on another port, as in the clouds.
    let away = answer(
        "307 Temporary Redirect",
        &format!("Location: http://{}/storage?signature=abc\r\n", other.address),
        b"",
    );
    liar.say(&format!("/v2/x/blobs/{layer}"), &[away]);
    other.say("/storage", &[answer("200 OK", "", &packed)]);
    place.pull_with(&name, &with_password()).await.unwrap();
    let manifests = liar.requests("/manifests/");
    assert!(!manifests[0].to_lowercase().contains("authorization"), "not before it asks");
    assert!(manifests[1].contains("authorization: Basic dXNlcjpzM2NyZXQ="));
    assert_eq!(other.requests("/storage").len(), 1);
    assert!(other.requests("uthorization").is_empty(), "{:?}", other.requests(""));
}

#[tokio::test]
async fn the_case_of_the_host_does_not_keep_credentials_back() {
    let place = Place::new();
    let (layout, descriptor, _, _) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor).replace("127.0.0.1", "LocalHost");
    let good = liar.answers.lock().unwrap()["/v2/x/manifests/1"][0].clone();
    let challenge = answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", b"");
    liar.say("/v2/x/manifests/1", &[challenge, good]);
    place.pull_with(&name, &with_password()).await.unwrap();
    let manifests = liar.requests("/manifests/");
    assert!(!manifests[0].contains("authorization"), "not before it asks");
    assert!(manifests[1].contains("authorization: Basic dXNlcjpzM2NyZXQ="), "{}", manifests[1]);
}

#[tokio::test]
async fn tokens_and_foreign_realms() {
    let place = Place::new();
    let (layout, descriptor, _, _) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let good = liar.answers.lock().unwrap()["/v2/x/manifests/1"][0].clone();
    let challenge = |realm: &str| {
        answer(
            "401 Unauthorized",
            &format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"s\"\r\n"),
            b"",
        )
    };
    liar.say("/v2/x/manifests/1", &[challenge(&format!("http://{}/token", liar.address)), good.clone()]);
    liar.say("/token", &[answer("200 OK", "", br#"{"token":"t0ken"}"#)]);
    place.pull_with(&name, &with_password()).await.unwrap();
    let token = &liar.requests("/token")[0];
    assert!(token.starts_with("GET /token?service=s&scope=repository%3Ax%3Apull "), "{token}");
    assert!(token.contains("authorization: Basic "));
    assert!(liar.requests("/manifests/")[1].contains("authorization: Bearer t0ken"));

    let other = Liar::start().await;
    let away = format!("Location: http://{}/token\r\n", other.address);
    liar.say("/token", &[answer("307 Temporary Redirect", &away, b"")]);
    liar.say("/v2/x/manifests/1", &[challenge(&format!("http://{}/token", liar.address)), good.clone()]);
    let error = Place::new().error(&name, &with_password()).await;
    assert!(error.to_string().contains("answered 307"), "{error}");
    let foreign = format!("http://{}/token", other.address.replace("127.0.0.1", "localhost"));
    liar.say("/v2/x/manifests/1", &[challenge(&foreign), good]);
    for options in [with_password(), plain()] {
        let error = Place::new().error(&name, &options).await;
        assert_eq!(error.kind(), ErrorKind::Unauthorized);
        assert!(
            error.to_string().contains("localhost") && !format!("{error:?}").contains("s3cret"),
            "{error}"
        );
        liar.say("/v2/x/manifests/1", &[challenge(&foreign)]);
    }
    assert!(other.requests("").is_empty());
}

#[tokio::test]
async fn artifacts_and_urls() {
    let place = Place::new();
    let (layout, descriptor, layer, _) = image(&place);
    let (liar, other) = (Liar::start().await, Liar::start().await);
    let name = liar.serve_image(&layout, &descriptor);
    let text = std::fs::read_to_string(layout.blob_path(descriptor["digest"].as_str().unwrap())).unwrap();
    let helm = text.replace(CONFIG, "application/vnd.cncf.helm.config.v1+json");
    liar.say("/v2/x/manifests/1", &[answer("200 OK", "", helm.as_bytes())]);
    let error = place.error(&name, &plain()).await;
    assert_eq!(error.kind(), ErrorKind::UnsupportedMediaType);
    assert!(error.to_string().contains("application/vnd.cncf.helm.config.v1+json"), "{error}");
    // A foreign layer is fetched from the registry, and from nowhere else.
    let mut foreign: serde_json::Value = serde_json::from_str(&text).unwrap();
    foreign["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
    foreign["layers"][0]["urls"] = serde_json::json!([format!("http://{}/layer", other.address)]);
    liar.say("/v2/x/manifests/1", &[answer("200 OK", "", foreign.to_string().as_bytes())]);
    liar.say(&format!("/v2/x/blobs/{layer}"), &[answer("404 Not Found", "", b"")]);
    assert_eq!(place.error(&name, &plain()).await.kind(), ErrorKind::ImageNotFound);
    assert!(other.requests("").is_empty());
}

/// Asks for a user and a password.
pub(crate) fn basic() -> Answer {
    answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", b"")
}

/// A registry with an image whose manifest it gives to who shows a password: with the image's name, its layer's
/// digest and that layer.
pub(crate) async fn behind_a_password(place: &Place) -> (Liar, String, String, Vec<u8>) {
    let (layout, descriptor, layer, packed) = image(place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let good = liar.answers.lock().unwrap()["/v2/x/manifests/1"][0].clone();
    liar.say("/v2/x/manifests/1", &[basic(), good]);
    (liar, name, layer, packed)
}
