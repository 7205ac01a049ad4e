//! Manifests and configurations that mean harm. Each is refused with the right kind and a message
//! that names the thing, before anything that it leads to is fetched.

use serde_json::{Value, json};
use skiff_runtime::ErrorKind;

use crate::evil::{Evil, TAG};
use crate::liar::{answer, plain};
use crate::support::*;

/// Digests that are none.
fn no_digests() -> [String; 9] {
    let hex = "0123456789abcdef".repeat(4);
    [
        "sha256:../../x".into(),
        format!("sha256:../../{}", &hex[..58]),
        format!("sha999:{hex}"),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{hex}0"),
        format!("sha256:{}", hex.to_uppercase()),
        format!("SHA256:{hex}"),
        format!("sha512:{hex}"),
        hex,
    ]
}

#[tokio::test]
async fn digests_are_refused_before_any_request() {
    let evil = Evil::new().await;
    for digest in no_digests() {
        let pinned = format!("{}/x@{digest}", evil.liar.address);
        evil.liar.requests.lock().unwrap().clear();
        let error = evil.place.error(&pinned, &plain()).await;
        assert_eq!(error.kind(), ErrorKind::InvalidReference, "{digest}");
        assert!(evil.liar.requests("").is_empty(), "{digest}");
        for part in ["/config/digest", "/layers/0/digest"] {
            let manifest = evil.changed(|m| *m.pointer_mut(part).unwrap() = json!(digest));
            evil.refuse_at_once(&manifest, ErrorKind::InvalidImage, &digest).await;
        }
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": MANIFEST, "digest": digest, "size": 1,
            "platform": {"os": "linux", "architecture": "amd64"}}]});
        let index = answer("200 OK", "", index.to_string().as_bytes());
        evil.refuse_answers(&[index], ErrorKind::InvalidImage, &digest).await;
        assert_eq!(evil.liar.requests("").len(), 2, "the tag, with and without password");
    }
    evil.works().await;
}

#[tokio::test]
async fn documents_that_two_readers_could_read_apart() {
    let evil = Evil::new().await;
    let text = evil.manifest.to_string();
    let both = evil.changed(|m| m["manifests"] = json!([]));
    let fs_layers = evil.changed(|m| m["fsLayers"] = json!([{"blobSum": "sha256:0"}]));
    let index_with_config = json!({"schemaVersion": 2, "manifests": [], "config": evil.manifest["config"]});
    let other_case = evil.changed(|m| m["Manifests"] = json!([]));
    let typed_index = evil.changed(|m| m["mediaType"] = json!(INDEX));
    let list_as_image = json!({"schemaVersion": 2, "mediaType": MANIFEST, "manifests": []});
    let twice = |key: &str, value: &str| text.replacen('{', &format!("{{\"{key}\":{value},"), 1).into_bytes();
    let digest_twice = text.replacen("\"digest\":", &format!("\"digest\":\"{}\",\"digest\":", evil.layer), 1);
    for (manifest, says) in [
        (both, "ambiguous"),
        (fs_layers, "ambiguous"),
        (other_case, "Manifests"),
        (index_with_config.to_string().into_bytes(), "the manifest"),
        (typed_index, "the manifest"),
        (list_as_image.to_string().into_bytes(), "the manifest"),
        (twice("layers", "[]"), "duplicate field"),
        (twice("config", "{}"), "the manifest"),
        (twice("schemaVersion", "2"), "duplicate field"),
        (twice("mediaType", "\"a/b\""), "duplicate field"),
        (digest_twice.into_bytes(), "duplicate field"),
    ] {
        let bare = answer("200 OK", "", &manifest);
        evil.refuse_answers(&[bare], ErrorKind::InvalidImage, says).await;
        assert!(evil.liar.requests("/blobs/").is_empty(), "{says}");
    }
    evil.works().await;
}

#[tokio::test]
async fn what_is_no_image() {
    let evil = Evil::new().await;
    let with = |part: &str, value: &str| evil.changed(|m| *m.pointer_mut(part).unwrap() = json!(value));
    let helm = "application/vnd.cncf.helm.config.v1+json";
    let encrypted = format!("{GZIP}+encrypted");
    let artifact = evil.changed(|m| {
        m["artifactType"] = json!("application/vnd.example.sbom");
        m["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json");
    });
    let schema1 =
        br#"{"schemaVersion":1,"name":"x","tag":"1","architecture":"amd64","fsLayers":[],"history":[]}"#;
    for (manifest, says) in [
        (with("/config/mediaType", helm), helm),
        (with("/config/mediaType", "application/vnd.wasm.config.v0+json"), "wasm"),
        (with("/layers/0/mediaType", "application/wasm"), "application/wasm"),
        (with("/layers/0/mediaType", &encrypted), "+encrypted"),
        (with("/mediaType", "application/vnd.oci.artifact.manifest.v1+json"), "artifact.manifest"),
        (artifact, "application/vnd.example.sbom"),
        (schema1.to_vec(), "schema version 1"),
    ] {
        let error = evil.refuse_at_once(&manifest, ErrorKind::UnsupportedMediaType, says).await;
        assert!(error.advice().is_some(), "{says}");
    }
    let empty = evil.changed(|m| m["layers"] = json!([]));
    evil.refuse_at_once(&empty, ErrorKind::InvalidImage, "no layers").await;
    evil.works().await;
}

