//! `GetFunctionLogs`: the requests of a function within some time, with what was logged of each.
//!
//! The log is read twice: for what requests there were, and for the lines of those that are answered. What the
//! documentation leaves open: requests of the last day unless told; `RetCode` is 1 of all failures, and 3 of
//! requests whose end the log does not have although their time is up; `Level` and `Source` are empty, as in the
//! documentation's sample; requests that run are neither errors nor successes to the filter.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::stream::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::attempts::{Line, Over, Part, Tries, Try};
use super::time::{SECONDS, local, seconds_of_local};
use super::{Fault, Names, find, parameters};
use crate::api::{Api, Target};
use crate::{Error, ErrorKind};

/// From the first to the last second that is asked for, at most; as much is looked through unless told.
const DAY: u64 = 86_400;

/// Of a list, unless told, and the largest sum of offset and limit.
const LIMIT: usize = 20;
const MAX_END: usize = 10_000;

/// Requests that are looked through at most.
const MAX_REQUESTS: usize = 100_000;

/// Bytes of a request's log at most, and of all that are answered.
const MAX_LOG_BYTES: usize = 64 << 10;
const MAX_LOGS_BYTES: usize = 16 << 20;

/// How long after its time limit a request may still be at its end.
const LATE: Duration = Duration::from_secs(60);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Wanted {
    #[serde(flatten)]
    names: Names,
    offset: Option<usize>,
    limit: Option<usize>,
    order: Option<String>,
    order_by: Option<String>,
    filter: Option<Filter>,
    function_request_id: Option<String>,
    start_time: Option<String>,
    end_time: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Filter {
    ret_code: Option<String>,
}

/// Which requests a filter lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passes {
    All,
    Failed,
    Succeeded,
    /// Those with one of these codes.
    Codes(&'static [u16]),
}

const FILTERS: [(&str, Passes); 6] = [
    ("", Passes::All),
    ("not0", Passes::Failed),
    ("is0", Passes::Succeeded),
    ("TimeLimitExceeded", Passes::Codes(&[433])),
    ("ResourceLimitExceeded", Passes::Codes(&[432, 434])),
    ("UserCodeException", Passes::Codes(&[439, 443])),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Start,
    Duration,
    Memory,
    /// All have the same: in the order of their times.
    Name,
}

const ORDERS_BY: [(&str, By); 5] = [
    ("", By::Start),
    ("start_time", By::Start),
    ("duration", By::Duration),
    ("mem_usage", By::Memory),
    ("function_name", By::Name),
];

/// A query that makes sense.
#[derive(Debug)]
struct Query {
    /// Seconds since 1970.
    first: u64,
    last: u64,
    request_id: Option<String>,
    passes: Passes,
    by: By,
    descending: bool,
    offset: usize,
    limit: usize,
}

/// A try of a request.
#[derive(Clone, Debug, PartialEq)]
struct Found {
    which: Try,
    started_ms: u64,
    over: Option<Over>,
}

/// What is shown of one.
#[derive(Debug, Default)]
struct Said {
    lines: VecDeque<String>,
    bytes: usize,
    answer: String,
}

/// The answer.
pub(super) async fn read(api: &Api, body: &[u8]) -> Result<Value, Fault> {
    let wanted: Wanted = parameters(body)?;
    let (function, target) = find(api, &wanted.names, "$LATEST")?;
    let now = SystemTime::now();
    let query = Query::of(&wanted, now)?;
    let mut found = requests(api, &target, &query).await?;
    // Longer than that no request runs.
    let lasts = function.longest() + LATE;
    found.retain(|found| query.passes.lets_pass(found, is_lost(found, now, lasts)));
    found.sort_by_key(|found| query.rank(found));
    if query.descending {
        found.reverse();
    }
    let page: Vec<&Found> = found.iter().skip(query.offset).take(query.limit).collect();
    let mut said = lines(api, &target, &query, &page).await?;
    let data: Vec<Value> = page
        .iter()
        .map(|found| {
            let said = said.remove(&found.which).unwrap_or_default();
            shown(&target.name, found, said, is_lost(found, now, lasts))
        })
        .collect();
    Ok(json!({
        "TotalCount": found.len(),
        "Data": data,
        "SearchContext": { "Offset": "", "Limit": 0, "Keyword": "", "Type": "" },
    }))
}

/// Whether it has no end and can have none any more: whoever ran it is gone.
fn is_lost(found: &Found, now: SystemTime, lasts: Duration) -> bool {
    found.over.is_none() && time_of(found) + lasts < now
}

fn time_of(found: &Found) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(found.started_ms)
}

