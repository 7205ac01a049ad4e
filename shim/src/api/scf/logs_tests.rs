use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream;

use super::*;
use crate::api::{ApiOptions, Function, Functions, LogLines, Missing};
use crate::platform::{rfc3339, scf};
use crate::proxy::body::Body;
use crate::{EventOutcome, FunctionConfig, InvokeOptions};

/// Nobody calls it.
struct Idle(FunctionConfig);

impl Function for Idle {
    fn config(&self) -> &FunctionConfig {
        &self.0
    }

    fn invoke(&self, _: Bytes, _: InvokeOptions) -> BoxFuture<'_, EventOutcome> {
        unreachable!("only its log is read")
    }

    fn forward(
        &self,
        _: Option<std::net::SocketAddr>,
        _: http::Request<Body>,
    ) -> BoxFuture<'static, http::Response<Body>> {
        unreachable!("only its log is read")
    }
}

/// What a log was asked for: since which second, and of which request.
type Asked = Arc<Mutex<Vec<(Option<u64>, Option<String>)>>>;

/// One function whose log is known.
struct Known {
    log: Vec<u8>,
    asked: Asked,
}

impl Functions for Known {
    fn find(&self, _: &Target) -> Result<Arc<dyn Function>, Missing> {
        Ok(Arc::new(Idle(FunctionConfig::new("f", scf()))))
    }

    fn log(
        &self,
        _: &Target,
        since: Option<SystemTime>,
        request_id: Option<String>,
    ) -> BoxFuture<'_, crate::Result<LogLines>> {
        let since = since.map(|since| since.duration_since(UNIX_EPOCH).expect("later").as_secs());
        self.asked.lock().expect("unlocked").push((since, request_id.clone()));
        // As a reader gives them: whole lines, those of the request alone.
        let is_it = |line: &&[u8]| {
            request_id.as_ref().is_none_or(|id| {
                serde_json::from_slice::<Value>(line).is_ok_and(|line| line["request_id"] == id.as_str())
            })
        };
        let lines: Vec<&[u8]> = self.log.split_inclusive(|byte| *byte == b'\n').filter(is_it).collect();
        let parts: Vec<_> = lines.chunks(3).map(|lines| Ok(Bytes::from(lines.concat()))).collect();
        async move { Ok(stream::iter(parts).boxed()) }.boxed()
    }
}

/// A second of today, so long ago.
fn ago(seconds: u64) -> SystemTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("later").as_secs();
    UNIX_EPOCH + Duration::from_secs(now - seconds)
}

struct Log(Vec<u8>);

impl Log {
    fn line(&mut self, time: SystemTime, stream: &str, id: Option<&str>, text: &str) {
        let line = json!({ "time": rfc3339(time), "stream": stream, "request_id": id, "line": text });
        self.0.extend(format!("{line}\n").into_bytes());
    }

    fn start(&mut self, time: SystemTime, id: &str) {
        self.line(time, "platform", Some(id), &format!("START RequestId:{id}"));
        self.line(time, "stdout", Some(id), &format!("{id} says"));
    }