#[tokio::test]
async fn counts_and_sizes_of_layers() {
    let evil = Evil::new().await;
    let layer = evil.manifest["layers"][0].clone();
    let many = evil.changed(|m| m["layers"] = vec![layer.clone(); 10_000].into());
    evil.refuse_at_once(
        &many,
        ErrorKind::LimitExceeded,
        "layers of the image: 10000 is over the limit of 128",
    )
    .await;
    let sized = |size: Value| evil.changed(|m| m["layers"][0]["size"] = size);
    let limit = ErrorKind::LimitExceeded;
    evil.refuse_at_once(&sized(json!(1u64 << 63)), limit, "9223372036854775808").await;
    evil.refuse_at_once(&sized(json!(u64::MAX)), limit, "18446744073709551615").await;
    for none in [json!(-1), json!(1.5), json!("5"), json!(1e30), Value::Null] {
        evil.refuse_at_once(&sized(none), ErrorKind::InvalidImage, "the manifest").await;
    }
    let huge = evil.changed(|m| m["config"]["size"] = json!((8 << 20) + 1));
    evil.refuse_at_once(&huge, limit, "bytes of the image configuration").await;
    let length = evil.packed.len();
    for wrong in [0, 1, length - 1, length + 1] {
        evil.refuse(&sized(json!(wrong)), ErrorKind::CorruptImage, &wrong.to_string()).await;
    }
    evil.works().await;
}

#[tokio::test]
async fn the_same_layer_twice_is_fetched_once() {
    let evil = Evil::new().await;
    let archive = {
        let config =
            std::fs::read(evil.layout.blob_path(evil.manifest["config"]["digest"].as_str().unwrap()));
        let config: Value = serde_json::from_slice(&config.unwrap()).unwrap();
        config["rootfs"]["diff_ids"][0].clone()
    };
    let config = json!({"os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [archive, archive, archive]}});
    let config = config.to_string();
    let descriptor = evil.layout.blob(CONFIG, config.as_bytes());
    evil.liar.say(
        &format!("/v2/x/blobs/{}", descriptor["digest"].as_str().unwrap()),
        &[answer("200 OK", "", config.as_bytes())],
    );
    let twice = evil.changed(|m| {
        let layer = m["layers"][0].clone();
        m["layers"] = vec![layer; 3].into();
        m["config"] = descriptor;
    });
    evil.liar.say(TAG, &[answer("200 OK", "", &twice)]);
    let image = evil.place.pull_with(&evil.name, &plain()).await.unwrap();
    assert_eq!(image.layers.len(), 1);
    assert_eq!(evil.liar.requests(&evil.layer).len(), 1);
}

#[tokio::test]
async fn indexes_of_indexes() {
    let evil = Evil::new().await;
    let manifest = evil.manifest.to_string();
    let mut inner = evil.layout.blob(MANIFEST, manifest.as_bytes());
    let serve = |mut descriptor: Value, bytes: &[u8]| {
        let path = format!("/v2/x/manifests/{}", descriptor["digest"].as_str().unwrap());
        evil.liar.say(&path, &[answer("200 OK", "", bytes)]);
        descriptor["platform"] = json!({"os": "linux", "architecture": "amd64"});
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]}).to_string()
    };
    let mut documents = vec![manifest];
    for _ in 0..3 {
        let bytes = documents.last().unwrap().clone();
        let index = serve(inner, bytes.as_bytes());
        inner = evil.layout.blob(INDEX, index.as_bytes());
        documents.push(index);
    }
    let as_index = |text: &str| answer("200 OK", &format!("Content-Type: {INDEX}\r\n"), text.as_bytes());
    evil.refuse_answers(&[as_index(&documents[3])], ErrorKind::InvalidImage, "nested").await;
    assert!(evil.liar.requests("/blobs/").is_empty());
    // Too many entries, and one whose descriptor lies about the size of what it leads to.
    let entry = json!({"mediaType": MANIFEST, "digest": evil.layer, "size": 1});
    let many = json!({"schemaVersion": 2, "manifests": vec![entry; 1025]}).to_string();
    evil.refuse_answers(&[as_index(&many)], ErrorKind::LimitExceeded, "1025").await;
    let mut lying: Value = serde_json::from_str(&documents[1]).unwrap();
    lying["manifests"][0]["size"] = json!(7);
    evil.refuse_answers(&[as_index(&lying.to_string())], ErrorKind::CorruptImage, "says 7").await;
    evil.liar.say(TAG, &[as_index(&documents[2])]);
    evil.place.pull_with(&evil.name, &plain()).await.expect("an index in an index");
}

