//! Servers that are none: they listen, and do not serve.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;

/// Answers every connection with what is no HTTP.
pub(crate) fn garbage(port: u16) -> ExitCode {
    let Ok(listener) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) else { return ExitCode::from(71) };
    for mut stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            // Something has been asked for by then.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n");
        });
    }
    ExitCode::SUCCESS
}

/// Takes one connection, closes it, and refuses all others.
pub(crate) fn deaf(port: u16) -> ExitCode {
    let Ok(listener) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) else { return ExitCode::from(71) };
    drop(listener.accept());
    drop(listener);
    loop {
        std::thread::park();
    }
}
