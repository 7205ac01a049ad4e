//! A small HTTP function that demo and tests put into an image as its only file.
//!
//! It answers the event paths of both platforms, tells what it sees of its container, and can be
//! told to misbehave: by the path that is asked for, or from the start by its arguments (see
//! [`mode`]).

mod http;
mod job;
mod lifecycle;
mod load;
mod mode;
mod query;
mod raw;
mod routes;
mod view;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use mode::Mode;

/// The port when the platform names none.
const DEFAULT_PORT: u16 = 9000;

fn main() -> ExitCode {
    view::remember_start();
    let mode = match Mode::from_process() {
        Ok(mode) => mode,
        Err(message) => return fail(2, &message),
    };
    match mode {
        Mode::Exit { code, text } => fail(code, &text),
        Mode::Garbage => raw::garbage(port()),
        Mode::Deaf => raw::deaf(port()),
        Mode::Oom => {
            load::take_all();
            ExitCode::SUCCESS
        }
        Mode::Idle => loop {
            std::thread::park();
        },
        Mode::Job => job::run(),
        Mode::Serve { local, delay, lines, listen } => {
            say_lines(lines);
            std::thread::sleep(delay);
            serve(local, listen)
        }
    }
}

/// Writes a text to standard error and gives the exit code.
fn fail(code: u8, text: &str) -> ExitCode {
    if !text.is_empty() {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
    ExitCode::from(code)
}

/// Writes numbered lines, in turn to standard output and standard error.
fn say_lines(lines: u32) {
    for number in 1..=lines {
        let line = format!("line {number} of {lines}\n");
        if number % 2 == 1 {
            let _ = std::io::stdout().write_all(line.as_bytes());
        } else {
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
}

fn serve(local: bool, listen: bool) -> ExitCode {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return fail(70, "cannot make the tokio runtime");
    };
    let host = if local { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    let address = SocketAddr::new(IpAddr::V4(host), port());
    let result = runtime.block_on(async {
        tokio::spawn(lifecycle::tick());
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = http::serve(address, listen) => result,
            _ = term.recv() => {
                let _ = writeln!(std::io::stdout(), "SIGTERM: bye");
                Ok(())
            }
        }
    });
    // A blocking task may still run (a sleep, a fill); the process ends without waiting for it.
    runtime.shutdown_timeout(Duration::from_millis(10));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(71, &format!("cannot serve on {address}: {error}")),
    }
}

fn port() -> u16 {
    ["FC_CUSTOM_LISTEN_PORT", "PORT"]
        .iter()
        .find_map(|name| std::env::var(name).ok()?.parse().ok())
        .unwrap_or(DEFAULT_PORT)
}
