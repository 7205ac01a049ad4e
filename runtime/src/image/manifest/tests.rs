use proptest::prelude::*;
use serde_json::json;

use super::*;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn descriptor(media_type: &str, size: u64) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{}","size":{size}}}"#, "1".repeat(64))
}

fn manifest(config_type: &str, layers: &[String]) -> String {
    format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        descriptor(config_type, 10),
        layers.join(",")
    )
}

fn read(text: &str) -> Result<Document> {
    parse(text.as_bytes(), None, &Limits::default())
}

fn kind(text: &str) -> ErrorKind {
    read(text).expect_err(text).kind()
}

fn entry(os: &str, architecture: &str) -> String {
    format!(
        r#"{{"mediaType":"{OCI_MANIFEST}","digest":"sha256:{}","size":1,
        "platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#,
        "2".repeat(64)
    )
}

fn chosen(entries: &[String]) -> Result<Descriptor> {
    chosen_under(entries, &Limits::default())
}

fn chosen_under(entries: &[String], limits: &Limits) -> Result<Descriptor> {
    let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
    match read(&text)? {
        Document::Index(entries) => choose(&entries, limits).cloned(),
        Document::Image(_) => panic!("an index was read as an image"),
    }
}

#[test]
fn both_families_of_manifests_are_read() {
    let oci = manifest(CONFIG_TYPES[0], &[descriptor(GZIP, 5)]);
    let docker =
        manifest(CONFIG_TYPES[1], &[descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", 7)]);
    for (text, bytes) in [(oci, 5), (docker, 7)] {
        match read(&text).expect("valid") {
            Document::Image(manifest) => assert_eq!(manifest.packed_bytes(), bytes),
            Document::Index(_) => panic!("an image was read as an index"),
        }
    }
}

#[test]
fn layer_types() {
    assert_eq!(packing("application/vnd.oci.image.layer.v1.tar"), Some(Packing::Plain));
    for suffix in ["+gzip", "+zstd"] {
        let name = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
        assert_eq!(packing(&name), Some(Packing::ByMagic));
    }
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    assert_eq!(packing(foreign), Some(Packing::ByMagic));
    for other in ["", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", "text/plain"] {
        assert_eq!(packing(other), None);
    }
    assert_eq!(packing("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), None);
}

#[test]
fn other_artifacts_are_refused_by_name() {
    let helm = manifest("application/vnd.cncf.helm.config.v1+json", &[descriptor(GZIP, 5)]);
    let error = read(&helm).expect_err("helm");
    assert_eq!(error.kind(), ErrorKind::UnsupportedMediaType);
    assert!(error.to_string().contains("helm"), "{error}");
    let layer = manifest(CONFIG_TYPES[0], &[descriptor("application/wasm", 5)]);
    assert!(read(&layer).expect_err("wasm").to_string().contains("application/wasm"));
    assert_eq!(kind(r#"{"schemaVersion":1,"fsLayers":[]}"#), ErrorKind::UnsupportedMediaType);
    let typed = r#"{"schemaVersion":2,"mediaType":"x/y","manifests":[]}"#;
    assert_eq!(kind(typed), ErrorKind::UnsupportedMediaType);
}

#[test]
fn ambiguous_and_broken_documents_are_refused() {
    let both = format!(
        r#"{{"schemaVersion":2,"manifests":[],"config":{},"layers":[]}}"#,
        descriptor(CONFIG_TYPES[0], 1)
    );
    assert!(read(&both).expect_err("both").to_string().contains("ambiguous"));
    let lying = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#);
    let negative = manifest(CONFIG_TYPES[0], &[descriptor(GZIP, 5)]).replace(":5", ":-5");
    let doubled = r#"{"schemaVersion":2,"schemaVersion":2,"manifests":[]}"#;
    let deep = "[".repeat(100_000);
    let none = manifest(CONFIG_TYPES[0], &[]);
    for text in ["", "{}", "[]", "null", &lying, &negative, doubled, &deep, &none] {
        assert_eq!(kind(text), ErrorKind::InvalidImage, "{text:.80}");
    }
}

#[test]
fn limits_hold() {
    let many: Vec<_> = (0..=limits::MAX_LAYERS).map(|_| descriptor(GZIP, 1)).collect();
    assert_eq!(kind(&manifest(CONFIG_TYPES[0], &many)), ErrorKind::LimitExceeded);
    read(&manifest(CONFIG_TYPES[0], &many[1..])).expect("as many as are allowed");
    let huge = [descriptor(GZIP, u64::MAX), descriptor(GZIP, u64::MAX)];
    assert_eq!(kind(&manifest(CONFIG_TYPES[0], &huge)), ErrorKind::LimitExceeded);
    let spaces = " ".repeat(usize::try_from(limits::MAX_MANIFEST_BYTES).expect("fits") + 1);
    assert_eq!(kind(&spaces), ErrorKind::LimitExceeded);
}

#[test]
fn platforms() {
    let unknown = entry("unknown", "unknown");
    let amd64 = entry("linux", "amd64");
    chosen(&[entry("linux", "arm64"), unknown.clone(), amd64]).expect("amd64");
    let error =
        chosen(&[entry("linux", "arm64"), unknown.clone(), entry("windows", "amd64")]).expect_err("none");
    assert_eq!(error.kind(), ErrorKind::NoMatchingPlatform);
    assert!(error.to_string().ends_with("it has: linux/arm64, windows/amd64"), "{error}");
    let error = chosen(&[unknown]).expect_err("attestations");
    assert_eq!(error.kind(), ErrorKind::NoMatchingPlatform);
    assert!(error.advice().is_some_and(|a| a.contains("--provenance=false")));
    assert_eq!(chosen(&[]).expect_err("empty").kind(), ErrorKind::NoMatchingPlatform);
}
#[test]
fn attestations_are_ignored_or_refused() {
    let refuse = Limits { owner: Some("some"), attestations: Attestations::Refuse, ..Limits::default() };
    let with = [entry("linux", "amd64"), entry("unknown", "unknown")];
    chosen(&with).expect("ignored");
    let error = chosen_under(&with, &refuse).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::InvalidImage);
    let text = error.to_string();
    assert!(text.starts_with("invalid image, platform of image is unknown/unknown"), "{text}");
    assert!(text.contains("sha256:2222") && text.ends_with("refused under some"), "{text}");
    assert!(error.advice().is_some_and(|a| a.contains("--provenance=false")));
    chosen_under(&with[..1], &refuse).expect("an index without attestations");
}

#[test]
fn only_entries_that_are_manifests_are_chosen() {
    let wasm = entry("linux", "amd64").replace(OCI_MANIFEST, "application/wasm");
    assert_eq!(chosen(std::slice::from_ref(&wasm)).expect_err("wasm").kind(), ErrorKind::NoMatchingPlatform);
    assert_eq!(chosen(&[wasm, entry("linux", "amd64")]).expect("the other").media_type, OCI_MANIFEST);
}

#[test]
fn a_document_may_not_come_as_another_kind() {
    let list = r#"{"schemaVersion":2,"manifests":[]}"#;
    let typed = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}"#);
    let read_as = |text: &str, declared| parse(text.as_bytes(), Some(declared), &Limits::default()).map(drop);
    for text in [list, &typed] {
        read_as(text, OCI_INDEX).expect("an index");
        read_as(text, DOCKER_LIST).expect("of the other family");
        read_as(text, "text/plain").expect("a type that says nothing");
        let error = read_as(text, OCI_MANIFEST).expect_err("not an image");
        assert_eq!(error.kind(), ErrorKind::InvalidImage, "{error}");
    }
}

#[test]
fn artifacts_and_encrypted_layers_are_named() {
    let artifact = manifest("application/vnd.oci.empty.v1+json", &[descriptor(GZIP, 5)])
        .replace("\"config\"", "\"artifactType\":\"application/vnd.some.sbom\",\"config\"");
    assert!(read(&artifact).expect_err("sbom").to_string().contains("application/vnd.some.sbom"));
    let encrypted = manifest(CONFIG_TYPES[0], &[descriptor(&format!("{GZIP}+encrypted"), 5)]);
    let error = read(&encrypted).expect_err("encrypted");
    assert!(error.to_string().contains("sha256:1111"), "{error}");
    assert!(error.advice().is_some_and(|a| a.contains("encryption")));
}

#[test]
fn errors_do_not_grow_with_the_document() {
    let long = "x\\u001b".repeat(100_000);
    for text in [
        format!(r#"{{"schemaVersion":"{long}"}}"#),
        format!(r#"{{"schemaVersion":2,"mediaType":"{long}"}}"#),
        manifest(&long, &[]),
        manifest(CONFIG_TYPES[0], &[descriptor(&long, 1)]),
    ] {
        let error = read(&text).expect_err("refused").chain();
        assert!(error.len() < 1000 && !error.contains('\u{1b}'), "{error:.200}");
    }
}

/// A descriptor as registries write them, with any digest, size and platform.
fn any_descriptor(media_type: &'static str) -> impl Strategy<Value = serde_json::Value> {
    let digest = prop_oneof!["sha256:[0-9a-f]{64}", "sha512:[0-9a-f]{128}"];
    let part = prop_oneof![Just("linux".to_owned()), Just("amd64".to_owned()), "[a-z0-9]{0,8}"];
    let platform = proptest::option::of((part.clone(), part));
    (digest, 0..1u64 << 20, platform).prop_map(move |(digest, size, platform)| {
        let mut descriptor = json!({"mediaType": media_type, "digest": digest, "size": size});
        if let Some((os, architecture)) = platform {
            descriptor["platform"] = json!({"os": os, "architecture": architecture});
        }
        descriptor
    })
}

fn written(descriptor: &Descriptor) -> serde_json::Value {
    let mut value = json!({"mediaType": descriptor.media_type, "digest": descriptor.digest.to_string(),
        "size": descriptor.size});
    if let Some(platform) = &descriptor.platform {
        value["platform"] = json!({"os": platform.os, "architecture": platform.architecture});
    }
    value
}

/// Any JSON, with the names that matter among its keys.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let key = prop_oneof![
        4 => proptest::sample::select(&KEYS[..]).prop_map(str::to_owned),
        2 => proptest::sample::select(&["digest", "size", "platform", "os", "rootfs", "diff_ids"][..])
            .prop_map(str::to_owned),
        1 => "[ -~]{0,6}",
    ];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        Just(json!(2)),
        Just(json!(OCI_MANIFEST)),
        Just(json!(OCI_INDEX)),
        "sha256:[0-9a-f]{64}".prop_map(Into::into),
        "\\PC{0,8}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            proptest::collection::btree_map(key.clone(), inner, 0..6)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn an_image_is_read_as_it_was_written(
        config in any_descriptor(CONFIG_TYPES[0]),
        layers in proptest::collection::vec(any_descriptor(GZIP), 1..20),
    ) {
        let text = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
        let Ok(Document::Image(manifest)) = read(&text) else { panic!("not read: {text}") };
        prop_assert_eq!(written(&manifest.config), config);
        prop_assert_eq!(manifest.layers.len(), layers.len());
        for (layer, written) in manifest.layers.iter().zip(&layers) {
            prop_assert_eq!(json!(layer.digest.to_string()), written["digest"].clone());
            prop_assert_eq!(json!(layer.size), written["size"].clone());
        }
    }

    #[test]
    fn an_index_is_read_as_it_was_written(
        entries in proptest::collection::vec(any_descriptor(OCI_MANIFEST), 0..20),
    ) {
        let text = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        let Ok(Document::Index(found)) = read(&text) else { panic!("not read: {text}") };
        prop_assert_eq!(found.iter().map(written).collect::<Vec<_>>(), entries);
        // Whatever is chosen fits, or is the only one and says nothing.
        if let Ok(chosen) = choose(&found, &Limits::default()) {
            prop_assert!(chosen.platform.as_ref().is_none_or(Platform::fits));
        }
    }

    #[test]
    fn nothing_makes_it_panic(value in any_json(), cut in any::<proptest::sample::Index>()) {
        let text = value.to_string();
        let bytes = text.as_bytes();
        for part in [bytes, &bytes[..cut.index(bytes.len())]] {
            for declared in [None, Some(OCI_INDEX), Some(DOCKER_MANIFEST)] {
                if let Err(error) = parse(part, declared, &Limits::default()) {
                    prop_assert!(error.chain().len() < 1000, "{:?}", error);
                }
            }
            let _ = super::super::config::parse(part);
        }
    }

    #[test]
    fn nor_do_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse(&bytes, None, &Limits::default()).is_err());
        prop_assert!(super::super::config::parse(&bytes).is_err());
    }
}
