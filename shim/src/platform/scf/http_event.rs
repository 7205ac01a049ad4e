//! HTTP requests as events, and the answers back: in the forms of function URLs and of API Gateway.
//!
//! Both are documented by examples. A function URL's event is API Gateway's without `requestContext`,
//! `isBase64Encoded` and the parameters that a gateway is configured for, and has the client's address in
//! a header; that `x-scf-request-domain` is there too was seen by users. Not documented, and chosen: a
//! name that comes several times has a list as value in `queryString`, and its values joined by `,` in
//! `headers`; a body that is not UTF-8 comes in base64, marked by `isBase64Encoded` in both forms.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use crate::platform::{HttpCall, HttpEvent, InvocationContext};
use crate::{base64, from_base64};

/// The gateway's id, made up.
const SERVICE_ID: &str = "service-00000000";

/// The environment of the gateway.
const STAGE: &str = "release";

/// Where a client is that did not come over TCP.
const LOOPBACK: &str = "127.0.0.1";

/// The event that a request becomes.
pub(super) fn event(form: HttpEvent, context: &InvocationContext<'_>, call: &HttpCall<'_>) -> Bytes {
    let client = context.client.map_or_else(|| LOOPBACK.to_owned(), |client| client.ip().to_string());
    let mut headers = headers(call.headers);
    let (body, encoded) = match std::str::from_utf8(call.body) {
        Ok(text) => (text.to_owned(), false),
        Err(_) => (base64(call.body), true),
    };
    let mut event = json!({
        "path": call.path,
        "httpMethod": call.method.as_str(),
        "queryString": query(call.query.unwrap_or_default()),
        "body": body,
    });
    match form {
        HttpEvent::Url => {
            headers.insert("x-scf-remote-addr".to_owned(), client.into());
            if let Some(domain) = headers.get("host").cloned() {
                headers.insert("x-scf-request-domain".to_owned(), domain);
            }
        }
        HttpEvent::Gateway => {
            event["requestContext"] = json!({
                "serviceId": SERVICE_ID,
                "path": call.path,
                "httpMethod": call.method.as_str(),
                "requestId": context.request_id,
                "identity": {},
                "sourceIp": client,
                "stage": STAGE,
            });
            // What a gateway is configured to hand on: this one has no configuration.
            for none in ["pathParameters", "queryStringParameters", "headerParameters"] {
                event[none] = json!({});
            }
            event["stageVariables"] = json!({ "stage": STAGE });
            event["isBase64Encoded"] = false.into();
        }
    }
    if encoded {
        event["isBase64Encoded"] = true.into();
    }
    event["headers"] = headers.into();
    event.to_string().into()
}

fn headers(all: &HeaderMap) -> Map<String, Value> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let joined = |name: &HeaderName| all.get_all(name).iter().map(text).collect::<Vec<_>>().join(",");
    all.keys().map(|name| (name.as_str().to_owned(), joined(name).into())).collect()
}

/// `a=1&b=2` with its escapes resolved.
fn query(text: &str) -> Map<String, Value> {
    let decoded = |part: &str| percent_decode_str(&part.replace('+', " ")).decode_utf8_lossy().into_owned();
    let mut found = Map::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = Value::from(decoded(value));
        match found.entry(decoded(name)) {
            serde_json::map::Entry::Vacant(place) => drop(place.insert(value)),
            serde_json::map::Entry::Occupied(mut place) => match place.get_mut() {
                Value::Array(values) => values.push(value),
                first => *first = vec![first.take(), value].into(),
            },
        }
    }
    found
}

/// The answer that a client gets for what the function answered.
///
/// # Errors
/// Why it cannot be one.
pub(super) fn answer(form: HttpEvent, bytes: &[u8]) -> Result<Response<Bytes>, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("it is not JSON: {error}"))?;
    match &value {
        Value::Object(fields) if fields.contains_key("statusCode") => integrated(fields),
        // The whole of it is the body then.
        _ if form == HttpEvent::Url => {
            let mut response = Response::new(Bytes::copy_from_slice(bytes));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            Ok(response)
        }
        Value::Object(_) => Err("statusCode is missing".to_owned()),
        _ => Err("it is no JSON object".to_owned()),
    }
}

