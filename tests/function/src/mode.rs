//! What the function does from its start, chosen by its arguments or by `FUNCTION_MODE`.
//!
//! ```text
//! function                      serves
//! function exit CODE [TEXT…]    writes TEXT to standard error and exits with CODE
//! function hang [LINES]         writes LINES lines and never listens
//! function oom                  takes memory until there is none, before it listens
//! function listen-local         listens on 127.0.0.1 only
//! function late MS              listens after MS milliseconds
//! function log LINES [MILLIS]   writes LINES lines, then (MILLIS later) serves
//! function garbage              listens, and answers with what is no HTTP
//! function deaf                 listens until the first connection has come, and never again
//! function idle                 does nothing until it is killed
//! function job                  does what the event in its environment says, without a server
//! ```

use std::time::Duration;

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Serve HTTP.
    Serve {
        /// On 127.0.0.1 instead of 0.0.0.0.
        local: bool,
        /// Wait before listening.
        delay: Duration,
        /// Lines to write before.
        lines: u32,
        /// Whether to listen at all.
        listen: bool,
    },
    /// Exit at once.
    Exit {
        /// Exit code.
        code: u8,
        /// Text for standard error.
        text: String,
    },
    /// Answer whatever comes with what is no HTTP.
    Garbage,
    /// Take one connection, and none after it.
    Deaf,
    /// Take all memory.
    Oom,
    /// Do nothing until killed.
    Idle,
    /// Work on the event in the environment.
    Job,
}

impl Mode {
    /// From the arguments; from `FUNCTION_MODE`, split at white space, when there are none.
    pub(crate) fn from_process() -> Result<Self, String> {
        let mut words: Vec<String> = std::env::args().skip(1).collect();
        if words.is_empty() {
            let variable = std::env::var("FUNCTION_MODE").unwrap_or_default();
            words = variable.split_whitespace().map(str::to_owned).collect();
        }
        Self::parse(&words)
    }

    fn parse(words: &[String]) -> Result<Self, String> {
        let serve = |local, millis, lines, listen| {
            Ok(Self::Serve { local, delay: Duration::from_millis(millis), lines, listen })
        };
        let Some((mode, rest)) = words.split_first() else {
            return serve(false, 0, 0, true);
        };
        match mode.as_str() {
            "serve" => serve(false, 0, 0, true),
            "exit" => Ok(Self::Exit { code: number(rest)?, text: rest[1..].join(" ") }),
            "hang" => serve(false, 0, if rest.is_empty() { 0 } else { number(rest)? }, false),
            "oom" => Ok(Self::Oom),
            "listen-local" => serve(true, 0, 0, true),
            "late" => serve(false, number(rest)?, 0, true),
            "log" => serve(false, if rest.len() > 1 { number(&rest[1..])? } else { 0 }, number(rest)?, true),
            "garbage" => Ok(Self::Garbage),
            "deaf" => Ok(Self::Deaf),
            "idle" => Ok(Self::Idle),
            "job" => Ok(Self::Job),
            other => Err(format!("unknown mode '{other}'")),
        }
    }
}

fn number<T: std::str::FromStr>(words: &[String]) -> Result<T, String> {
    let word = words.first().ok_or("a number is missing after the mode")?;
    word.parse().map_err(|_| format!("'{word}' is not a number in range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Mode, String> {
        Mode::parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn nothing_means_serve() {
        let serve = Mode::Serve { local: false, delay: Duration::ZERO, lines: 0, listen: true };
        assert_eq!(parse(""), Ok(serve));
    }

    #[test]
    fn exit_takes_a_code_and_a_text() {
        assert_eq!(parse("exit 3 it is over"), Ok(Mode::Exit { code: 3, text: "it is over".into() }));
    }

    #[test]
    fn wrong_modes_are_refused_by_name() {
        assert_eq!(parse("dance"), Err("unknown mode 'dance'".into()));
        assert_eq!(parse("exit 300"), Err("'300' is not a number in range".into()));
        assert!(parse("late").is_err());
    }
}
