use super::*;

fn read(text: &str) -> HostsFile {
    parse(text.as_bytes(), Path::new("/d/r/hosts.toml")).expect(text)
}

#[test]
fn hosts_keep_their_order_and_all_keys_are_read() {
    let file = read(
        r#"
server = "https://registry-1.docker.io"

[host."https://z.example:5000/v2/proxy"]
  capabilities = ["pull"]
  ca = ["ca.pem", "/abs.pem"]
  client = [["c.pem", "k.pem"]]
  override_path = true
  skip_verify = false
  [host."https://z.example:5000/v2/proxy".header]
    x-team = ["a", "b"]

[host."http://a.example"]
"#,
    );
    let [z, a] = &file.mirrors[..] else { panic!("{file:?}") };
    assert_eq!(host_and_port(&z.url), "z.example:5000");
    assert_eq!((z.pull, z.resolve, z.override_path), (true, false, true));
    assert_eq!(z.tls.ca_files, [PathBuf::from("/d/r/ca.pem"), "/abs.pem".into()]);
    let pair = ClientCertificate { certificate: "/d/r/c.pem".into(), key: "/d/r/k.pem".into() };
    assert_eq!(z.tls.identity, Some(pair));
    assert_eq!(z.headers.get_all("x-team").iter().count(), 2);
    assert_eq!((a.url.scheme(), a.pull, a.resolve), ("http", true, true));
    assert_eq!(base(&z.url, true, "a/b").as_str(), "https://z.example:5000/v2/proxy/a/b");
    assert_eq!(base(&a.url, false, "a/b").as_str(), "http://a.example/v2/a/b");
    let server = file.server.expect("server");
    assert_eq!(base(&server.url, false, "x").as_str(), "https://registry-1.docker.io/v2/x");
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (text, wanted) in [
        ("\n\nserver = 5", "line 3: server must be a string"),
        ("servr = \"https://x\"", "line 1: the key \"servr\" needs a server"),
        ("server = \"https://x\"\nfoo = 1", "line 2: the key \"foo\" is unknown"),
        ("[host.\"https://x\"]\nskip_verify = true", "line 2: skip_verify = true is refused"),
        ("[host.\"https://x\"]\nskip_vrify = true", "line 2: the key \"skip_vrify\" is unknown"),
        ("[host.\"https://x\"]\ncapabilities = [\"pul\"]", "line 2: the capability \"pul\""),
        ("[host.\"https://x\"]\ncapabilities = \"pull\"", "line 2: capabilities must be a list"),
        ("[host.\"https://x\".header]\nAuthorization = \"Basic s3cret\"", "line 2: the header"),
        ("[host.\"https://x\".header]\nx = \"s3cret\\n\"", "line 2: no value of the header"),
        ("[host.\"https://u:s3cret@x\"]", "line 1: a host's address may have no user"),
        ("[host.\"ftp://x\"]", "line 1: a host must be https://"),
        ("[host.\"https://x\"]\nclient = [\"a\", \"b\", \"c\"]", "line 2: client must be one pair"),
        ("[host.\"https://x\"]\nclient = [[\"a\"], [\"b\"]]", "line 2: client has more than one pair"),
        ("host = 1", "line 1: host must be a table"),
        ("\n= broken", "line 2: "),
    ] {
        let error = parse(text.as_bytes(), Path::new("/d/hosts.toml")).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().starts_with(&format!("/d/hosts.toml, {wanted}")), "{error}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
    let skip = parse(b"[host.\"https://x\"]\nskip_verify = true", Path::new("/f")).expect_err("refused");
    assert!(skip.advice().is_some_and(|advice| advice.contains("ca = ")));
    parse(&[0xff], Path::new("/f")).expect_err("not UTF-8");
    parse(&vec![b'#'; MAX_BYTES + 1], Path::new("/f")).expect_err("too long");
}

#[test]
fn the_registrys_own_file_wins_over_the_default() {
    let dir = tempfile::tempdir().expect("directory");
    let write = |name: &str, text: &str| {
        std::fs::create_dir_all(dir.path().join(name)).expect("directory");
        std::fs::write(dir.path().join(name).join("hosts.toml"), text).expect("file");
    };
    assert!(find(dir.path(), "r.example:5000").expect("nothing").mirrors.is_empty());
    write("_default", "[host.\"https://d\"]");
    write("r.example:5000", "[host.\"https://a\"]\n[host.\"https://b\"]");
    assert_eq!(find(dir.path(), "r.example:5000").expect("own").mirrors.len(), 2);
    assert_eq!(find(dir.path(), "other").expect("default").mirrors.len(), 1);
}

#[test]
fn the_registry_is_known_by_host_port_and_scheme() {
    let is = |url: &str, scheme: &str, name: &str| is_at(&Url::parse(url).expect(url), scheme, name);
    for (url, scheme, name) in [
        ("https://r.example", "https", "r.example"),
        ("https://r.example", "https", "r.example:443"),
        ("https://r.example:443", "https", "r.example"),
        ("http://r.example", "http", "r.example:80"),
        ("https://r.example:5000", "https", "R.Example:5000"),
        ("https://R.EXAMPLE/v2", "https", "r.example"),
        ("https://[::1]:5000", "https", "[::1]:5000"),
    ] {
        assert!(is(url, scheme, name), "{url} is {name}");
    }
    for (url, scheme, name) in [
        ("https://other.example", "https", "r.example"),
        ("https://r.example.evil", "https", "r.example"),
        ("https://r.example:5000", "https", "r.example"),
        ("https://r.example", "https", "r.example:80"),
        ("https://r.example:80", "https", "r.example"),
        ("http://r.example", "https", "r.example"),
        ("http://r.example:443", "https", "r.example:443"),
        ("https://r.example:80", "http", "r.example"),
        ("http://r.example:443", "http", "r.example"),
        ("https://r.example", "https", ""),
    ] {
        assert!(!is(url, scheme, name), "{url} is not {name}");
    }
}

#[test]
fn a_mirror_of_another_scheme_or_host_is_not_the_registry() {
    let crate::image::Source::Registry(reference) = "R.example:443/x:1".parse().expect("reference") else {
        panic!("a registry")
    };
    let options = PullOptions::default();
    let maker = Maker { reference: &reference, options: &options, proxies: Proxies::default(), common: None };
    let home = |url: &str, mirror| maker.is_home(&Url::parse(url).expect(url), mirror);
    assert!(home("https://r.example", true) && home("https://r.example", false));
    assert!(!home("http://r.example:443", true) && !home("http://r.example", true));
    assert!(!home("http://r.example", false) && !home("https://other.example", false));
    assert!(home("http://r.example:443", false), "the file says so");
}

#[test]
fn docker_hub_is_known_by_all_its_names() {
    let crate::image::Source::Registry(reference) = "alpine".parse().expect("reference") else {
        panic!("a registry")
    };
    let options = PullOptions::default();
    let maker = Maker { reference: &reference, options: &options, proxies: Proxies::default(), common: None };
    let home = |url: &str| maker.is_home(&Url::parse(url).expect(url), false);
    for url in ["https://registry-1.docker.io", "https://index.docker.io", "https://docker.io"] {
        assert!(home(url), "{url}");
    }
    assert!(!home("https://docker.io.example") && !home("https://auth.docker.io"));
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text: String) {
        let _ = parse(text.as_bytes(), Path::new("/f"));
    }
}