/// From `{"isBase64Encoded", "statusCode", "headers", "body"}`.
fn integrated(fields: &Map<String, Value>) -> Result<Response<Bytes>, String> {
    let mut response = Response::new(body(fields)?);
    *response.status_mut() = status(&fields["statusCode"])?;
    match fields.get("headers") {
        None | Some(Value::Null) => {}
        Some(Value::Object(given)) => {
            for (name, value) in given {
                add(response.headers_mut(), name, value)?;
            }
        }
        Some(_) => return Err("headers is no object".to_owned()),
    }
    // It is the body's own.
    response.headers_mut().remove(CONTENT_LENGTH);
    response.headers_mut().remove(HOST);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().entry(CONTENT_TYPE).or_insert(json);
    Ok(response)
}

fn status(value: &Value) -> Result<StatusCode, String> {
    let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
    let status = number.and_then(|number| StatusCode::from_u16(number).ok());
    // An interim status answers nothing.
    status.filter(|status| !status.is_informational()).ok_or_else(|| "statusCode is no status".to_owned())
}

fn body(fields: &Map<String, Value>) -> Result<Bytes, String> {
    let text = match fields.get("body") {
        None | Some(Value::Null) => "",
        Some(Value::String(text)) => text,
        Some(_) => return Err("body is no text".to_owned()),
    };
    match fields.get("isBase64Encoded") {
        None | Some(Value::Null | Value::Bool(false)) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        Some(Value::Bool(true)) => {
            from_base64(text).map(Bytes::from).ok_or_else(|| "body is no base64".to_owned())
        }
        Some(_) => Err("isBase64Encoded is neither true nor false".to_owned()),
    }
}

