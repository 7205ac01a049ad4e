//! `skiff exec`.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use skiff::exec::{Exec, ExecSpec, RawTerminal, Signal, Streams, Target, TerminalSize};
use skiff::{RuntimeError, RuntimeErrorKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{absolute, require_root, variable};
use crate::cli::args::{ExecArgs, Global};
use crate::cli::failure::Failure;
use crate::cli::values::env;

/// Of a shell that cannot execute a command, or cannot find it.
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Bytes that are passed on at once.
const CHUNK: usize = 64 << 10;
/// How long a stream that is still open after the end may be silent before it is left.
const SILENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Signals that are passed on, when there is no terminal that turns keys into them.
const SIGNALS: [Signal; 6] =
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2];

/// Runs a command in an instance and exits as it did.
pub(crate) async fn exec(global: &Global, args: &ExecArgs) -> Result<ExitCode, Failure> {
    require_root()?;
    let target = Target::find(&absolute(&global.run_dir)?, &args.instance).map_err(skiff::Error::from)?;
    let spec = ExecSpec {
        argv: args.command.clone(),
        env: env::gather(&[] as &[PathBuf], &args.env, &variable).map_err(Failure::from)?,
        user: args.user.clone(),
        working_dir: args.workdir.clone(),
        terminal: args
            .tty
            .then(|| TerminalSize::of(io::stdin()).or(TerminalSize::of(io::stdout())).unwrap_or_default()),
    };
    let (signals, mut coming) = listen()?;
    let mut exec = Exec::start(&target, spec, global.keeper.as_deref()).await.map_err(not_started)?;
    let connected = Connected::new(&mut exec, args)?;
    let exit = loop {
        tokio::select! {
            exit = exec.wait() => break exit.map_err(skiff::Error::from)?,
            Some(signal) = coming.recv() => pass_on(&exec, signal).await,
        }
    };
    drop(signals);
    connected.finish();
    Ok(ExitCode::from(u8::try_from(exit.shell_code()).unwrap_or(u8::MAX)))
}

async fn pass_on(exec: &Exec, signal: Signal) {
    if signal == Signal::WINCH {
        if let Some(size) = TerminalSize::of(io::stdin()) {
            exec.resize(size);
        }
        return;
    }
    // One that comes too late has nobody to reach.
    let _ = exec.signal(signal).await;
}

/// Exit codes of a shell for a command that is not there or cannot be executed.
fn not_started(error: RuntimeError) -> Failure {
    let exit = match error.kind() {
        RuntimeErrorKind::CommandNotFound => Some(NOT_FOUND),
        RuntimeErrorKind::CommandNotExecutable => Some(CANNOT_EXECUTE),
        RuntimeErrorKind::UnknownUser
        | RuntimeErrorKind::InvalidWorkingDirectory
        | RuntimeErrorKind::NoCommand => Some(skiff::ExitCode::Usage as u8),
        _ => None,
    };
    let mut failure = Failure::from(skiff::Error::from(error));
    failure.exit = exit.unwrap_or(failure.exit);
    failure
}

/// Tasks that listen for signals, until they are dropped.
struct Listening(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn listen() -> Result<(Listening, mpsc::Receiver<Signal>), Failure> {
    // More at once than a person can send are the same as fewer.
    let (sender, receiver) = mpsc::channel(16);
    let tasks = SIGNALS.into_iter().chain([Signal::WINCH]).map(|wanted| {
        let mut coming = signal(SignalKind::from_raw(wanted.as_raw()))?;
        let sender = sender.clone();
        Ok(tokio::spawn(async move {
            while coming.recv().await.is_some() {
                let _ = sender.try_send(wanted);
            }
        }))
    });
    let tasks = tasks.collect::<io::Result<_>>().map_err(|e| Failure::host("taking over signals", &e))?;
    Ok((Listening(tasks), receiver))
}

/// Threads that pass bytes on between this program's streams and the command's.
struct Connected {
    ended: Arc<AtomicBool>,
    outputs: Vec<JoinHandle<()>>,
    /// Restores the terminal when it is dropped.
    raw: Option<RawTerminal>,
}

impl Connected {
    fn new(exec: &mut Exec, args: &ExecArgs) -> Result<Self, Failure> {
        let mut this = Self { ended: Arc::new(AtomicBool::new(false)), outputs: Vec::new(), raw: None };
        match exec.terminal().map_err(skiff::Error::from)? {
            Some(master) => this.terminal(master, args.interactive)?,
            None => this.streams(exec.take_streams(), args.interactive),
        }
        Ok(this)
    }

    fn terminal(&mut self, master: OwnedFd, interactive: bool) -> Result<(), Failure> {
        if interactive {
            let copy = master.try_clone().map_err(|e| Failure::host("copying a terminal", &e))?;
            if io::stdin().is_terminal() {
                let raw = RawTerminal::new(io::stdin());
                self.raw = Some(raw.map_err(|e| Failure::host("taking the terminal over", &e))?);
            }
            feed(copy, Some(END_OF_TRANSMISSION));
        }
        self.pass(master, io::stdout());
        Ok(())
    }

    fn streams(&mut self, streams: Option<Streams>, interactive: bool) {
        let Some(Streams { stdin, stdout, stderr }) = streams else { return };
        if interactive {
            feed(stdin, None);
        }
        self.pass(stdout, io::stdout());
        self.pass(stderr, io::stderr());
    }

    fn pass(&mut self, from: OwnedFd, to: impl Write + Send + 'static) {
        let ended = Arc::clone(&self.ended);
        self.outputs.push(std::thread::spawn(move || copy_until(&ended, &from, to)));
    }

    /// Returns when all that the command wrote has been written. What it has left in the background
    /// may keep its streams open: that is not waited for.
    fn finish(self) {
        self.ended.store(true, Ordering::Release);
        for output in self.outputs {
            // A thread that panicked has told so.
            let _ = output.join();
        }
        drop(self.raw);
    }
}

/// What a terminal takes for the end of its input.
const END_OF_TRANSMISSION: u8 = 4;

/// Passes the standard input on, on a thread that ends with the program at the latest.
fn feed(to: OwnedFd, at_end: Option<u8>) {
    std::thread::spawn(move || {
        let mut to = File::from(to);
        // A command that reads no more, or has ended, needs no more.
        let copied = io::copy(&mut io::stdin().lock(), &mut to);
        if let (Ok(_), Some(end)) = (copied, at_end) {
            let _ = to.write_all(&[end]);
        }
    });
}

fn copy_until(ended: &AtomicBool, from: &OwnedFd, mut to: impl Write) {
    let mut chunk = vec![0; CHUNK];
    let Ok(mut reader) = from.try_clone().map(File::from) else { return };
    loop {
        // Before the wait: what was written before the end is there then.
        let was_ended = ended.load(Ordering::Acquire);
        let mut fds = [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)];
        if poll(&mut fds, Some(&SILENCE)).is_ok_and(|ready| ready == 0) {
            if was_ended {
                return;
            }
            continue;
        }
        match reader.read(&mut chunk) {
            // A terminal whose last user has gone is an error, not an end.
            Ok(0) => return,
            Ok(read) => {
                if to.write_all(&chunk[..read]).and_then(|()| to.flush()).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
