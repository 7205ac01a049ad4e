//! Programs that are asked one short question.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program that has not answered by then is given up.
const DEADLINE: Duration = Duration::from_secs(2);

/// How often its end is looked for.
const POLL: Duration = Duration::from_millis(5);

/// Most bytes of each of its streams that are read.
const BYTES_MAX: u64 = 256;

/// What a program said: the first line of each stream, without control characters, and how its
/// output begins.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) head: String,
}

/// Runs a program with an empty environment and nothing to read, and kills it when it takes longer
/// than 2 s.
///
/// # Errors
/// When it cannot be executed; `TimedOut`.
pub(super) fn ask(program: &Path, args: &[&str]) -> io::Result<Answer> {
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let success = wait(&mut child, Instant::now() + DEADLINE);
    if !matches!(success, Ok(Some(_))) {
        child.kill()?;
        child.wait()?;
    }
    let timed_out = || {
        let text = format!("no answer within {} s", DEADLINE.as_secs());
        io::Error::new(io::ErrorKind::TimedOut, text)
    };
    let success = success?.ok_or_else(timed_out)?;
    let head = beginning(child.stdout.take())?;
    let stderr = first_line(&beginning(child.stderr.take())?);
    Ok(Answer { success, stdout: first_line(&head), stderr, head })
}

/// Whether it ended well; `None` when it has not ended in time.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<bool>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

fn beginning(pipe: Option<impl Read + AsFd>) -> io::Result<String> {
    let Some(pipe) = pipe else { return Ok(String::new()) };
    // A descendant may still hold the pipe: what is in it now is the answer.
    rustix::io::ioctl_fionbio(&pipe, true)?;
    let mut bytes = Vec::new();
    match pipe.take(BYTES_MAX).read_to_end(&mut bytes) {
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
        _ => {}
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim();
    line.chars().filter(|c| !c.is_control()).collect()
}