/// A text, or a list of texts.
fn add(headers: &mut HeaderMap, name: &str, value: &Value) -> Result<(), String> {
    let name = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| "headers has a name that no header can have".to_owned())?;
    let invalid = || format!("the header {name} is neither a text nor a list of texts that a header can be");
    let one = |value: &Value| value.as_str().and_then(|text| HeaderValue::from_str(text).ok());
    let values = match value {
        Value::Array(values) => values.iter().map(one).collect::<Option<Vec<_>>>(),
        value => one(value).map(|value| vec![value]),
    };
    for value in values.ok_or_else(invalid)? {
        headers.append(&name, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::FunctionConfig;
    use crate::platform::{InvocationKind, scf, testing};

    fn made(form: HttpEvent, query: Option<&str>, headers: &HeaderMap, body: &[u8]) -> Value {
        let config = FunctionConfig::new("resize", scf());
        let mut context = testing::context(&config, InvocationKind::Event);
        context.client = Some(([111, 206, 96, 145], 4711).into());
        let call = HttpCall { method: &Method::POST, path: "/test/a%20b", query, headers, body };
        serde_json::from_slice(&event(form, &context, &call)).expect("JSON")
    }

    fn sent(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_function_url_makes_the_documented_event() {
        let headers = sent(&[("accept", "*/*"), ("host", "f.tencentscf.com"), ("x-a", "1"), ("x-a", "2")]);
        let event = made(HttpEvent::Url, Some("a=1&b=2"), &headers, br#"{"test":"hello world"}"#);
        let expected = json!({
            "body": "{\"test\":\"hello world\"}",
            "headers": {
                "accept": "*/*",
                "host": "f.tencentscf.com",
                "x-a": "1,2",
                "x-scf-remote-addr": "111.206.96.145",
                "x-scf-request-domain": "f.tencentscf.com",
            },
            "httpMethod": "POST",
            "path": "/test/a%20b",
            "queryString": { "a": "1", "b": "2" },
        });
        assert_eq!(event, expected);
    }

    #[test]
    fn a_gateway_makes_the_documented_event() {
        let event = made(HttpEvent::Gateway, Some("foo=bar"), &sent(&[("accept", "*/*")]), b"text");
        let expected = json!({
            "requestContext": {
                "serviceId": "service-00000000",
                "path": "/test/a%20b",
                "httpMethod": "POST",
                "requestId": "the-request",
                "identity": {},
                "sourceIp": "111.206.96.145",
                "stage": "release",
            },
            "headers": { "accept": "*/*" },
            "body": "text",
            "isBase64Encoded": false,
            "pathParameters": {},
            "queryStringParameters": {},
            "headerParameters": {},
            "stageVariables": { "stage": "release" },
            "path": "/test/a%20b",
            "queryString": { "foo": "bar" },
            "httpMethod": "POST",
        });
        assert_eq!(event, expected);
    }

    #[test]
    fn queries_are_decoded_and_nothing_of_them_is_lost() {
        let read = |text| Value::Object(query(text));
        assert_eq!(read("a=1&a=2&a=3&b"), json!({ "a": ["1", "2", "3"], "b": "" }));
        assert_eq!(read("%C3%A9=a+b%26&=x&&c=d=e"), json!({ "é": "a b&", "": "x", "c": "d=e" }));
        assert_eq!(read(""), json!({}));
    }

    #[test]
    fn a_body_that_is_no_text_comes_in_base64() {
        for form in [HttpEvent::Url, HttpEvent::Gateway] {
            let event = made(form, None, &HeaderMap::new(), &[0xff, 0]);
            assert_eq!((&event["body"], &event["isBase64Encoded"]), (&json!("/wA="), &json!(true)));
        }
    }

    #[test]
    fn an_integrated_answer_is_one_of_http() {
        let whole = json!({
            "isBase64Encoded": false, "statusCode": 201, "body": "<html>",
            "headers": { "Content-Type": "text/html", "Key": ["value1", "value2"], "Content-Length": "99" },
        });
        for form in [HttpEvent::Url, HttpEvent::Gateway] {
            let response = answer(form, whole.to_string().as_bytes()).expect("an answer");
            assert_eq!((response.status().as_u16(), &response.body()[..]), (201, &b"<html>"[..]));
            assert_eq!(response.headers()["content-type"], "text/html");
            assert_eq!(response.headers().get_all("key").iter().collect::<Vec<_>>(), ["value1", "value2"]);
            assert!(!response.headers().contains_key("content-length"), "it is the body's");
            let least = answer(form, br#"{"statusCode":204}"#).expect("an answer");
            assert_eq!((least.status().as_u16(), least.body().len()), (204, 0));
            let binary = br#"{"statusCode":200,"isBase64Encoded":true,"body":"/wA="}"#;
            assert_eq!(answer(form, binary).expect("an answer").body()[..], [0xff, 0]);
        }
    }

    #[test]
    fn other_json_is_the_body_of_a_function_urls_answer() {
        for text in [r#"{"message":"Hello, world!"}"#, r#""Hello, world!""#, "[1, 2]", "null"] {
            let response = answer(HttpEvent::Url, text.as_bytes()).expect("an answer");
            assert_eq!((response.status().as_u16(), &response.body()[..]), (200, text.as_bytes()));
            assert_eq!(response.headers()["content-type"], "application/json");
            answer(HttpEvent::Gateway, text.as_bytes()).expect_err("a gateway wants its form");
        }
    }

    #[test]
    fn malformed_answers_are_told_by_what_is_wrong() {
        for (text, why) in [
            ("", "not JSON"),
            ("Hello", "not JSON"),
            (r#"{"statusCode":"200"}"#, "statusCode"),
            (r#"{"statusCode":101}"#, "statusCode"),
            (r#"{"statusCode":70000}"#, "statusCode"),
            (r#"{"statusCode":200,"body":{}}"#, "body is no text"),
            (r#"{"statusCode":200,"body":"?","isBase64Encoded":true}"#, "no base64"),
            (r#"{"statusCode":200,"isBase64Encoded":"true"}"#, "isBase64Encoded"),
            (r#"{"statusCode":200,"headers":[]}"#, "headers is no object"),
            (r#"{"statusCode":200,"headers":{"a b":"1"}}"#, "a name"),
            (r#"{"statusCode":200,"headers":{"a":1}}"#, "header a"),
            (r#"{"statusCode":200,"headers":{"a":"1\r\nb: 2"}}"#, "header a"),
        ] {
            for form in [HttpEvent::Url, HttpEvent::Gateway] {
                let found = answer(form, text.as_bytes()).expect_err(text);
                assert!(found.contains(why), "{text}: {found}");
            }
        }
    }
}
