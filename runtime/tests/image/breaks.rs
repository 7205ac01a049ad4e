//! Connections that are reset, that hang up or that stall: where a pull goes on.

use std::time::Duration;

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{PullOptions, Times};

use crate::liar::{Answer, Liar, answer, image, part, plain};
use crate::support::*;
use crate::wire::{Greeting, TlsFront};

/// Short waits between attempts.
fn quick() -> PullOptions {
    PullOptions { times: Times { first_wait: Duration::from_millis(5), ..Times::default() }, ..plain() }
}

#[tokio::test]
async fn a_reset_before_the_head_of_a_manifest_is_tried_again() {
    let place = Place::new();
    let (layout, descriptor, ..) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let path = "/v2/x/manifests/1";
    let good = liar.answers.lock().unwrap()[path][0].clone();
    liar.say(path, &[Answer::reset(), Answer::reset(), good]);
    place.pull_with(&name, &quick()).await.expect("the third answer is good");
    assert_eq!(liar.requests(path).len(), 3);

    liar.requests.lock().unwrap().clear();
    liar.say(path, &[Answer::reset()]);
    let error = Place::new().error(&name, &quick()).await;
    assert_eq!(error.kind(), ErrorKind::RegistryUnreachable, "{error:?}");
    assert!(error.to_string().contains(&liar.address), "{error}");
    assert!(error.chain().contains("reset"), "it was a reset: {error:?}");
    assert_eq!(liar.requests(path).len(), 5);
}

#[tokio::test]
async fn a_layer_that_is_reset_goes_on_at_what_arrived() {
    let place = Place::new();
    let (layout, descriptor, layer, packed) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let reset = Answer { send: 70_000, resets: true, ..answer("200 OK", "", &packed) };
    let more = Answer {
        send: 50_000,
        resets: true,
        ..answer("206 Partial Content", &part(70_000, packed.len()), &packed[70_000..])
    };
    let rest = answer("206 Partial Content", &part(120_000, packed.len()), &packed[120_000..]);
    liar.say(&format!("/v2/x/blobs/{layer}"), &[reset, Answer::reset(), more, rest]);
    let image = place.pull_with(&name, &quick()).await.unwrap();
    assert_eq!(read(&image, 0, "noise").len(), 300_000);
    let asked = liar.requests(&layer);
    assert_eq!(asked.len(), 4);
    assert!(!asked[0].contains("range:"), "{asked:?}");
    for (request, range) in asked[1..].iter().zip(["bytes=70000-", "bytes=70000-", "bytes=120000-"]) {
        assert!(request.contains(&format!("range: {range}\r\n")), "{range}: {asked:?}");
    }
    place.nothing_half_made();
}

#[tokio::test]
async fn a_layer_that_stalls_goes_on_at_what_arrived() {
    let place = Place::new();
    let (layout, descriptor, layer, packed) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let path = format!("/v2/x/blobs/{layer}");
    let stall = Answer { send: 70_000, stalls: true, ..answer("200 OK", "", &packed) };
    let rest = answer("206 Partial Content", &part(70_000, packed.len()), &packed[70_000..]);
    liar.say(&path, &[stall.clone(), rest]);
    let times = Times { progress: Duration::from_millis(300), ..quick().times };
    let options = PullOptions { times, ..plain() };
    let image = place.pull_with(&name, &options).await.unwrap();
    assert_eq!(read(&image, 0, "noise").len(), 300_000);
    let asked = liar.requests(&layer);
    assert_eq!(asked.len(), 2);
    assert!(!asked[0].contains("range:") && asked[1].contains("range: bytes=70000-\r\n"), "{asked:?}");

    // A server that has nothing more comes to an end.
    let nothing = Answer {
        send: 0,
        stalls: true,
        ..answer("206 Partial Content", &part(70_000, packed.len()), &packed[70_000..])
    };
    liar.requests.lock().unwrap().clear();
    liar.say(&path, &[stall, nothing]);
    let error = Place::new().error(&name, &options).await;
    assert_eq!(error.kind(), ErrorKind::RegistryUnreachable, "{error:?}");
    assert!(error.to_string().contains("sent nothing for 300 ms"), "{error}");
    assert_eq!(liar.requests(&layer).len(), 5);
}

#[tokio::test]
async fn a_connection_that_ends_before_tls_is_tried_again() {
    let place = Place::new();
    let (layout, descriptor, ..) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    let front = TlsFront::start(place.dir.path(), &liar, &[Greeting::Reset, Greeting::HangUp]);
    let name = name.replace(&liar.address, &front.address);
    let options = PullOptions { plain_http: false, ca_files: vec![place.path("ca.pem")], ..quick() };
    place.pull_with(&name, &options).await.expect("the third connection is good");

    let broken = TlsFront::start(place.dir.path(), &liar, &[Greeting::Reset; 100]);
    let error = place.error(&name.replace(&front.address, &broken.address), &options).await;
    assert_eq!(error.kind(), ErrorKind::RegistryUnreachable, "{error:?}");
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}
