//! The requests of a function as its log has them: which lines are of which try of which request.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;

use super::time::seconds;

/// A line of a function's log.
#[derive(Debug, Deserialize)]
pub(super) struct Line<'a> {
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    request_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    line: Cow<'a, str>,
}

/// What a record of a request says of it.
#[derive(Debug, Deserialize)]
struct Record {
    #[serde(rename = "SCF_StartTime")]
    start_ms: u64,
    #[serde(rename = "SCF_Duration")]
    duration_ms: u64,
    #[serde(rename = "SCF_MemUsage")]
    memory_mb: f64,
    #[serde(rename = "SCF_StatusCode")]
    code: u16,
    #[serde(rename = "SCF_RetryNum")]
    retries: u32,
}

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Over {
    pub(super) started_ms: u64,
    pub(super) duration_ms: u64,
    pub(super) memory_bytes: u64,
    pub(super) code: u16,
    pub(super) retries: u32,
}

/// What a line is of its try.
#[derive(Debug, PartialEq)]
pub(super) enum Part<'a> {
    /// It began; seconds since 1970.
    Start { second: u64, line: &'a str },
    /// A line of the log.
    Said(&'a str),
    /// What the function answered, or the platform in its place, and the line that tells of it.
    Answer { answer: &'a str, line: &'a str },
    /// It is over.
    Over(Over),
}

/// Which try of a request: its number, from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Try {
    pub(super) id: String,
    pub(super) number: u32,
}

/// Tells the tries of requests apart, line by line.
#[derive(Debug, Default)]
pub(super) struct Tries(HashMap<String, Latest>);

#[derive(Debug, Default)]
struct Latest {
    number: u32,
    started: bool,
    over: bool,
}

impl Tries {
    /// How many requests there were.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What a line is part of; `None` of lines that are of no request, and of what is no line.
    pub(super) fn of<'a>(&mut self, line: &'a Line<'_>) -> Option<(Try, Part<'a>)> {
        let id = line.request_id.as_deref()?;
        let part = part(line)?;
        let starts = matches!(part, Part::Start { .. });
        let latest = match self.0.get_mut(id) {
            Some(latest) => {
                // What was said before its start line is of the same try.
                if starts && (latest.started || latest.over) {
                    *latest = Latest { number: latest.number + 1, ..Latest::default() };
                }
                latest
            }
            None => self.0.entry(id.to_owned()).or_default(),
        };
        latest.started |= starts;
        latest.over |= matches!(part, Part::Over(_));
        Some((Try { id: id.to_owned(), number: latest.number }, part))
    }
}

fn part<'a>(line: &'a Line<'_>) -> Option<Part<'a>> {
    let text = &*line.line;
    match &*line.stream {
        "stdout" | "stderr" => Some(Part::Said(text)),
        "requests" => {
            let record: Record = serde_json::from_str(text).ok()?;
            Some(Part::Over(Over {
                started_ms: record.start_ms,
                duration_ms: record.duration_ms,
                memory_bytes: (record.memory_mb.max(0.0) * 1024.0 * 1024.0).round() as u64,
                code: record.code,
                retries: record.retries,
            }))
        }
        "platform" if text.starts_with("START RequestId") => {
            Some(Part::Start { second: seconds(&line.time).unwrap_or_default(), line: text })
        }
        "platform" => Some(match answer(text) {
            Some(answer) => Part::Answer { answer, line: text },
            None => Part::Said(text),
        }),
        _ => None,
    }
}

/// What is behind the words of a line that tells an answer.
fn answer(text: &str) -> Option<&str> {
    let behind = |begin: &str, word: &str| {
        let (_, rest) = text.strip_prefix(begin)?.split_once(word)?;
        Some(rest)
    };
    behind("Response RequestId:", " RetMsg:").or_else(|| behind("ERROR RequestId:", " Result:"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(code: u16, retries: u32) -> String {
        json!({
            "SCF_FunctionName": "f", "SCF_StartTime": 1_700_000_000_250_u64, "SCF_Duration": 12,
            "SCF_MemUsage": 29.734375, "SCF_StatusCode": code, "SCF_RetryNum": retries,
        })
        .to_string()
    }

    /// What each line is: the request's number, and what it is of it.
    fn told(lines: &[(&str, Option<&str>, String)]) -> Vec<Option<(u32, String)>> {
        let mut tries = Tries::default();
        let of = |(stream, id, text): &(&str, Option<&str>, String)| {
            let line = json!({
                "time": "2017-05-16T12:00:00.5Z", "instance": "i", "stream": stream, "request_id": id, "line": text,
            });
            let line = line.to_string();
            let line: Line<'_> = serde_json::from_str(&line).expect("a line");
            tries.of(&line).map(|(which, part)| (which.number, format!("{part:?}")))
        };
        lines.iter().map(of).collect()
    }

    #[test]
    fn lines_are_those_of_their_try() {
        let lines = [
            ("stdout", Some("a"), "early".to_owned()),
            ("platform", Some("a"), "START RequestId:a".to_owned()),
            ("stderr", Some("a"), "said".to_owned()),
            ("platform", Some("b"), "START RequestId:b".to_owned()),
            ("platform", Some("a"), "ERROR RequestId:a Result:{\"errorCode\":-1}".to_owned()),
            ("requests", Some("a"), record(433, 0)),
            ("platform", Some("a"), "START RequestId:a".to_owned()),
            ("platform", Some("a"), "Response RequestId:a RetMsg:\"x RetMsg:y\"".to_owned()),
            ("requests", Some("a"), record(200, 1)),
            ("stdout", Some("a"), "late".to_owned()),
            ("stdout", None, "of nobody".to_owned()),
            ("events", Some("a"), "{}".to_owned()),
            ("requests", Some("a"), "no record".to_owned()),
        ];
        let told = told(&lines);
        let number = |at: usize| told[at].as_ref().map(|(number, _)| *number);
        assert_eq!([number(0), number(1), number(2), number(4), number(5)], [Some(0); 5]);
        assert_eq!([number(6), number(7), number(8), number(9)], [Some(1); 4]);
        assert_eq!((number(3), &told[10..]), (Some(0), &[None, None, None][..]));
        let part = |at: usize| told[at].as_ref().expect("a part").1.clone();
        assert!(part(1).contains("second: 1494936000"), "{}", part(1));
        assert!(part(4).contains(r#"answer: "{\"errorCode\":-1}""#), "{}", part(4));
        assert!(part(7).contains(r#"answer: "\"x RetMsg:y\"""#), "{}", part(7));
        assert!(part(8).contains("memory_bytes: 31178752, code: 200, retries: 1"), "{}", part(8));
    }
}
