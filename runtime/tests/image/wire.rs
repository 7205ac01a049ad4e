//! What is below the answers of a test's registry: requests in pieces, TLS, the kernel's queues.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::liar::Liar;
use crate::registry::certificates;

/// Bytes of a whole request, as its head says.
pub(crate) fn whole_length(request: &str) -> usize {
    let Some((head, _)) = request.split_once("\r\n\r\n") else { return 0 };
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    head.len() + 4 + lengths.map(|(_, value)| value.trim().parse::<usize>().unwrap()).sum::<usize>()
}

/// Bytes of an IPv4 connection that the other side's kernel has not taken yet.
pub(crate) fn unsent(local: SocketAddr, peer: SocketAddr) -> u64 {
    let port = |address: SocketAddr| format!(":{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|line| line[1].ends_with(&port(local)) && line[2].ends_with(&port(peer)));
    let queues = line.expect("the connection is in the table")[4];
    u64::from_str_radix(queues.split(':').next().unwrap(), 16).unwrap()
}

/// TLS before a liar, with the certificate of `certificates`. It ends with the test's process.
pub(crate) struct TlsFront {
    pub(crate) address: String,
}

/// What becomes of a connection before it says anything.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Greeting {
    Reset,
    HangUp,
}

impl TlsFront {
    /// `greetings` are what the first connections get.
    pub(crate) fn start(dir: &Path, liar: &Liar, greetings: &'static [Greeting]) -> Self {
        certificates(dir);
        let chain = CertificateDer::pem_file_iter(dir.join("tls.pem")).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(dir.join("tls.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth().with_single_cert(chain, key);
        let config = Arc::new(config.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let behind = liar.address.clone();
        std::thread::spawn(move || {
            for (at, stream) in listener.incoming().flatten().enumerate() {
                match greetings.get(at) {
                    Some(greeting) => refuse(stream, *greeting),
                    None => {
                        let (config, behind) = (Arc::clone(&config), behind.clone());
                        std::thread::spawn(move || relay(stream, config, &behind));
                    }
                }
            }
        });
        Self { address }
    }
}

fn refuse(mut stream: TcpStream, greeting: Greeting) {
    if greeting == Greeting::Reset {
        rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO)).unwrap();
        return;
    }
    // What is not read would be a reset too.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

/// One request without a body, and its answer up to the end of the connection.
fn relay(stream: TcpStream, config: Arc<ServerConfig>, behind: &str) -> std::io::Result<()> {
    let mut tls = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    let mut plain = TcpStream::connect(behind)?;
    plain.write_all(&request)?;
    std::io::copy(&mut plain, &mut tls)?;
    tls.conn.send_close_notify();
    tls.flush()
}
