use std::time::UNIX_EPOCH;

use http::Request;

use super::*;

/// Signed by the code of the SDKs that are named, on the day that they say.
const KEY: &str = "LTAI-key the-secret-91bc";

fn keys() -> AccessKeys {
    AccessKeys::parse(KEY).expect("a key")
}

fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request").into_parts().0
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn keys_are_one_in_each_line_and_never_shown() {
    let keys = AccessKeys::parse("# a remark\n\n  id1\ts3cret-1  \nid2 s3cret-2\n").expect("keys");
    assert_eq!(keys.secret("id2").expect("known").expose(), "s3cret-2");
    assert!(!format!("{keys:?}").contains("s3cret"));
    assert!(AccessKeys::default().is_empty() && !keys.is_empty());
    for text in ["", "#", "id", "id a b", "id a\nid b"] {
        let error = AccessKeys::parse(text).expect_err(text);
        assert!(error.advice().is_some(), "{error}");
    }
}

/// By `fc2.auth.Auth.sign_request` of aliyun-fc2 2.5.2.
mod of_2016 {
    use super::*;

    const DATE: &str = "Wed, 25 Nov 2026 17:10:11 GMT";
    const NOW: u64 = 1_795_626_611;

    fn check(
        method: &str,
        uri: &str,
        signature: &str,
        change: impl Fn(&mut Vec<(&str, &str)>),
    ) -> Result<(), Denied> {
        let authorization = format!("LTAI-key:{signature}");
        let mut headers = vec![
            ("date", DATE),
            ("content-type", "application/json"),
            ("x-fc-log-type", "Tail"),
            ("x-fc-invocation-type", "Sync"),
        ];
        change(&mut headers);
        fc::check(&keys(), &authorization, &parts(method, uri, &headers), at(NOW))
    }

    const EVENT: (&str, &str) =
        ("/2016-08-15/services/s.1/functions/f/invocations", "GtVwBv+Cyw94R6xqpLuaHzW5E+tnupLLN3jpo47pGe0=");
    const PROXY: (&str, &str) =
        ("/2016-08-15/proxy/s/f/a%20b/c?b=2+3&a=1&a=%2F&e", "rRLv+PLJsPFaMyflqDsq38fT9D/KQ9e6NzGGXGPaQzA=");

    #[test]
    fn what_the_sdk_signs_is_taken() {
        check("POST", EVENT.0, EVENT.1, |_| ()).expect("an event");
        check("GET", PROXY.0, PROXY.1, |_| ()).expect("a path of the function");
    }

    #[test]
    fn whatever_is_changed_is_noticed() {
        let mismatch = Err(Denied::Mismatch);
        assert_eq!(check("PUT", EVENT.0, EVENT.1, |_| ()), mismatch);
        assert_eq!(
            check("POST", "/2016-08-15/services/s/functions/g/invocations", EVENT.1, |_| ()),
            mismatch
        );
        assert_eq!(
            check("GET", "/2016-08-15/proxy/s/f/a%20b/c?b=2+4&a=1&a=%2F&e", PROXY.1, |_| ()),
            mismatch
        );
        assert_eq!(check("POST", EVENT.0, EVENT.1, |h| h.push(("x-fc-async-task-id", "1"))), mismatch);
        assert_eq!(check("POST", EVENT.0, EVENT.1, |h| h[1].1 = "text/plain"), mismatch);
        assert_eq!(check("POST", EVENT.0, EVENT.1, |h| h[0].1 = "Wed, 25 Nov 2026 17:10:12 GMT"), mismatch);
        assert_eq!(check("POST", EVENT.0, "bm90IGl0", |_| ()), mismatch);
    }

    #[test]
    fn what_is_no_signature_is_told() {
        assert_eq!(check("POST", EVENT.0, "***", |_| ()), Err(Denied::Malformed));
        assert_eq!(check("POST", EVENT.0, EVENT.1, |h| h.truncate(0)), Err(Denied::MissingHeader("date")));
        assert_eq!(check("POST", EVENT.0, EVENT.1, |h| h[0].1 = "today"), Err(Denied::Malformed));
        let request = parts("POST", EVENT.0, &[("date", DATE)]);
        assert_eq!(
            fc::check(&keys(), "no-such:eA==", &request, at(NOW)),
            Err(Denied::UnknownKey("no-such".into()))
        );
        assert_eq!(fc::check(&keys(), "LTAI-key", &request, at(NOW)), Err(Denied::Malformed));
    }

