//! A small blocking HTTP/1.1 client, for Unix sockets and TCP. It shows what came, unchanged, and
//! lets a test send and receive piece by piece.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// No answer takes longer; a proxy that hangs must fail a test, not stop it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Status, headers and body of an answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Headers in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body; empty as [`Connection::read_head`] gives it.
    pub body: Vec<u8>,
}

impl Response {
    /// The first value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Itself, if the status is 200.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    #[must_use]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{}", self.text());
        self
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A connection to a server.
pub struct Connection {
    stream: BufReader<Box<dyn Stream>>,
    framing: Framing,
}

#[derive(Clone, Copy, Debug)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("framing", &self.framing).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to a Unix socket.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub fn unix(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self::over(Box::new(stream)))
    }

    /// Connects to a Unix socket; what is sent while something is received goes to the first half.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub fn halves(path: &Path) -> std::io::Result<(UnixStream, Self)> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok((stream.try_clone()?, Self::over(Box::new(stream))))
    }

    /// Connects to a TCP address.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub fn tcp(address: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self::over(Box::new(stream)))
    }

    fn over(stream: Box<dyn Stream>) -> Self {
        Self { stream: BufReader::new(stream), framing: Framing::Length(0) }
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    /// When they cannot be sent.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        let stream = self.stream.get_mut();
        stream.write_all(bytes).and_then(|()| stream.flush()).expect("send");
    }

    /// Sends a request's head; `Host` is added.
    #[track_caller]
    pub fn send_head(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: function.test\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.send(head.as_bytes());
    }

    /// Sends one chunk of a chunked body; an empty one ends it.
    #[track_caller]
    pub fn send_chunk(&mut self, bytes: &[u8]) {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.send(&chunk);
    }

    /// Sends a whole request with a body of known length and reads the answer.
    #[track_caller]
    pub fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let length = body.len().to_string();
        let mut headers = headers.to_vec();
        if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
            headers.push(("Content-Length", &length));
        }
        self.send_head(method, target, &headers);
        self.send(body);
        self.read_response(method)
    }

    /// Reads a whole answer to a request of this method.
    #[track_caller]
    pub fn read_response(&mut self, method: &str) -> Response {
        let mut response = self.read_head();
        if method != "HEAD" && response.status != 204 && response.status != 304 {
            while let Some(part) = self.read_part() {
                response.body.extend_from_slice(&part);
            }
        }
        response
    }

    /// Reads status and headers; [`Connection::read_part`] gives the body then. Interim answers
    /// (100) are passed over.
    #[track_caller]
    pub fn read_head(&mut self) -> Response {
        let response = self.read_any_head();
        if response.status == 100 { self.read_head() } else { response }
    }

    /// As [`Connection::read_head`], interim answers included.
    #[track_caller]
    pub fn read_any_head(&mut self) -> Response {
        let line = self.line();
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {line:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a header: {line:?}"));
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let response = Response { status, headers, body: Vec::new() };
        self.framing = framing(&response);
        response
    }

    /// The next part of the body as it comes: a chunk, or what one read gives.
    #[track_caller]
    pub fn read_part(&mut self) -> Option<Vec<u8>> {
        match self.framing {
            Framing::Chunked => self.chunk(),
            Framing::Length(0) => None,
            Framing::Length(left) => {
                let part = self.some(left);
                assert!(!part.is_empty(), "the body ended {left} bytes early");
                self.framing = Framing::Length(left - part.len() as u64);
                Some(part)
            }
            Framing::UntilClose => Some(self.some(u64::MAX)).filter(|part| !part.is_empty()),
        }
    }

    /// Bytes as they come, without any framing, for what follows an upgrade.
    #[track_caller]
    pub fn read_raw(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).expect("bytes");
        bytes
    }

    #[track_caller]
    fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.line();
        let size = line.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("not a chunk size: {line:?}"));
        if size == 0 {
            while !self.line().is_empty() {}
            self.framing = Framing::Length(0);
            return None;
        }
        let mut part = vec![0; size];
        self.stream.read_exact(&mut part).expect("a whole chunk");
        assert_eq!(self.line(), "", "a chunk is longer than it says");
        Some(part)
    }

    #[track_caller]
    fn some(&mut self, most: u64) -> Vec<u8> {
        let buffer = self.stream.fill_buf().expect("a part of the body");
        let count = buffer.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let part = buffer[..count].to_vec();
        self.stream.consume(count);
        part
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).expect("a line of the answer");
        assert!(line.ends_with(b"\n"), "the answer ended early: {:?}", String::from_utf8_lossy(&line));
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }
}

fn framing(response: &Response) -> Framing {
    if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return Framing::Chunked;
    }
    let length = response.header("content-length").and_then(|value| value.parse().ok());
    length.map_or(Framing::UntilClose, Framing::Length)
}