impl Query {
    fn of(wanted: &Wanted, now: SystemTime) -> Result<Self, Fault> {
        let request_id = wanted.function_request_id.clone().filter(|id| !id.is_empty());
        let (first, last) = window(wanted, request_id.is_some(), now)?;
        let (offset, limit) = (wanted.offset.unwrap_or(0), wanted.limit.unwrap_or(LIMIT));
        if offset.saturating_add(limit) > MAX_END {
            let message = format!("Offset {offset} and Limit {limit} are more than {MAX_END} together");
            return Err(Fault::new("LimitExceeded.Offset", message));
        }
        let filter = wanted.filter.as_ref().and_then(|filter| filter.ret_code.as_deref());
        let order = one_of(wanted.order.as_deref(), &[("", true), ("desc", true), ("asc", false)]);
        Ok(Self {
            first,
            last,
            request_id,
            passes: one_of(filter, &FILTERS)
                .map_err(|why| invalid("InvalidParameterValue", "Filter.RetCode", &why))?,
            by: one_of(wanted.order_by.as_deref(), &ORDERS_BY)
                .map_err(|why| invalid("InvalidParameterValue.OrderBy", "OrderBy", &why))?,
            descending: order.map_err(|why| invalid("InvalidParameterValue.Order", "Order", &why))?,
            offset,
            limit,
        })
    }

    /// What an answer is in the order of; those of one time stay in the order in which they were found.
    fn rank(&self, found: &Found) -> (u64, u64) {
        let first = match self.by {
            By::Duration => found.over.map_or(0, |over| over.duration_ms),
            By::Memory => found.over.map_or(0, |over| over.memory_bytes),
            By::Start | By::Name => 0,
        };
        (first, found.started_ms)
    }

    fn has(&self, found: &Found) -> bool {
        (self.first..=self.last).contains(&(found.started_ms / 1000))
    }
}

impl Passes {
    fn lets_pass(self, found: &Found, lost: bool) -> bool {
        match self {
            Self::All => true,
            Self::Failed => lost || found.over.is_some_and(|over| over.code != 200),
            Self::Succeeded => found.over.is_some_and(|over| over.code == 200),
            Self::Codes(codes) => found.over.is_some_and(|over| codes.contains(&over.code)),
        }
    }
}

fn invalid(code: &'static str, name: &str, why: &str) -> Fault {
    Fault::new(code, format!("{name} {why}"))
}

/// One of some words, whatever their case; the empty one when there is none.
fn one_of<T: Copy>(given: Option<&str>, known: &[(&str, T)]) -> Result<T, String> {
    let given = given.unwrap_or_default();
    let found = known.iter().find(|(word, _)| word.eq_ignore_ascii_case(given));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).filter(|word| !word.is_empty()).collect();
        format!("'{}' is none of {}", given.escape_default(), words.join(", "))
    })
}

/// The first and the last second that are wanted.
fn window(wanted: &Wanted, one_request: bool, now: SystemTime) -> Result<(u64, u64), Fault> {
    let given = |text: &Option<String>, name: &str| {
        let text = text.as_deref().filter(|text| !text.is_empty());
        text.map(|text| seconds_of_local(text, name)).transpose()
    };
    let of_time = |fault: Fault| Fault::new("InvalidParameterValue.DateTime", fault.message);
    let start = given(&wanted.start_time, "StartTime").map_err(of_time)?;
    let end = given(&wanted.end_time, "EndTime").map_err(of_time)?;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (first, last) = match (start, end) {
        // Its time need not be known.
        (None, None) if one_request => return Ok((0, u64::MAX)),
        (None, None) => (now.saturating_sub(DAY), now),
        (Some(start), None) => (start, start + DAY),
        (None, Some(end)) => (end.saturating_sub(DAY), end),
        (Some(start), Some(end)) => (start, end),
    };
    if last < first {
        return Err(of_time(Fault::new("", "EndTime is before StartTime")));
    }
    if last - first > DAY {
        return Err(of_time(Fault::new("", "StartTime and EndTime are more than a day apart")));
    }
    Ok((first, last))
}

