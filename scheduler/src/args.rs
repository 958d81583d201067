//! The flags of this crate, named as kube-controller-manager's where it has them. Parses; starts nothing.

use std::time::Duration;

use ipnet::Ipv4Net;
use types::duration::within;

use crate::pool::Pool;

/// Flags of scheduling and the controllers.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Seed of the choice between equally good nodes; the same seed and the same order of pods give the same placement.
    #[arg(
        long = "scheduler-seed",
        value_name = "NUMBER",
        default_value_t = 0,
        hide = true
    )]
    pub seed: u64,

    /// Addresses of all pods of the cluster; each node gets a part
    #[arg(long, value_name = "CIDR", default_value_t = CLUSTER_CIDR)]
    pub cluster_cidr: Ipv4Net,

    /// Length of the prefix of each node's part
    #[arg(long, value_name = "BITS", default_value_t = NODE_MASK, value_parser = clap::value_parser!(u8).range(1..=30))]
    pub node_cidr_mask_size: u8,

    /// How long a node may be silent before it counts as lost, such as 40s
    #[arg(long, value_name = "TIME", default_value = "40s", value_parser = within(SHORTEST_GRACE, LONGEST_GRACE))]
    pub node_monitor_grace_period: Duration,

    /// Addresses that Services of type LoadBalancer get, such as 192.0.2.10-192.0.2.20,192.0.2.64/28; a node answers on
    /// those it has on an interface [default: Services have the nodes' own addresses]
    #[arg(long, value_name = "RANGES")]
    pub load_balancer_pool: Option<Pool>,
}

/// 100.64.0.0/10, the shared address space of RFC 6598.
const CLUSTER_CIDR: Ipv4Net = match Ipv4Net::new(std::net::Ipv4Addr::new(100, 64, 0, 0), 10) {
    Ok(net) => net,
    Err(_) => panic!("10 bits are a prefix"),
};
const NODE_MASK: u8 = 18;
const GRACE: Duration = Duration::from_secs(40);
const SHORTEST_GRACE: Duration = Duration::from_secs(1);
const LONGEST_GRACE: Duration = Duration::from_secs(86_400);

// === impl Args ===

impl Default for Args {
    fn default() -> Self {
        Self {
            seed: 0,
            cluster_cidr: CLUSTER_CIDR,
            node_cidr_mask_size: NODE_MASK,
            node_monitor_grace_period: GRACE,
            load_balancer_pool: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn flags_are_read_and_their_defaults_are_the_defaults() {
        let args = Line::try_parse_from(["x"])
            .expect("no flags are needed")
            .args;
        assert_eq!(format!("{args:?}"), format!("{:?}", Args::default()));
        let args = Line::try_parse_from(["x", "--node-monitor-grace-period", "4s"])
            .expect("a time")
            .args;
        assert_eq!(args.node_monitor_grace_period, Duration::from_secs(4));
        let args = Line::try_parse_from(["x", "--node-monitor-grace-period", "1h30m"])
            .expect("a time as Go writes it")
            .args;
        assert_eq!(args.node_monitor_grace_period, Duration::from_secs(5_400));
        for bad in [
            "0s",
            "4",
            "-1s",
            "25h",
            "99999999999999999999s",
            "18446744073709551615m",
        ] {
            let line = ["x", "--node-monitor-grace-period", bad];
            assert!(Line::try_parse_from(line).is_err(), "{bad}");
        }
    }
}