/// Serves the good manifest with another configuration.
fn with_config(evil: &Evil, config: &Value) -> Vec<u8> {
    let config = config.to_string();
    let descriptor = evil.layout.blob(CONFIG, config.as_bytes());
    let path = format!("/v2/x/blobs/{}", descriptor["digest"].as_str().unwrap());
    evil.liar.say(&path, &[answer("200 OK", "", config.as_bytes())]);
    evil.changed(|m| m["config"] = descriptor)
}

fn good_config(evil: &Evil) -> Value {
    let digest = evil.manifest["config"]["digest"].as_str().unwrap();
    serde_json::from_slice(&std::fs::read(evil.layout.blob_path(digest)).unwrap()).unwrap()
}

#[tokio::test]
async fn configurations_that_name_other_layers() {
    let evil = Evil::new().await;
    let good = good_config(&evil);
    let with_ids = |ids: Value| {
        let mut config = good.clone();
        config["rootfs"]["diff_ids"] = ids;
        with_config(&evil, &config)
    };
    let id = good["rootfs"]["diff_ids"][0].clone();
    let other = sha256(b"other");
    for (ids, says) in [
        (json!([]), "0 DiffIDs"),
        (Value::Null, "0 DiffIDs"),
        (json!([id, id]), "2 DiffIDs"),
        (json!(["sha256:../../x"]), "sha256:../../x"),
        (json!([1]), "the image configuration"),
    ] {
        evil.refuse(&with_ids(ids), ErrorKind::InvalidImage, says).await;
        assert!(evil.liar.requests(&evil.layer).is_empty(), "{says}");
    }
    // Every byte is as the registry was asked for, so this is the image's fault.
    evil.refuse(&with_ids(json!([other])), ErrorKind::InvalidImage, &other).await;
    evil.works().await;
}

#[tokio::test]
async fn configurations_with_hostile_values() {
    let evil = Evil::new().await;
    let good = good_config(&evil);
    let with = |key: &str, value: Value| {
        let mut config = good.clone();
        config["config"][key] = value;
        with_config(&evil, &config)
    };
    for (key, value, says) in [
        ("Env", json!(["A=1", "B=2\0LD_PRELOAD=x"]), "Env[1]"),
        ("Cmd", json!(["/bin/sh\0"]), "Cmd[0]"),
        ("Entrypoint", json!(["\0"]), "Entrypoint[0]"),
        ("User", json!("0\0"), "User"),
        ("User", json!("1".repeat(1 << 20)), "1048576"),
        ("WorkingDir", json!("/x\0y"), "WorkingDir"),
        ("WorkingDir", json!("/x".repeat(1 << 20)), "2097152"),
        ("StopSignal", json!("9".repeat(1000)), "1000"),
        ("Labels", json!(["a"]), "the image configuration"),
        ("Env", vec!["A=1"; 100_000].into(), "more than 16384 entries"),
    ] {
        evil.refuse(&with(key, value), ErrorKind::InvalidImage, says).await;
        assert!(evil.liar.requests(&evil.layer).is_empty(), "{key}");
    }
    let mut foreign = good.clone();
    foreign["architecture"] = json!("arm64");
    evil.refuse(&with_config(&evil, &foreign), ErrorKind::NoMatchingPlatform, "linux/arm64").await;
    foreign["architecture"] = json!("amd64");
    foreign["os"] = json!("windows");
    evil.refuse(&with_config(&evil, &foreign), ErrorKind::NoMatchingPlatform, "windows/amd64").await;
    assert!(evil.liar.requests(&evil.layer).is_empty());
    // Labels do nothing, and variables are counted when the function starts.
    let label = "--log-opt=/etc/passwd\n$(reboot)\0../../x";
    let labels = json!({label: label});
    for (key, value) in [("Labels", labels), ("Env", vec!["A=1"; 10_000].into())] {
        evil.liar.say(TAG, &[answer("200 OK", "", &with(key, value))]);
        evil.place.pull_with(&evil.name, &plain()).await.expect(key);
    }
}