/// Gives each line of the log to `take`, as long as it takes them.
async fn each_line(
    api: &Api,
    target: &Target,
    query: &Query,
    mut take: impl FnMut(Try, Part<'_>),
) -> Result<(), Fault> {
    let since = (query.first > 0).then(|| UNIX_EPOCH + Duration::from_secs(query.first));
    let mut log =
        api.functions.log(target, since, query.request_id.clone()).await.map_err(|error| unread(&error))?;
    let mut tries = Tries::default();
    while let Some(part) = log.next().await {
        let part =
            part.map_err(|error| Fault::new("InternalError", format!("cannot read the log: {error}")))?;
        for line in part.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            // What is no line of a log is passed over, as everywhere.
            let Ok(line) = serde_json::from_slice::<Line<'_>>(line) else { continue };
            if let Some((which, part)) = tries.of(&line) {
                take(which, part);
            }
        }
        if tries.len() > MAX_REQUESTS {
            let message = format!("there are more than {MAX_REQUESTS} requests: ask for a shorter time");
            return Err(Fault::new("InvalidParameterValue.DateTime", message));
        }
    }
    Ok(())
}

fn unread(error: &Error) -> Fault {
    let message = match error.advice() {
        Some(advice) => format!("{}: {advice}", error.chain()),
        None => error.chain(),
    };
    match error.kind() {
        ErrorKind::NotFound => Fault::new("UnsupportedOperation", message),
        _ => Fault::new("InternalError", message),
    }
}

/// The requests of the time that is asked for, in the order of their log.
async fn requests(api: &Api, target: &Target, query: &Query) -> Result<Vec<Found>, Fault> {
    let mut all: Vec<Found> = Vec::new();
    let mut at: HashMap<Try, usize> = HashMap::new();
    each_line(api, target, query, |which, part| {
        let (started_ms, over) = match part {
            Part::Start { second, .. } => (second * 1000, None),
            Part::Over(over) => (over.started_ms, Some(over)),
            Part::Said(_) | Part::Answer { .. } => return,
        };
        match at.get(&which).and_then(|at| all.get_mut(*at)) {
            Some(found) => (found.started_ms, found.over) = (started_ms, over.or(found.over)),
            None => {
                at.insert(which.clone(), all.len());
                all.push(Found { which, started_ms, over });
            }
        }
    })
    .await?;
    all.retain(|found| query.has(found));
    Ok(all)
}

/// What is logged of some requests.
async fn lines(
    api: &Api,
    target: &Target,
    query: &Query,
    page: &[&Found],
) -> Result<HashMap<Try, Said>, Fault> {
    let mut said: HashMap<Try, Said> =
        page.iter().map(|found| (found.which.clone(), Said::default())).collect();
    if page.is_empty() {
        return Ok(said);
    }
    let most = MAX_LOG_BYTES.min(MAX_LOGS_BYTES / page.len());
    each_line(api, target, query, |which, part| {
        let Some(said) = said.get_mut(&which) else { return };
        match part {
            Part::Start { line, .. } | Part::Said(line) => said.add(line, most),
            Part::Answer { answer, line } => {
                answer.clone_into(&mut said.answer);
                said.add(line, most);
            }
            Part::Over(_) => {}
        }
    })
    .await?;
    Ok(said)
}

impl Said {
    /// The last ones are kept.
    fn add(&mut self, line: &str, most: usize) {
        self.bytes += line.len() + 1;
        self.lines.push_back(line.to_owned());
        while self.bytes > most {
            let Some(first) = self.lines.pop_front() else { return };
            self.bytes -= first.len() + 1;
        }
    }
}

fn shown(name: &str, found: &Found, said: Said, lost: bool) -> Value {
    let code = match found.over.map(|over| over.code) {
        Some(200) => 0,
        // Somebody ended it.
        Some(499) => 3,
        Some(_) => 1,
        None if lost => 3,
        None => 2,
    };
    let over =
        found.over.unwrap_or(Over { started_ms: 0, duration_ms: 0, memory_bytes: 0, code: 0, retries: 0 });
    json!({
        "FunctionName": name,
        "RetMsg": said.answer,
        "RequestId": found.which.id,
        "StartTime": local(time_of(found), SECONDS),
        "RetCode": code,
        "InvokeFinished": i32::from(found.over.is_some()),
        "Duration": over.duration_ms as f64,
        "BillDuration": over.duration_ms,
        "MemUsage": over.memory_bytes,
        "Log": Vec::from(said.lines).join("\n"),
        "Level": "",
        "Source": "",
        "RetryNum": over.retries,
    })
}

#[cfg(test)]
#[path = "logs_tests.rs"]
mod tests;