    #[test]
    fn a_signature_is_good_for_fifteen_minutes() {
        let request = parts("POST", EVENT.0, &[("date", DATE)]);
        let check = |now| fc::check(&keys(), "LTAI-key:bm90IGl0", &request, at(now));
        assert_eq!(check(NOW + 901), Err(Denied::Expired));
        assert_eq!(check(NOW - 901), Err(Denied::Expired));
        assert_eq!(check(NOW + 899), Err(Denied::Mismatch), "its time is looked at first");
    }
}

/// By `alibabacloud_openapi_util.client.Client.get_authorization` 0.2.4.
mod acs {
    use super::*;

    const NOW: u64 = 1_698_315_752;
    const URI: &str = "/2023-03-30/functions/f/invocations?qualifier=LATEST&x=a%20b";
    const SIGNED: &str =
        "content-type;host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version";
    const SIGNATURE: &str = "031c3072341396d4667ea2574ea47346be4578a4a9cb4cea127f3a04644d1183";
    /// Of `{"a":1}`.
    const BODY: &str = "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862";

    fn headers() -> Vec<(&'static str, &'static str)> {
        vec![
            ("host", "127.0.0.1:18999"),
            ("content-type", "application/octet-stream"),
            ("x-acs-action", "InvokeFunction"),
            ("x-acs-content-sha256", BODY),
            ("x-acs-date", "2023-10-26T10:22:32Z"),
            ("x-acs-signature-nonce", "d410180a5abf7fe235dd9b74aca91fc0"),
            ("x-acs-version", "2023-03-30"),
            ("x-not-signed", "anything"),
        ]
    }

    fn check(uri: &str, signed: &str, headers: &[(&str, &str)]) -> Result<(), Denied> {
        let authorization = format!("Credential=LTAI-key,SignedHeaders={signed},Signature={SIGNATURE}");
        acs3::check(&keys(), &authorization, &parts("POST", uri, headers), at(NOW))
    }

    #[test]
    fn what_the_sdk_signs_is_taken() {
        check(URI, SIGNED, &headers()).expect("signed");
        let other_order = "/2023-03-30/functions/f/invocations?x=a+b&qualifier=LATEST";
        check(other_order, SIGNED, &headers()).expect("the same parameters");
    }

    #[test]
    fn whatever_is_changed_is_noticed() {
        assert_eq!(check(&URI.replace("/f/", "/g/"), SIGNED, &headers()), Err(Denied::Mismatch));
        assert_eq!(check(&URI.replace("LATEST", "1"), SIGNED, &headers()), Err(Denied::Mismatch));
        for index in 0..7 {
            let mut headers = headers();
            if headers[index].0 != "x-acs-date" {
                headers[index].1 = "other";
                assert_eq!(check(URI, SIGNED, &headers), Err(Denied::Mismatch), "{}", headers[index].0);
            }
        }
        let mut late = headers();
        late[4].1 = "2023-10-26T10:22:33Z";
        assert_eq!(check(URI, SIGNED, &late), Err(Denied::Mismatch));
    }

    #[test]
    fn hash_and_date_must_be_there_and_signed() {
        for name in ["x-acs-content-sha256", "x-acs-date"] {
            let unsigned: Vec<&str> = SIGNED.split(';').filter(|signed| *signed != name).collect();
            assert_eq!(check(URI, &unsigned.join(";"), &headers()), Err(Denied::Malformed), "{name}");
            let without: Vec<_> = headers().into_iter().filter(|(header, _)| *header != name).collect();
            assert!(
                matches!(check(URI, SIGNED, &without), Err(Denied::MissingHeader(missing)) if missing == name)
            );
        }
    }

    #[test]
    fn the_body_is_the_signed_one() {
        let request = parts("POST", URI, &headers());
        check_body(&keys(), &request.headers, b"{\"a\":1}").expect("the body");
        assert_eq!(check_body(&keys(), &request.headers, b"{\"a\":2}"), Err(Denied::Mismatch));
        check_body(&AccessKeys::default(), &request.headers, b"{\"a\":2}").expect("nothing is checked");
    }

