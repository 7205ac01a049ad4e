//! Asking what has become of requests, and ending asynchronous ones: `GetRequestStatus`,
//! `GetAsyncEventStatus`, `ListAsyncEvents` and `TerminateAsyncEvent`.
//!
//! Texts of errors are not documented and are ours.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};

use super::time::{MICROSECONDS, SECONDS, local, moment};
use super::{Fault, Names, find, lossy, parameters, required};
use crate::api::states::{NotEnded, State, Status};
use crate::api::{Api, Target};

/// How far back `GetRequestStatus` looks unless it is told.
const LOOK_BACK: Duration = Duration::from_secs(15 * 60);

/// Of a list, unless told and at most.
const LIMIT: usize = 20;
const MAX_LIMIT: usize = 100;

/// How events came that were asked for by the API; the documentation names none of this kind.
const INVOKE_TYPE: &str = "cloudapi";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OneRequest {
    #[serde(flatten)]
    names: Names,
    function_request_id: Option<String>,
    start_time: Option<String>,
    end_time: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OneEvent {
    #[serde(flatten)]
    names: Names,
    invoke_request_id: Option<String>,
    grace_shutdown: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Interval {
    start: String,
    end: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Wanted {
    #[serde(flatten)]
    names: Names,
    invoke_type: Option<Vec<String>>,
    status: Option<Vec<String>>,
    start_time_interval: Option<Interval>,
    end_time_interval: Option<Interval>,
    order: Option<String>,
    orderby: Option<String>,
    offset: Option<usize>,
    limit: Option<usize>,
    invoke_request_id: Option<String>,
}

impl Target {
    /// Whether a request was one of this function.
    fn is_of(&self, state: &State) -> bool {
        self.namespace.as_ref() == Some(&state.namespace) && self.name == state.function
    }
}

/// `GetRequestStatus`: any request of a function, within some time.
pub(super) fn request_status(api: &Api, body: &[u8]) -> Result<Value, Fault> {
    let asked: OneRequest = parameters(body)?;
    let id = required(&asked.function_request_id, "FunctionRequestId")?;
    let target = find(api, &asked.names, "$LATEST")?.1;
    let now = SystemTime::now();
    let (first, last) = match (&asked.start_time, &asked.end_time) {
        (Some(start), Some(end)) => {
            (moment(start, "StartTime")?.to_owned(), moment(end, "EndTime")?.to_owned())
        }
        (Some(_), None) => {
            return Err(Fault::new("MissingParameter", "the parameter EndTime is missing beside StartTime"));
        }
        (None, end) => {
            let end = end.as_deref().map(|end| moment(end, "EndTime")).transpose()?;
            let last = end.map_or_else(|| local(now, SECONDS), str::to_owned);
            (local(now - LOOK_BACK, SECONDS), last)
        }
    };
    if last < first {
        return Err(Fault::new("InvalidParameterValue", format!("EndTime {last} is before {first}")));
    }
    let state = api.queue.states().get(id).filter(|state| target.is_of(state));
    let state = state.filter(|state| (first..=last).contains(&local(state.started, SECONDS)));
    let data: Vec<Value> = state.iter().map(of_request).collect();
    Ok(json!({ "TotalCount": data.len(), "Data": data }))
}

fn of_request(state: &State) -> Value {
    let code = match state.status {
        Status::Finished => 0,
        Status::Running => 1,
        Status::Aborted | Status::Failed => -1,
    };
    json!({
        "FunctionName": state.function,
        "RetMsg": lossy(&state.answer),
        "RequestId": state.id,
        "StartTime": local(state.started, SECONDS),
        "RetCode": code,
        "Duration": state.duration.as_micros() as f64 / 1000.0,
        "MemUsage": state.memory_peak_bytes as f64 / (1024.0 * 1024.0),
        "RetryNum": state.retries,
    })
}

/// `GetAsyncEventStatus`.
pub(super) fn event_status(api: &Api, body: &[u8]) -> Result<Value, Fault> {
    let asked: OneEvent = parameters(body)?;
    let state = event(api, required(&asked.invoke_request_id, "InvokeRequestId")?)?;
    Ok(json!({ "Result": {
        "Status": name(state.status),
        "StatusCode": state.code,
        "InvokeRequestId": state.id,
    } }))
}

fn event(api: &Api, id: &str) -> Result<State, Fault> {
    let known = api.queue.states().get(id).filter(|state| state.asynchronous);
    known.ok_or_else(|| unknown(id))
}

fn unknown(id: &str) -> Fault {
    let shown = id.escape_default();
    Fault::new("ResourceNotFound.AsyncEvent", format!("no asynchronous event has the request id '{shown}'"))
}

/// `TerminateAsyncEvent`: ends it, or sends its instance SIGTERM.
pub(super) fn terminate(api: &Api, body: &[u8]) -> Result<Value, Fault> {
    let asked: OneEvent = parameters(body)?;
    let id = required(&asked.invoke_request_id, "InvokeRequestId")?;
    let target = find(api, &asked.names, "$LATEST")?.1;
    let state = event(api, id)?;
    if !target.is_of(&state) {
        return Err(unknown(id));
    }
    api.queue.states().end(&state, asked.grace_shutdown.unwrap_or_default()).map_err(|not| match not {
        NotEnded::Unknown => unknown(id),
        NotEnded::OverAlready => {
            Fault::new("FailedOperation.AsyncEventStatus", format!("the event '{id}' has ended already"))
        }
    })?;
    Ok(json!({}))
}

/// `ListAsyncEvents`: those of a function that fit.
pub(super) fn list(api: &Api, body: &[u8]) -> Result<Value, Fault> {
    let wanted: Wanted = parameters(body)?;
    // A version is one more of what must fit, and need not be there.
    let names = Names { qualifier: None, ..wanted.names.clone() };
    let (_, target) = find(api, &names, "$LATEST")?;
    let started = interval(wanted.start_time_interval.as_ref(), "StartTimeInterval")?;
    let ended = interval(wanted.end_time_interval.as_ref(), "EndTimeInterval")?;
    let descending = one_of(wanted.order.as_deref(), "Order", ["DESC", "ASC"])? == "DESC";
    let by_start = one_of(wanted.orderby.as_deref(), "Orderby", ["StartTime", "EndTime"])? == "StartTime";
    let any = |list: &Option<Vec<String>>, has: &str| {
        list.as_ref().is_none_or(|list| list.iter().any(|one| one == has))
    };
    let fits = |state: &State| {
        state.asynchronous
            && target.is_of(state)
            && wanted.names.qualifier.as_ref().is_none_or(|qualifier| *qualifier == state.qualifier)
            && wanted.invoke_request_id.as_ref().is_none_or(|id| *id == state.id)
            && any(&wanted.status, name(state.status))
            && any(&wanted.invoke_type, INVOKE_TYPE)
            && within(started, Some(state.started))
            && within(ended, state.ended)
    };
    let mut found = api.queue.states().all(fits);
    found.sort_by_key(|state| (if by_start { Some(state.started) } else { state.ended }, state.started));
    if descending {
        found.reverse();
    }
    let limit = wanted.limit.unwrap_or(LIMIT);
    if limit > MAX_LIMIT {
        return Err(Fault::new("InvalidParameterValue", format!("Limit {limit} is more than {MAX_LIMIT}")));
    }
    let page: Vec<Value> = found.iter().skip(wanted.offset.unwrap_or(0)).take(limit).map(of_event).collect();
    Ok(json!({ "TotalCount": found.len(), "EventList": page }))
}

fn of_event(state: &State) -> Value {
    json!({
        "InvokeRequestId": state.id,
        "InvokeType": INVOKE_TYPE,
        "Qualifier": state.qualifier,
        "Status": name(state.status),
        "StartTime": local(state.started, MICROSECONDS),
        "EndTime": state.ended.map(|ended| local(ended, MICROSECONDS)).unwrap_or_default(),
    })
}

fn name(status: Status) -> &'static str {
    match status {
        Status::Running => "RUNNING",
        Status::Finished => "FINISHED",
        Status::Aborted => "ABORTED",
        Status::Failed => "FAILED",
    }
}

/// One of two, the first unless told.
fn one_of<'a>(given: Option<&str>, name: &str, known: [&'a str; 2]) -> Result<&'a str, Fault> {
    let Some(given) = given.filter(|given| !given.is_empty()) else { return Ok(known[0]) };
    known.into_iter().find(|known| *known == given).ok_or_else(|| {
        let shown = given.escape_default();
        Fault::new(
            "InvalidParameterValue",
            format!("{name} '{shown}' is neither {} nor {}", known[0], known[1]),
        )
    })
}

/// Whether a time is in an interval without its end.
fn within(interval: Option<(&str, &str)>, time: Option<SystemTime>) -> bool {
    let Some((first, end)) = interval else { return true };
    time.is_some_and(|time| (first..end).contains(&local(time, SECONDS).as_str()))
}

fn interval<'a>(given: Option<&'a Interval>, name: &str) -> Result<Option<(&'a str, &'a str)>, Fault> {
    given.map(|given| Ok((moment(&given.start, name)?, moment(&given.end, name)?))).transpose()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn an_interval_has_its_beginning_and_not_its_end() {
        let time = UNIX_EPOCH + Duration::new(1_494_936_000, 123_456_789);
        let interval = Some(("2017-05-16 20:00:00", "2017-05-16 20:00:01"));
        assert!(within(interval, Some(time)) && !within(interval, Some(time + Duration::from_secs(1))));
        assert!(!within(interval, None) && within(None, None));
    }
}
