//! What the function reaches.

use clap::{Args, ValueEnum};
use skiff::{Cidr, NetworkOptions};

/// The function's network.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkArgs {
    /// What the function reaches [default: none].
    #[arg(long, value_name = "KIND", value_enum)]
    pub(crate) network: Option<Network>,
    /// With bridge: the IPv4 addresses of functions, such as 10.213.0.0/16
    /// [default: a range that the host does not use].
    #[arg(long, value_name = "BLOCK")]
    pub(crate) egress_range: Option<Cidr>,
    /// How many network namespaces are kept ready [default: 0, or 8 with `skiff serve`].
    #[arg(long, value_name = "COUNT")]
    #[arg(value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=1024))]
    pub(crate) network_pool: Option<usize>,
}

impl NetworkArgs {
    /// Of a command that runs one function.
    pub(crate) fn options(&self) -> NetworkOptions {
        NetworkOptions { ready: self.network_pool.unwrap_or(0), egress_range: self.egress_range }
    }

    /// Of a node.
    pub(crate) fn node_options(&self) -> NetworkOptions {
        let usual = NetworkOptions::default();
        NetworkOptions { ready: self.network_pool.unwrap_or(usual.ready), egress_range: self.egress_range }
    }
}

/// What a function reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// Itself
    None,
    /// The outside; not this host, other functions or metadata services
    Bridge,
    /// All that this host reaches, and the host itself, without isolation
    Host,
}

impl From<Network> for skiff::Network {
    fn from(network: Network) -> Self {
        match network {
            Network::None => Self::None,
            Network::Bridge => Self::Bridge,
            Network::Host => Self::Host,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        network: NetworkArgs,
    }

    fn parse(args: &[&str]) -> Result<NetworkArgs, clap::Error> {
        Program::try_parse_from(std::iter::once(&"skiff").chain(args)).map(|program| program.network)
    }

    #[test]
    fn a_function_reaches_nobody_unless_it_is_let() {
        let args = parse(&[]).expect("no options");
        assert_eq!(args.network.map(skiff::Network::from), None);
        assert_eq!((args.options().ready, args.options().egress_range), (0, None));
        assert_eq!(args.node_options().ready, 8);
    }

    #[test]
    fn what_is_given_is_taken() {
        let args = parse(&["--network=bridge", "--egress-range=10.5.0.0/16", "--network-pool=4"]);
        let args = args.expect("options");
        assert_eq!(args.network.map(skiff::Network::from), Some(skiff::Network::Bridge));
        assert_eq!((args.options().ready, args.node_options().ready), (4, 4));
        assert_eq!(
            args.options().egress_range.map(|range| range.to_string()).as_deref(),
            Some("10.5.0.0/16")
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for bad in ["--network=wide", "--egress-range=10.0.0.1/8", "--network-pool=1025", "--network-pool=-1"]
        {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
    }
}