    #[test]
    fn what_is_no_signature_is_told() {
        for authorization in [
            "",
            "Credential=LTAI-key",
            "Credential=LTAI-key,SignedHeaders=host,Signature=xyz",
            "Credential=LTAI-key,SignedHeaders=host,Signature=abc",
        ] {
            let checked = acs3::check(&keys(), authorization, &parts("POST", URI, &headers()), at(NOW));
            assert_eq!(checked, Err(Denied::Malformed), "{authorization}");
        }
        let mut late = headers();
        late[4].1 = "2023-10-26T10:38:32Z";
        assert_eq!(check(URI, SIGNED, &late), Err(Denied::Expired));
    }
}

/// By `tencentcloud.common.sign.Sign.sign_tc3` of tencentcloud-sdk-python-common 3.1.195.
mod tencent {
    use super::*;

    const NOW: u64 = 1_795_626_611;
    const SIGNATURE: &str = "c6a94dc48c63c02258a8a451d4a7fffb47d6ddf5e1736765ad835c553ca24aa9";
    const BODY: &[u8] = b"{\"FunctionName\":\"f\"}";

    fn headers(authorization: &str) -> Vec<(&str, &str)> {
        vec![
            ("authorization", authorization),
            ("host", "scf.tencentcloudapi.com:8080"),
            ("content-type", "application/json"),
            ("x-tc-timestamp", "1795626611"),
        ]
    }

    fn authorization(scope: &str, signature: &str) -> String {
        format!(
            "TC3-HMAC-SHA256 Credential=LTAI-key/{scope}, SignedHeaders=content-type;host, Signature={signature}"
        )
    }

    fn check(authorization: &str, body: &[u8], now: u64) -> Result<(), Denied> {
        tc3::check(&keys(), &parts("POST", "/", &headers(authorization)), body, at(now))
    }

    const SCOPE: &str = "2026-11-25/scf/tc3_request";

    #[test]
    fn what_the_sdks_sign_is_taken() {
        check(&authorization(SCOPE, SIGNATURE), BODY, NOW).expect("with the host's name alone");
        let with_port = "d2f9aa785d90805745bc25f1e0664342561f696d8e213680084a2682aeed747f";
        check(&authorization(SCOPE, with_port), BODY, NOW).expect("with the port");
    }

    #[test]
    fn whatever_is_changed_is_noticed() {
        assert_eq!(check(&authorization(SCOPE, SIGNATURE), b"{}", NOW), Err(Denied::Mismatch));
        let other = authorization("2026-11-24/scf/tc3_request", SIGNATURE);
        assert_eq!(check(&other, BODY, NOW), Err(Denied::Mismatch));
        let mut later = parts("POST", "/", &headers(&authorization(SCOPE, SIGNATURE)));
        later.headers.insert("x-tc-timestamp", http::HeaderValue::from_static("1795626612"));
        assert_eq!(tc3::check(&keys(), &later, BODY, at(NOW)), Err(Denied::Mismatch));
    }

    #[test]
    fn what_is_no_signature_is_told() {
        assert_eq!(check(&authorization(SCOPE, SIGNATURE), BODY, NOW + 1000), Err(Denied::Expired));
        for text in ["", "TC3-HMAC-SHA256", "TC3-HMAC-SHA256 Credential=LTAI-key, Signature=ab"] {
            assert_eq!(check(text, BODY, NOW), Err(Denied::Malformed), "{text}");
        }
        assert_eq!(
            check(&authorization("2026-11-25/scf/other", SIGNATURE), BODY, NOW),
            Err(Denied::Malformed)
        );
        let unknown = authorization(SCOPE, SIGNATURE).replace("LTAI-key", "AKID-other");
        assert_eq!(check(&unknown, BODY, NOW), Err(Denied::UnknownKey("AKID-other".into())));
        let missing = parts("POST", "/", &[("host", "h")]);
        assert_eq!(tc3::check(&keys(), &missing, BODY, at(NOW)), Err(Denied::MissingHeader("authorization")));
    }
}