    fn end(&mut self, time: SystemTime, id: &str, code: u16, ms: u64, retries: u32) {
        let told = match code {
            200 => format!("Response RequestId:{id} RetMsg:\"ok\""),
            _ => format!(r#"ERROR RequestId:{id} Result:{{"statusCode":{code}}}"#),
        };
        self.line(time, "platform", Some(id), &told);
        let start = time.duration_since(UNIX_EPOCH).expect("later").as_millis() as u64;
        let record = json!({
            "SCF_StartTime": start, "SCF_Duration": ms, "SCF_MemUsage": ms as f64,
            "SCF_StatusCode": code, "SCF_RetryNum": retries,
        });
        self.line(time, "requests", Some(id), &record.to_string());
    }

    /// Requests of all kinds.
    fn full() -> Self {
        let mut log = Self(Vec::new());
        log.line(ago(3000), "stdout", None, "of nobody");
        for (seconds, id, code, ms) in
            [(2000, "good", 200, 5), (1000, "late", 433, 3000), (900, "bad", 443, 9), (800, "ended", 499, 7)]
        {
            log.start(ago(seconds), id);
            log.end(ago(seconds), id, code, ms, 0);
        }
        log.0.extend(b"no line of a log\n");
        log.start(ago(700), "again");
        log.end(ago(700), "again", 434, 1, 0);
        log.start(ago(640), "again");
        log.end(ago(640), "again", 200, 2, 1);
        log.start(ago(500), "lost");
        log.start(ago(1), "runs");
        log
    }
}

fn api(log: Vec<u8>) -> (Arc<Api>, Asked) {
    let asked = Asked::default();
    let known = Known { log, asked: Arc::clone(&asked) };
    (Api::new(Arc::new(known), ApiOptions::default()), asked)
}

async fn ask(mut parameters: Value) -> Result<Value, Fault> {
    parameters["FunctionName"] = "f".into();
    read(&api(Log::full().0).0, parameters.to_string().as_bytes()).await
}

/// The ids of an answer and how many there were in all.
async fn ids(parameters: Value) -> (Vec<String>, u64) {
    let answer = ask(parameters).await.expect("an answer");
    let data = answer["Data"].as_array().expect("a list").clone();
    let ids = data.iter().map(|one| one["RequestId"].as_str().expect("an id").to_owned());
    (ids.collect(), answer["TotalCount"].as_u64().expect("a number"))
}

#[tokio::test]
async fn requests_have_the_documented_fields() {
    let answer = ask(json!({ "FunctionRequestId": "good" })).await.expect("an answer");
    assert_eq!(
        answer["Data"],
        json!([{
            "FunctionName": "f", "RetMsg": "\"ok\"", "RequestId": "good", "StartTime": local(ago(2000), SECONDS),
            "RetCode": 0, "InvokeFinished": 1, "Duration": 5.0, "BillDuration": 5, "MemUsage": 5 << 20,
            "Log": "START RequestId:good\ngood says\nResponse RequestId:good RetMsg:\"ok\"",
            "Level": "", "Source": "", "RetryNum": 0,
        }])
    );
    assert_eq!(answer["TotalCount"], 1);
    let late = ask(json!({ "FunctionRequestId": "late" })).await.expect("an answer");
    assert_eq!(
        (&late["Data"][0]["RetCode"], &late["Data"][0]["RetMsg"]),
        (&json!(1), &json!(r#"{"statusCode":433}"#))
    );
    // Ended from outside, without an end, and before its end.
    for (id, code, over) in [("ended", 3, 1), ("lost", 3, 0), ("runs", 2, 0)] {
        let answer = ask(json!({ "FunctionRequestId": id })).await.expect("an answer");
        let one = &answer["Data"][0];
        assert_eq!((&one["RetCode"], &one["InvokeFinished"]), (&json!(code), &json!(over)), "{id}");
    }
    // Each try is one of its own, with its own lines.
    let again = ask(json!({ "FunctionRequestId": "again", "Order": "asc" })).await.expect("an answer");
    let of = |at: usize, field: &str| again["Data"][at][field].clone();
    assert_eq!((of(0, "RetCode"), of(0, "RetryNum")), (json!(1), json!(0)));
    assert_eq!((of(1, "RetCode"), of(1, "RetryNum")), (json!(0), json!(1)));
    assert_eq!(of(1, "Log").as_str().map(|log| log.matches("START").count()), Some(1));
    assert_eq!(ids(json!({ "FunctionRequestId": "no-such" })).await, (vec![], 0));
}

#[tokio::test]
async fn filters_orders_and_pages_are_those_of_the_documentation() {
    let all = ["runs", "lost", "again", "again", "ended", "bad", "late", "good"];
    assert_eq!(ids(json!({})).await, (all.map(str::to_owned).to_vec(), 8));
    let only = |code: &str| json!({ "Filter": { "RetCode": code } });
    assert_eq!(ids(only("is0")).await.0, ["again", "good"]);
    assert_eq!(ids(only("not0")).await.0, ["lost", "again", "ended", "bad", "late"]);
    assert_eq!(ids(only("TimeLimitExceeded")).await, (vec!["late".to_owned()], 1));
    assert_eq!(ids(only("ResourceLimitExceeded")).await.0, ["again"]);
    assert_eq!(ids(only("UserCodeException")).await.0, ["bad"]);
    let (page, count) =
        ids(json!({ "Order": "asc", "OrderBy": "start_time", "Offset": 1, "Limit": 2 })).await;
    assert_eq!((page, count), (vec!["late".to_owned(), "bad".to_owned()], 8));
    assert_eq!(ids(json!({ "OrderBy": "duration", "Limit": 2 })).await.0, ["late", "bad"]);
    assert_eq!(ids(json!({ "OrderBy": "mem_usage", "Limit": 1 })).await.0, ["late"]);
    assert_eq!(ids(json!({ "Offset": 8 })).await, (vec![], 8));
    let at = |seconds: u64| local(ago(seconds), SECONDS);
    let between = json!({ "StartTime": at(1000), "EndTime": at(850) });
    assert_eq!(ids(between).await.0, ["bad", "late"]);
    assert_eq!(ids(json!({ "EndTime": at(1500) })).await.0, ["good"]);
    assert_eq!(ids(json!({ "StartTime": at(300), "FunctionRequestId": "good" })).await.0, [""; 0]);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let code = async |parameters: Value| ask(parameters).await.expect_err("refused").code;
    let time = |start: &str, end: &str| json!({ "StartTime": start, "EndTime": end });
    let of_time = "InvalidParameterValue.DateTime";
    assert_eq!(code(time("2026-01-01", "2026-01-02 00:00:00")).await, of_time);
    assert_eq!(code(time("2026-01-02 00:00:00", "2026-01-01 23:59:59")).await, of_time);
    assert_eq!(code(time("2026-01-01 00:00:00", "2026-01-02 00:00:01")).await, of_time);
    ask(time("2026-01-01 00:00:00", "2026-01-02 00:00:00")).await.expect("a day");
    assert_eq!(code(json!({ "Offset": 9_990, "Limit": 11 })).await, "LimitExceeded.Offset");
    assert_eq!(code(json!({ "Offset": u64::MAX })).await, "LimitExceeded.Offset");
    assert_eq!(code(json!({ "Offset": -1 })).await, "InvalidParameter");
    assert_eq!(code(json!({ "Order": "up" })).await, "InvalidParameterValue.Order");
    assert_eq!(code(json!({ "OrderBy": "colour" })).await, "InvalidParameterValue.OrderBy");
    assert_eq!(code(json!({ "Filter": { "RetCode": "7" } })).await, "InvalidParameterValue");
    let nameless = read(&api(Vec::new()).0, b"{}").await.expect_err("refused");
    assert_eq!(nameless.code, "MissingParameter");
}

#[tokio::test]
async fn a_log_is_read_from_where_it_may_matter() {
    let (api, asked) = api(Log::full().0);
    let body = json!({ "FunctionName": "f", "StartTime": "2026-01-01 08:00:00" }).to_string();
    read(&api, body.as_bytes()).await.expect("an answer");
    read(&api, br#"{"FunctionName":"f","FunctionRequestId":"good"}"#).await.expect("an answer");
    let good = (None, Some("good".to_owned()));
    // Twice where there is something to show.
    let expected = [(Some(1_767_225_600), None), good.clone(), good];
    assert_eq!(*asked.lock().expect("unlocked"), expected);
}

#[tokio::test]
async fn the_log_of_a_request_and_of_all_is_bounded() {
    let mut log = Log(Vec::new());
    for number in 0..3 {
        let id = format!("r{number}");
        log.start(ago(100), &id);
        for line in 0..1_000 {
            log.line(ago(100), "stdout", Some(&id), &format!("{line:0>200}"));
        }
        log.end(ago(100), &id, 200, 1, 0);
    }
    let (api, _) = api(log.0);
    let answer = read(&api, br#"{"FunctionName":"f"}"#).await.expect("an answer");
    let shown = answer["Data"][0]["Log"].as_str().expect("a text");
    assert!(shown.len() <= MAX_LOG_BYTES && shown.len() > MAX_LOG_BYTES - 300, "{}", shown.len());
    assert!(shown.ends_with("RetMsg:\"ok\""), "the end is kept");
}

#[tokio::test]
async fn where_no_logs_are_kept_that_is_told() {
    let function: Arc<dyn Function> = Arc::new(Idle(FunctionConfig::new("f", scf())));
    let api = Api::new(Arc::new(crate::api::One::new(function)), ApiOptions::default());
    let fault = read(&api, br#"{"FunctionName":"f"}"#).await.expect_err("refused");
    assert_eq!(fault.code, "UnsupportedOperation");
    assert!(fault.message.contains("no logs are kept here"), "{}", fault.message);
}
