//! TCP addresses to listen on.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use super::Invalid;

/// `IP:PORT`, or `PORT` on the loopback address: what listens to the whole network must say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listen(pub(crate) SocketAddr);

impl FromStr for Listen {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Ok(port) = text.parse::<u16>() {
            return Ok(Self((Ipv4Addr::LOCALHOST, port).into()));
        }
        text.parse().map(Self).map_err(|_| Invalid::new("not IP:PORT or PORT, such as 127.0.0.1:8080"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_on_loopback() {
        for (text, address) in [
            ("8080", "127.0.0.1:8080"),
            ("0", "127.0.0.1:0"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(text.parse::<Listen>().map(|l| l.0.to_string()), Ok(address.into()));
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "65536", "localhost:80", "127.0.0.1", ":80", "1.2.3.4:99999", "-1"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }
}
