//! What is shown to a registry runs out or is refused in the middle of a pull.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{
    CredentialCallback, CredentialEndpoint, CredentialSources, EndpointToken, PullOptions,
    TemporaryCredentials, Times,
};

use crate::liar::{Answer, Liar, answer, basic, behind_a_password, image, part, plain, with_password};
use crate::support::*;

fn bearer(liar: &Liar) -> Answer {
    let header =
        format!("WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"s\"\r\n", liar.address);
    answer("401 Unauthorized", &header, b"")
}

fn token(text: &str, seconds: u32) -> Answer {
    answer("200 OK", "", format!(r#"{{"token":"{text}","expires_in":{seconds}}}"#).as_bytes())
}

/// Times that make a test of failures short.
fn quick() -> Times {
    Times { first_wait: Duration::from_millis(5), ..Times::default() }
}

#[tokio::test]
async fn a_token_that_ran_out_is_renewed_for_a_resumed_layer() {
    let place = Place::new();
    let (layout, descriptor, layer, packed) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let path = format!("/v2/x/blobs/{layer}");
    let cut = Answer { send: 70_000, ..answer("200 OK", "", &packed) };
    let rest = answer("206 Partial Content", &part(70_000, packed.len()), &packed[70_000..]);
    liar.say(&path, &[bearer(&liar), cut, bearer(&liar), rest]);
    liar.say("/token", &[token("t1", 600), token("t2", 600)]);
    place.pull_with(&name, &with_password()).await.unwrap();
    let asked = liar.requests(&layer);
    assert_eq!(asked.len(), 4);
    assert!(asked[1].contains("Bearer t1") && asked[2].contains("Bearer t1"), "{asked:?}");
    assert!(asked[3].contains("Bearer t2") && asked[3].contains("bytes=70000-"), "{asked:?}");
    assert_eq!(liar.requests("/token").len(), 2);
}

#[tokio::test]
async fn a_known_end_is_not_waited_for() {
    let place = Place::new();
    let (layout, descriptor, layer, packed) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let good = liar.answers.lock().unwrap()["/v2/x/manifests/1"][0].clone();
    liar.say("/v2/x/manifests/1", &[bearer(&liar), good]);
    liar.say("/token", &[token("short", 1), token("long", 600)]);
    // The first attempt is sent to wait for longer than the first token lives.
    let busy = answer("503 Service Unavailable", "Retry-After: 2\r\n", b"");
    liar.say(&format!("/v2/x/blobs/{layer}"), &[busy, answer("200 OK", "", &packed)]);
    place.pull_with(&name, &with_password()).await.unwrap();
    let asked = liar.requests(&layer);
    assert!(asked[0].contains("Bearer short") && asked[1].contains("Bearer long"), "{asked:?}");
    assert_eq!((asked.len(), liar.requests("/token").len()), (2, 2));
}

#[tokio::test]
async fn many_layers_renew_once() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    let layers: Vec<_> = (0..8)
        .map(|at| {
            let archive = tar(&[("f", &at.to_string())]);
            (GZIP, gzip(&archive), archive)
        })
        .collect();
    let descriptor = layout.image(&layers, "amd64");
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    for (_, packed, _) in &layers {
        let path = format!("/v2/x/blobs/{}", sha256(packed));
        liar.say(&path, &[bearer(&liar), answer("200 OK", "", packed)]);
    }
    liar.say("/token", &[token("t1", 600)]);
    place.pull_with(&name, &with_password()).await.unwrap();
    // Those that were asked for with the new token are refused by this server once more.
    let asked = liar.requests("/token").len();
    assert!((1..=8).contains(&asked), "{asked}");
    assert!(liar.requests("/blobs/").len() <= 8 * 2 + 1);
}

#[tokio::test]
async fn a_registry_that_refuses_every_token_comes_to_an_end() {
    let place = Place::new();
    let (layout, descriptor, layer, _) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    liar.say(&format!("/v2/x/blobs/{layer}"), &[bearer(&liar)]);
    liar.say("/token", &[token("t", 600)]);
    let error = place.pull_with(&name, &with_password()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(liar.requests("/token").len() <= 2);
}

#[tokio::test]
async fn a_refused_temporary_password_is_asked_for_again() {
    let place = Place::new();
    // The registry takes the first password for the manifest and not for the layer any more.
    let (liar, name, layer, packed) = behind_a_password(&place).await;
    liar.say(&format!("/v2/x/blobs/{layer}"), &[basic(), basic(), answer("200 OK", "", &packed)]);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let callback = CredentialCallback::new(move |request| {
        assert_eq!(request.repository, "x");
        let call = counted.fetch_add(1, Ordering::SeqCst);
        let later = SystemTime::now() + Duration::from_secs(600);
        async move { Ok(Some(TemporaryCredentials::new("user", format!("pass{call}")).expires_at(later))) }
    });
    let credentials = CredentialSources { callback: Some(callback), ..Default::default() };
    place.pull_with(&name, &PullOptions { credentials, ..plain() }).await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    // "user:pass1" in Base64.
    assert!(liar.requests(&layer)[2].contains("Basic dXNlcjpwYXNzMQ=="), "{:?}", liar.requests(&layer));

    let fails = CredentialCallback::blocking(|_| Err("the vault is shut".into()));
    let credentials = CredentialSources { callback: Some(fails), ..Default::default() };
    liar.say("/v2/x/manifests/1", &[basic()]);
    let error = place.error(&name, &PullOptions { credentials, ..plain() }).await;
    assert_eq!(error.kind(), ErrorKind::InvalidCredentials);
    assert!(error.chain().contains("the vault is shut"), "{error:?}");
}

#[tokio::test]
async fn credentials_from_a_service() {
    let place = Place::new();
    let (layout, descriptor, ..) = image(&place);
    let (liar, service) = (Liar::start().await, Liar::start().await);
    let name = liar.serve_image(&layout, &descriptor);
    let good = liar.answers.lock().unwrap()["/v2/x/manifests/1"][0].clone();
    let endpoint = CredentialEndpoint {
        url: format!("http://{}/get", service.address),
        token: Some(EndpointToken::Value("t0ken".into())),
    };
    let credentials = CredentialSources { endpoint: Some(endpoint), ..Default::default() };
    let options = PullOptions { credentials, ..plain() };
    let json = br#"{"username":"user","password":"s3cret","expiry":"2999-01-01T00:00:00Z"}"#;
    service.say("/get", &[answer("200 OK", "", json)]);
    liar.say("/v2/x/manifests/1", &[basic(), good]);
    place.pull_with(&name, &options).await.unwrap();
    let asked = &service.requests("/get")[0];
    let registry = liar.address.replace(':', "%3A");
    assert!(asked.starts_with(&format!("GET /get?registry={registry}&repository=x ")), "{asked}");
    assert!(asked.contains("authorization: Bearer t0ken"));
    assert!(liar.requests("/manifests/")[1].contains("Basic dXNlcjpzM2NyZXQ="));

    let away = answer("307 Temporary Redirect", &format!("Location: http://{}/other\r\n", liar.address), b"");
    let big = vec![b' '; 70_000];
    for (said, wanted) in [
        (away, "answered 307"),
        (answer("500 Internal Server Error", "", b"s3cret"), "answered 500"),
        (answer("200 OK", "", b"s3cret"), "is not JSON"),
        (answer("200 OK", "", &big), "more than 65536 bytes"),
        (
            answer("200 OK", "", br#"{"username":"u","password":"s3cret","expiry":"2001-01-01T00:00:00Z"}"#),
            "expired",
        ),
    ] {
        service.say("/get", &[said]);
        liar.say("/v2/x/manifests/1", &[basic()]);
        let error = Place::new().error(&name, &options).await;
        assert_eq!(error.kind(), ErrorKind::InvalidCredentials);
        assert!(error.to_string().contains(wanted), "{error:?}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
    assert!(liar.requests("/other").is_empty());
}

#[tokio::test]
async fn credentials_from_a_service_on_a_unix_socket() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let place = Place::new();
    let (layout, descriptor, ..) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let good = liar.answers.lock().unwrap()["/v2/x/manifests/1"][0].clone();
    liar.say("/v2/x/manifests/1", &[basic()]);
    let socket = place.path("vault.sock");
    let endpoint = CredentialEndpoint { url: format!("unix:{}", socket.display()), token: None };
    let credentials = CredentialSources { endpoint: Some(endpoint), ..Default::default() };
    let options = PullOptions { credentials, ..plain() };
    let error = place.error(&name, &options).await;
    assert_eq!(error.kind(), ErrorKind::InvalidCredentials, "{error:?}");
    assert!(error.to_string().contains("vault.sock cannot be reached"), "{error:?}");

    liar.say("/v2/x/manifests/1", &[basic(), good]);
    let service = tokio::net::UnixListener::bind(&socket).unwrap();
    let answered = tokio::spawn(async move {
        let (mut stream, _) = service.accept().await.unwrap();
        let mut asked = vec![0; 4096];
        let length = stream.read(&mut asked).await.unwrap();
        let json = r#"{"username":"user","password":"s3cret"}"#;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", json.len());
        stream.write_all(format!("{head}{json}").as_bytes()).await.unwrap();
        String::from_utf8(asked[..length].to_vec()).unwrap()
    });
    place.pull_with(&name, &options).await.unwrap();
    let asked = answered.await.unwrap();
    let registry = liar.address.replace(':', "%3A");
    assert!(asked.starts_with(&format!("GET /?registry={registry}&repository=x ")), "{asked}");
    assert!(liar.requests("/manifests/").last().unwrap().contains("Basic dXNlcjpzM2NyZXQ="));
}

#[tokio::test]
async fn a_challenge_after_a_redirect_is_not_answered() {
    let place = Place::new();
    let (layout, descriptor, layer, _) = image(&place);
    let (liar, other) = (Liar::start().await, Liar::start().await);
    let name = liar.serve_image(&layout, &descriptor);
    let away = answer("307 Temporary Redirect", &format!("Location: http://{}/blob\r\n", other.address), b"");
    liar.say(&format!("/v2/x/blobs/{layer}"), &[away]);
    // It even names a realm of the registry's own host.
    for challenge in [bearer(&other), bearer(&liar), basic()] {
        other.say("/blob", &[challenge]);
        let error = Place::new().pull_with(&name, &with_password()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
        assert!(error.to_string().contains("redirects"), "{error}");
    }
    assert!(other.requests("uthorization").is_empty() && other.requests("/token").is_empty());
    assert!(liar.requests("/token").is_empty());
}

#[tokio::test]
async fn a_part_from_another_place_is_refused() {
    let (_place, error) = broken_layer(|packed| {
        let cut = Answer { send: 70_000, ..answer("200 OK", "", packed) };
        vec![cut, answer("206 Partial Content", &part(60_000, packed.len()), &packed[60_000..])]
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::RegistryFailed);
    assert!(error.to_string().contains("from byte 60000 on, asked for byte 70000"), "{error}");
    let (_place, error) = broken_layer(|packed| vec![answer("206 Partial Content", "", packed)]).await;
    assert!(error.to_string().contains("from no place on, asked for byte 0"), "{error}");
}

async fn broken_layer(answers: impl FnOnce(&[u8]) -> Vec<Answer>) -> (Place, skiff_runtime::Error) {
    let place = Place::new();
    let (layout, descriptor, layer, packed) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    liar.say(&format!("/v2/x/blobs/{layer}"), &answers(&packed));
    let error = place.pull_with(&name, &plain()).await.unwrap_err();
    (place, error)
}

#[tokio::test]
async fn a_pull_has_one_time_in_all() {
    let place = Place::new();
    let (layout, descriptor, layer, packed) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let stall = Answer { send: 70_000, stalls: true, ..answer("200 OK", "", &packed) };
    liar.say(&format!("/v2/x/blobs/{layer}"), &[stall]);
    let options = PullOptions { timeout: Some(Duration::from_millis(1500)), times: quick(), ..plain() };
    let error = place.pull_with(&name, &options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PullTimedOut);
    assert!(error.is_retryable());
    let wanted = format!("within 1500 ms: 70000 of {} bytes of 1 layers had come", packed.len());
    assert!(error.to_string().contains(&wanted), "{error}");

    liar.say("/v2/x/manifests/1", &[Answer { send: 0, stalls: true, ..answer("200 OK", "", b"{}") }]);
    let error = Place::new().error(&name, &options).await;
    assert!(error.to_string().ends_with("its layers were not known"), "{error}");
}

#[tokio::test]
async fn a_stall_is_ended_and_continued() {
    let place = Place::new();
    let (layout, descriptor, ..) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    // A listener that accepts and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away = format!("Location: http://{}/\r\n", silent.local_addr().unwrap());
    let good = liar.answers.lock().unwrap()["/v2/x/manifests/1"][0].clone();
    let stall = answer("307 Temporary Redirect", &away, b"");
    liar.say("/v2/x/manifests/1", &[stall.clone(), good]);
    let times = Times { progress: Duration::from_millis(300), ..quick() };
    let options = PullOptions { times, ..plain() };
    place.pull_with(&name, &options).await.expect("the second answer comes");
    liar.say("/v2/x/manifests/1", &[stall]);
    let error = Place::new().error(&name, &options).await;
    assert_eq!(error.kind(), ErrorKind::RegistryUnreachable);
    assert!(error.to_string().contains("sent nothing for 300 ms"), "{error}");
}

#[tokio::test]
async fn without_credentials_an_anonymous_token_is_asked_for() {
    let place = Place::new();
    let (layout, descriptor, layer, _) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let good = liar.answers.lock().unwrap()["/v2/x/manifests/1"][0].clone();
    liar.say("/v2/x/manifests/1", &[bearer(&liar), good]);
    liar.say("/token", &[token("anyone", 600)]);
    place.pull_with(&name, &plain()).await.unwrap();
    let asked = liar.requests("/token");
    assert_eq!(asked.len(), 1);
    assert!(asked[0].starts_with("GET /token?service=s&scope=repository%3Ax%3Apull "), "{asked:?}");
    assert!(!asked[0].to_lowercase().contains("authorization"), "{asked:?}");
    assert!(liar.requests(&layer)[0].contains("authorization: Bearer anyone"));
}
